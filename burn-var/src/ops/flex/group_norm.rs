use super::{
    bridge::{Array, Kernel},
    moments::{Moments, moments},
    pointwise::silu_slope,
    simd::{sigmoid, sums, vectorized},
};

/// Group norm of images, a weight and a bias, optionally followed by SiLU.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct GroupNorm {
    pub(in crate::ops) groups: usize,
    pub(in crate::ops) eps: f64,
    pub(in crate::ops) silu: bool,
}

/// Values that the backward pass of a group norm needs.
#[derive(Clone, Debug)]
pub(in crate::ops) struct SavedGroupNorm {
    x: Array,
    weight: Array,
    bias: Array,
    /// Moments of every image and group.
    moments: Vec<Moments>,
}

impl GroupNorm {
    /// Returns the number of pixels per channel and of channels per group.
    fn sizes(&self, x: &Array) -> [usize; 2] {
        let [_, channels, height, width] = x.dims();
        assert!(
            self.groups > 0 && channels.is_multiple_of(self.groups),
            "group_norm: {channels} channels do not divide into {} groups",
            self.groups
        );
        [height * width, channels / self.groups]
    }

    /// Returns weight and bias of a group's channels, given its index among the groups of all images.
    fn affine<'a>(&self, index: usize, weight: &'a Array, bias: &'a Array) -> impl Iterator<Item = (f32, f32)> + 'a {
        let channels = weight.values().len() / self.groups;
        let first = index % self.groups * channels;
        let range = first..first + channels;
        weight.values()[range.clone()].iter().copied().zip(bias.values()[range].iter().copied())
    }
}

impl Kernel<3> for GroupNorm {
    type Saved = SavedGroupNorm;

    fn forward(&self, [x, weight, bias]: [Array; 3]) -> (Array, SavedGroupNorm) {
        let [pixels, channels] = self.sizes(&x);
        for affine in [&weight, &bias] {
            assert_eq!(affine.values().len(), channels * self.groups, "group_norm: length of the weight or bias");
        }
        let (out, moments) = x.clone().update(pixels * channels, |index, values| {
            let moments = moments(values, self.eps);
            let apply = if self.silu { affine_silu } else { affine };
            for (values, (weight, bias)) in values.chunks_mut(pixels).zip(self.affine(index, &weight, &bias)) {
                apply(moments.mean, moments.scale * weight, bias, values);
            }
            moments
        });
        (out, SavedGroupNorm { x, weight, bias, moments })
    }

    fn backward(&self, saved: SavedGroupNorm, grad: Array, wanted: [bool; 3]) -> [Option<Array>; 3] {
        let SavedGroupNorm { x, weight, bias, moments } = saved;
        let [pixels, channels] = self.sizes(&x);
        let len = pixels * channels;
        // Computes the gradient of `x` and, for every image and channel, the sums of `g` and of `g x^`, with `g` the
        // gradient before the activation and `x^` the normalized input.
        let (out, channel_sums) = grad.update(len, |index, grads| {
            let x = &x.values()[index * len..][..len];
            let moments = moments[index];
            let mut group_sums = [0.0; 2];
            let mut channel_sums = Vec::with_capacity(channels);
            let planes = || x.chunks(pixels).zip(self.affine(index, &weight, &bias));
            for (grad, (x, (weight, bias))) in grads.chunks_mut(pixels).zip(planes()) {
                if self.silu {
                    affine_silu_backward(x, moments.mean, moments.scale * weight, bias, grad);
                }
                let sums = gradient_sums(x, grad, moments);
                for (group_sum, sum) in group_sums.iter_mut().zip(sums) {
                    *group_sum += f64::from(weight) * sum;
                }
                channel_sums.push(sums);
            }
            let means = group_sums.map(|sum| (sum / len as f64) as f32);
            for (grad, (x, (weight, _))) in grads.chunks_mut(pixels).zip(planes()) {
                project(x, weight, moments, means, grad);
            }
            channel_sums
        });
        let per_image = channel_sums.concat();
        let total = |which: usize| {
            let channels = channels * self.groups;
            let sum = |channel| per_image.iter().skip(channel).step_by(channels).map(|sums| sums[which]).sum::<f64>();
            Array::new((0..channels).map(|channel| sum(channel) as f32).collect(), [channels])
        };
        let [want_x, want_weight, want_bias] = wanted;
        [want_x.then_some(out), want_weight.then(|| total(1)), want_bias.then(|| total(0))]
    }
}

vectorized! {
    fn affine(mean: f32, slope: f32, bias: f32, values: &mut [f32]) {
        for value in values {
            *value = (*value - mean) * slope + bias;
        }
    }

    fn affine_silu(mean: f32, slope: f32, bias: f32, values: &mut [f32]) {
        for value in values {
            let y = (*value - mean) * slope + bias;
            *value = y * sigmoid::<FMA>(y);
        }
    }

    fn affine_silu_backward(x: &[f32], mean: f32, slope: f32, bias: f32, grad: &mut [f32]) {
        for (grad, &x) in grad.iter_mut().zip(x) {
            *grad *= silu_slope::<FMA>((x - mean) * slope + bias);
        }
    }

    fn gradient_sums(x: &[f32], grad: &[f32], moments: Moments) -> [f64; 2] {
        let Moments { mean, scale } = moments;
        sums(x, grad, |x, grad| [grad, grad * ((x - mean) * scale)])
    }

    /// Turns the gradient of a channel into that of `x`, by subtracting the components along mean and variance.
    fn project(x: &[f32], weight: f32, moments: Moments, means: [f32; 2], grad: &mut [f32]) {
        let Moments { mean, scale } = moments;
        let [mean_g, mean_gx] = means;
        for (grad, &x) in grad.iter_mut().zip(x) {
            *grad = scale * (weight * *grad - mean_g - (x - mean) * scale * mean_gx);
        }
    }
}
