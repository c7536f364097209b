use super::{
    bridge::{Array, Kernel},
    pointwise::silu_slope,
    simd::{sigmoid, vectorized},
};

/// Number of elements per task.
const PIECE: usize = 1 << 13;

/// Gated activation, `silu(gate) * x`.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct SwiGlu;

impl Kernel<2> for SwiGlu {
    /// The gate and the gated values.
    type Saved = [Array; 2];

    fn forward(&self, inputs: [Array; 2]) -> (Array, [Array; 2]) {
        (self.infer(inputs.clone()), inputs)
    }

    fn infer(&self, [gate, x]: [Array; 2]) -> Array {
        assert_eq!(gate.shape(), x.shape(), "swiglu: shapes of gate and values");
        gate.update(PIECE, |piece, values| multiply(&x.values()[piece * PIECE..], values)).0
    }

    fn backward(&self, [gate, x]: [Array; 2], grad: Array, wanted: [bool; 2]) -> [Option<Array>; 2] {
        let [gates, values] = [&gate, &x].map(Array::values);
        let gate_grad = wanted[0].then(|| {
            let by_piece = |piece: usize, grad: &mut [f32]| {
                gate_backward(&gates[piece * PIECE..], &values[piece * PIECE..], grad);
            };
            grad.clone().update(PIECE, by_piece).0
        });
        let x_grad =
            wanted[1].then(|| grad.update(PIECE, |piece, grad| multiply_by_gate(&gates[piece * PIECE..], grad)).0);
        [gate_grad, x_grad]
    }
}

vectorized! {
    /// Turns gates into the output.
    fn multiply(x: &[f32], gates: &mut [f32]) {
        for (gate, &x) in gates.iter_mut().zip(x) {
            *gate *= sigmoid::<FMA>(*gate) * x;
        }
    }

    fn gate_backward(gates: &[f32], x: &[f32], grad: &mut [f32]) {
        for ((grad, &gate), &x) in grad.iter_mut().zip(gates).zip(x) {
            *grad *= silu_slope::<FMA>(gate) * x;
        }
    }

    fn multiply_by_gate(gates: &[f32], grad: &mut [f32]) {
        for (grad, &gate) in grad.iter_mut().zip(gates) {
            *grad *= gate * sigmoid::<FMA>(gate);
        }
    }
}
