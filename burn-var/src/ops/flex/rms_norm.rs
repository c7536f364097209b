use super::{
    bridge::{Array, Kernel},
    simd::{add, sums, vectorized},
};

/// Number of rows per task.
const ROWS: usize = 64;

/// Division of rows by their root mean square, times a weight, `[channels]`.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct RmsNorm {
    pub(in crate::ops) eps: f64,
}

impl Kernel<2> for RmsNorm {
    /// The input and the weight.
    type Saved = [Array; 2];

    fn forward(&self, [x, weight]: [Array; 2]) -> (Array, [Array; 2]) {
        let channels = weight.values().len();
        assert_eq!(x.shape()[x.shape().num_dims() - 1], channels, "rms_norm: length of the weight");
        let (out, _) = x.clone().update(ROWS * channels, |_, values| {
            values.chunks_mut(channels).for_each(|row| normalize(weight.values(), self.eps, row));
        });
        (out, [x, weight])
    }

    fn backward(&self, [x, weight]: [Array; 2], grad: Array, wanted: [bool; 2]) -> [Option<Array>; 2] {
        let channels = weight.values().len();
        let (out, weight_grads) = grad.update(ROWS * channels, |piece, grads| {
            let mut weight_grad = vec![0.0; channels];
            let x = &x.values()[piece * ROWS * channels..];
            for (x, grad) in x.chunks(channels).zip(grads.chunks_mut(channels)) {
                normalize_backward(x, weight.values(), self.eps, grad, &mut weight_grad);
            }
            weight_grad
        });
        let mut total = vec![0.0; channels];
        weight_grads.iter().for_each(|grad| add(grad, &mut total));
        [wanted[0].then_some(out), wanted[1].then(|| Array::new(total, [channels]))]
    }
}

/// Computes the reciprocal root mean square of a row.
#[inline(always)]
fn reciprocal(x: &[f32], eps: f64) -> f32 {
    let [squares] = sums(x, x, |x, _| [x * x]);
    (squares / x.len() as f64 + eps).sqrt().recip() as f32
}

vectorized! {
    fn normalize(weight: &[f32], eps: f64, values: &mut [f32]) {
        let scale = reciprocal(values, eps);
        for (value, &weight) in values.iter_mut().zip(weight) {
            *value = *value * scale * weight;
        }
    }

    /// Adds to the gradient of the weight, and turns the gradient of the output into that of `x`.
    fn normalize_backward(x: &[f32], weight: &[f32], eps: f64, grad: &mut [f32], weight_grad: &mut [f32]) {
        let scale = reciprocal(x, eps);
        for (((grad, &weight), weight_grad), &x) in grad.iter_mut().zip(weight).zip(weight_grad).zip(x) {
            *weight_grad += *grad * x * scale;
            *grad *= weight;
        }
        let [along] = sums(x, grad, |x, grad| [grad * x]).map(|sum| (sum / x.len() as f64) as f32 * scale * scale);
        for (grad, &x) in grad.iter_mut().zip(x) {
            *grad = scale * (*grad - x * along);
        }
    }
}
