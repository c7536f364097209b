use rayon::prelude::*;

use super::{
    bridge::{Array, Kernel},
    moments::moments_inline,
    simd::{sums, vectorised},
};

/// Layer norm of `[batch, length, channels]`, times one plus a scale, plus a shift, both `[batch, 1, channels]`.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct LayerNormModulate {
    pub(in crate::ops) eps: f64,
}

impl Kernel<3> for LayerNormModulate {
    /// The input and the scale.
    type Saved = [Array; 2];

    fn forward(&self, [x, scale, shift]: [Array; 3]) -> (Array, [Array; 2]) {
        let [batch, length, channels] = x.dims();
        for modulation in [&scale, &shift] {
            assert_eq!(modulation.dims(), [batch, 1, channels], "layer_norm_modulate: shape of the scale or shift");
        }
        let mut out = vec![0.0; x.values().len()];
        let rows = out.par_chunks_mut(channels.max(1)).zip(x.values().par_chunks(channels.max(1)));
        rows.enumerate().with_min_len(16).for_each(|(row, (out, x))| {
            let first = row / length * channels;
            let [scale, shift] = [&scale, &shift].map(|values| &values.values()[first..first + channels]);
            normalise(x, scale, shift, self.eps, out);
        });
        (Array::new(out, x.shape()), [x, scale])
    }

    fn backward(&self, [x, scale]: [Array; 2], grad: Array, wanted: [bool; 3]) -> [Option<Array>; 3] {
        let [batch, length, channels] = x.dims();
        let mut out = vec![0.0; x.values().len()];
        let mut scale_grad = vec![0.0; batch * channels];
        let mut shift_grad = vec![0.0; batch * channels];
        let len = (length * channels).max(1);
        let inputs = x.values().par_chunks(len).zip(grad.values().par_chunks(len));
        let affine = scale_grad.par_chunks_mut(channels.max(1)).zip(shift_grad.par_chunks_mut(channels.max(1)));
        out.par_chunks_mut(len).zip(inputs).zip(affine).zip(scale.values().par_chunks(channels.max(1))).for_each(
            |(((out, (x, grad)), (scale_grad, shift_grad)), scale)| {
                let rows = x.chunks(channels).zip(grad.chunks(channels)).zip(out.chunks_mut(channels));
                for ((x, grad), out) in rows {
                    normalise_backward(x, grad, scale, self.eps, out, scale_grad, shift_grad);
                }
            },
        );
        let [want_x, want_scale, want_shift] = wanted;
        [
            want_x.then(|| Array::new(out, x.shape())),
            want_scale.then(|| Array::new(scale_grad, scale.shape())),
            want_shift.then(|| Array::new(shift_grad, scale.shape())),
        ]
    }
}

vectorised! {
    fn normalise(x: &[f32], scale: &[f32], shift: &[f32], eps: f64, out: &mut [f32]) {
        let moments = moments_inline(x, eps);
        for (((out, &x), &scale), &shift) in out.iter_mut().zip(x).zip(scale).zip(shift) {
            *out = (x - moments.mean) * moments.scale * (1.0 + scale) + shift;
        }
    }

    fn normalise_backward(
        x: &[f32],
        grad: &[f32],
        scale: &[f32],
        eps: f64,
        out: &mut [f32],
        scale_grad: &mut [f32],
        shift_grad: &mut [f32],
    ) {
        let moments = moments_inline(x, eps);
        let standard = |x: f32| (x - moments.mean) * moments.scale;
        for ((out, &grad), &scale) in out.iter_mut().zip(grad).zip(scale) {
            *out = grad * (1.0 + scale);
        }
        let [mean_g, mean_gx] =
            sums(x, out, |x, grad| [grad, grad * standard(x)]).map(|sum| (sum / x.len() as f64) as f32);
        for (out, &x) in out.iter_mut().zip(x) {
            *out = moments.scale * (*out - mean_g - standard(x) * mean_gx);
        }
        for (((sum, shift_sum), &x), &grad) in scale_grad.iter_mut().zip(shift_grad).zip(x).zip(grad) {
            *sum += grad * standard(x);
            *shift_sum += grad;
        }
    }
}
