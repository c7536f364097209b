use super::{
    bridge::{Array, Kernel},
    moments::moments_inline,
    simd::{add, sums, vectorized},
};

/// Number of rows per task.
const ROWS: usize = 64;

/// Layer norm of `[batch, length, channels]`, times an offset plus a scale, plus a shift. Scale and shift are `[batch,
/// 1, channels]`, or `[1, 1, channels]` for all images.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct LayerNorm {
    pub(in crate::ops) eps: f64,
    pub(in crate::ops) offset: f32,
}

impl LayerNorm {
    /// Returns the offset of an image's scale and shift.
    fn first(scale: &Array, image: usize) -> usize {
        let [images, _, channels] = scale.dims();
        if images == 1 { 0 } else { image * channels }
    }
}

impl Kernel<3> for LayerNorm {
    /// The input and the scale.
    type Saved = [Array; 2];

    fn forward(&self, [x, scale, shift]: [Array; 3]) -> (Array, [Array; 2]) {
        let [batch, length, channels] = x.dims();
        let images = scale.dims::<3>()[0];
        assert!(images == batch || images == 1, "layer_norm: {images} scales for {batch} images");
        for modulation in [&scale, &shift] {
            assert_eq!(modulation.dims(), [images, 1, channels], "layer_norm: shape of the scale or shift");
        }
        let (out, _) = x.clone().update(ROWS * channels, |piece, values| {
            for (row, values) in (piece * ROWS..).zip(values.chunks_mut(channels)) {
                let first = Self::first(&scale, row / length);
                let [scale, shift] = [&scale, &shift].map(|values| &values.values()[first..][..channels]);
                normalize(scale, shift, self.offset, self.eps, values);
            }
        });
        (out, [x, scale])
    }

    fn backward(&self, [x, scale]: [Array; 2], grad: Array, wanted: [bool; 3]) -> [Option<Array>; 3] {
        let [_, length, channels] = x.dims();
        let len = length * channels;
        let (out, modulation_grads) = grad.update(len, |image, grads| {
            let scale = &scale.values()[Self::first(&scale, image)..][..channels];
            let [mut scale_grad, mut shift_grad] = [(); 2].map(|()| vec![0.0; channels]);
            for (x, grad) in x.values()[image * len..].chunks(channels).zip(grads.chunks_mut(channels)) {
                normalize_backward(x, scale, self.offset, self.eps, grad, &mut scale_grad, &mut shift_grad);
            }
            [scale_grad, shift_grad]
        });
        let gather = |which: usize| {
            let mut values = vec![0.0; scale.values().len()];
            for (image, grads) in modulation_grads.iter().enumerate() {
                add(&grads[which], &mut values[Self::first(&scale, image)..][..channels]);
            }
            Array::new(values, scale.shape())
        };
        let [want_x, want_scale, want_shift] = wanted;
        [want_x.then_some(out), want_scale.then(|| gather(0)), want_shift.then(|| gather(1))]
    }
}

vectorized! {
    fn normalize(scale: &[f32], shift: &[f32], offset: f32, eps: f64, values: &mut [f32]) {
        let moments = moments_inline(values, eps);
        for ((value, &scale), &shift) in values.iter_mut().zip(scale).zip(shift) {
            *value = (*value - moments.mean) * moments.scale * (offset + scale) + shift;
        }
    }

    /// Adds to the gradients of scale and shift, and turns the gradient of the output into that of `x`.
    fn normalize_backward(
        x: &[f32],
        scale: &[f32],
        offset: f32,
        eps: f64,
        grad: &mut [f32],
        scale_grad: &mut [f32],
        shift_grad: &mut [f32],
    ) {
        let moments = moments_inline(x, eps);
        let normalized = |x: f32| (x - moments.mean) * moments.scale;
        let sums_of_rows = scale_grad.iter_mut().zip(shift_grad);
        for (((scale_grad, shift_grad), (grad, &scale)), &x) in sums_of_rows.zip(grad.iter_mut().zip(scale)).zip(x) {
            *scale_grad += *grad * normalized(x);
            *shift_grad += *grad;
            *grad *= offset + scale;
        }
        let means = sums(x, grad, |x, grad| [grad, grad * normalized(x)]).map(|sum| (sum / x.len() as f64) as f32);
        let [mean_g, mean_gx] = means;
        for (grad, &x) in grad.iter_mut().zip(x) {
            *grad = moments.scale * (*grad - mean_g - normalized(x) * mean_gx);
        }
    }
}
