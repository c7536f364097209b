use super::{
    bridge::{Array, Kernel},
    simd::vectorized,
};

/// Number of rows per task.
const ROWS: usize = 64;

/// Gated residual branch, `x + branch * gate`, with one gate row per image.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct GatedResidual;

impl Kernel<3> for GatedResidual {
    /// The branch and the gate.
    type Saved = [Array; 2];

    fn forward(&self, [x, branch, gate]: [Array; 3]) -> (Array, [Array; 2]) {
        let [batch, length, channels] = x.dims();
        assert_eq!(branch.dims(), [batch, length, channels], "gated_residual: shape of the branch");
        assert_eq!(gate.dims(), [batch, 1, channels], "gated_residual: shape of the gate");
        let (out, _) = x.update(ROWS * channels, |piece, values| {
            let rows = values.chunks_mut(channels).zip(branch.values()[piece * ROWS * channels..].chunks(channels));
            for (row, (values, branch)) in (piece * ROWS..).zip(rows) {
                add_product(branch, &gate.values()[row / length * channels..][..channels], values);
            }
        });
        (out, [branch, gate])
    }

    fn backward(&self, [branch, gate]: [Array; 2], grad: Array, wanted: [bool; 3]) -> [Option<Array>; 3] {
        let [_, length, channels] = branch.dims();
        let len = length * channels;
        let [want_x, want_branch, want_gate] = wanted;
        let x_grad = want_x.then(|| grad.clone());
        let (branch_grad, gate_grads) = grad.update(len, |image, grads| {
            let gate = &gate.values()[image * channels..][..channels];
            let mut gate_grad = vec![0.0; channels];
            for (branch, grad) in branch.values()[image * len..].chunks(channels).zip(grads.chunks_mut(channels)) {
                gate_backward(branch, gate, grad, &mut gate_grad);
            }
            gate_grad
        });
        let gate_grad = want_gate.then(|| Array::new(gate_grads.concat(), gate.shape()));
        [x_grad, want_branch.then_some(branch_grad), gate_grad]
    }
}

vectorized! {
    fn add_product(a: &[f32], b: &[f32], to: &mut [f32]) {
        for ((to, &a), &b) in to.iter_mut().zip(a).zip(b) {
            *to += a * b;
        }
    }

    /// Adds to the gradient of the gate, and turns the gradient of the output into that of the branch.
    fn gate_backward(branch: &[f32], gate: &[f32], grad: &mut [f32], gate_grad: &mut [f32]) {
        for (((grad, &branch), &gate), gate_grad) in grad.iter_mut().zip(branch).zip(gate).zip(gate_grad) {
            *gate_grad += *grad * branch;
            *grad *= gate;
        }
    }
}
