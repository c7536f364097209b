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
        let (out, _) = x.clone().update(channels, |row, values| {
            let first = row / length * channels;
            let [scale, shift] = [&scale, &shift].map(|values| &values.values()[first..][..channels]);
            normalise(scale, shift, self.eps, values);
        });
        (out, [x, scale])
    }

    fn backward(&self, [x, scale]: [Array; 2], grad: Array, wanted: [bool; 3]) -> [Option<Array>; 3] {
        let [_, length, channels] = x.dims();
        let len = length * channels;
        let (out, modulation_grads) = grad.update(len, |image, grads| {
            let scale = &scale.values()[image * channels..][..channels];
            let [mut scale_grad, mut shift_grad] = [(); 2].map(|()| vec![0.0; channels]);
            for (x, grad) in x.values()[image * len..].chunks(channels).zip(grads.chunks_mut(channels)) {
                normalise_backward(x, scale, self.eps, grad, &mut scale_grad, &mut shift_grad);
            }
            [scale_grad, shift_grad]
        });
        let gather = |which: usize| {
            let values = modulation_grads.iter().flat_map(|grads| &grads[which]).copied().collect();
            Array::new(values, scale.shape())
        };
        let [want_x, want_scale, want_shift] = wanted;
        [want_x.then_some(out), want_scale.then(|| gather(0)), want_shift.then(|| gather(1))]
    }
}

vectorised! {
    fn normalise(scale: &[f32], shift: &[f32], eps: f64, values: &mut [f32]) {
        let moments = moments_inline(values, eps);
        for ((value, &scale), &shift) in values.iter_mut().zip(scale).zip(shift) {
            *value = (*value - moments.mean) * moments.scale * (1.0 + scale) + shift;
        }
    }

    /// Adds to the gradients of scale and shift, and turns the gradient of the output into that of `x`.
    fn normalise_backward(
        x: &[f32],
        scale: &[f32],
        eps: f64,
        grad: &mut [f32],
        scale_grad: &mut [f32],
        shift_grad: &mut [f32],
    ) {
        let moments = moments_inline(x, eps);
        let standard = |x: f32| (x - moments.mean) * moments.scale;
        let sums_of_rows = scale_grad.iter_mut().zip(shift_grad);
        for (((scale_grad, shift_grad), (grad, &scale)), &x) in sums_of_rows.zip(grad.iter_mut().zip(scale)).zip(x) {
            *scale_grad += *grad * standard(x);
            *shift_grad += *grad;
            *grad *= 1.0 + scale;
        }
        let means = sums(x, grad, |x, grad| [grad, grad * standard(x)]).map(|sum| (sum / x.len() as f64) as f32);
        let [mean_g, mean_gx] = means;
        for (grad, &x) in grad.iter_mut().zip(x) {
            *grad = moments.scale * (*grad - mean_g - standard(x) * mean_gx);
        }
    }
}
