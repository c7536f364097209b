use rayon::prelude::*;

use super::{
    bridge::{Array, Kernel},
    moments::{Moments, moments},
    pointwise::silu_slope,
    simd::{sigmoid, sums, vectorised},
};

/// Group norm of images, a weight and a bias, with SiLU after it or not.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct GroupNorm {
    pub(in crate::ops) groups: usize,
    pub(in crate::ops) eps: f64,
    pub(in crate::ops) silu: bool,
}

/// What the backward pass of a group norm needs.
#[derive(Clone, Debug)]
pub(in crate::ops) struct SavedGroupNorm {
    x: Array,
    weight: Array,
    bias: Array,
    /// Of every image and group.
    moments: Vec<Moments>,
}

impl GroupNorm {
    /// Pixels of a channel, and channels of a group.
    fn sizes(&self, x: &Array) -> [usize; 2] {
        let [_, channels, height, width] = x.dims();
        assert!(
            self.groups > 0 && channels.is_multiple_of(self.groups),
            "group_norm: {channels} channels do not divide into {} groups",
            self.groups
        );
        [height * width, channels / self.groups]
    }
}

impl Kernel<3> for GroupNorm {
    type Saved = SavedGroupNorm;

    fn forward(&self, [x, weight, bias]: [Array; 3]) -> (Array, SavedGroupNorm) {
        let [pixels, channels] = self.sizes(&x);
        for affine in [&weight, &bias] {
            assert_eq!(affine.values().len(), channels * self.groups, "group_norm: length of the weight or bias");
        }
        let len = (pixels * channels).max(1);
        let mut out = vec![0.0; x.values().len()];
        let groups = out.par_chunks_mut(len).zip(x.values().par_chunks(len)).enumerate();
        let moments = groups
            .map(|(index, (out, x))| {
                let first = index % self.groups * channels;
                let moments = moments(x, self.eps);
                let channel_affine = weight.values()[first..].iter().zip(&bias.values()[first..]);
                for ((out, x), (&weight, &bias)) in out.chunks_mut(pixels).zip(x.chunks(pixels)).zip(channel_affine) {
                    let slope = moments.scale * weight;
                    let apply = if self.silu { affine_silu } else { affine };
                    apply(x, moments.mean, slope, bias, out);
                }
                moments
            })
            .collect();
        (Array::new(out, x.shape()), SavedGroupNorm { x, weight, bias, moments })
    }

    fn backward(&self, saved: SavedGroupNorm, grad: Array, wanted: [bool; 3]) -> [Option<Array>; 3] {
        let SavedGroupNorm { x, weight, bias, moments } = saved;
        let [pixels, channels] = self.sizes(&x);
        let len = (pixels * channels).max(1);
        let mut out = vec![0.0; x.values().len()];
        let inputs = x.values().par_chunks(len).zip(grad.values().par_chunks(len)).zip(&moments);
        // For every image and channel the sums of `g` and of `g x^`, with g the gradient in front of the activation and
        // x^ the standardised input.
        let channel_sums = out
            .par_chunks_mut(len)
            .zip(inputs)
            .enumerate()
            .map(|(index, (out, ((x, grad), moments)))| {
                let first = index % self.groups * channels;
                let channel_affine = weight.values()[first..].iter().zip(&bias.values()[first..]);
                let planes = out.chunks_mut(pixels).zip(x.chunks(pixels)).zip(grad.chunks(pixels));
                let mut group_sums = [0.0; 2];
                let mut channel_sums = Vec::with_capacity(channels);
                for (((out, x), grad), (&weight, &bias)) in planes.zip(channel_affine) {
                    if self.silu {
                        affine_silu_backward(x, grad, moments.mean, moments.scale * weight, bias, out);
                    } else {
                        out.copy_from_slice(grad);
                    }
                    let sums = gradient_sums(x, out, *moments);
                    for (group_sum, sum) in group_sums.iter_mut().zip(sums) {
                        *group_sum += f64::from(weight) * sum;
                    }
                    channel_sums.push(sums);
                }
                let [mean_g, mean_gx] = group_sums.map(|sum| (sum / len as f64) as f32);
                let planes = out.chunks_mut(pixels).zip(x.chunks(pixels)).zip(&weight.values()[first..]);
                for ((out, x), &weight) in planes {
                    project(x, weight, *moments, [mean_g, mean_gx], out);
                }
                channel_sums
            })
            .collect::<Vec<_>>();
        let per_image = channel_sums.concat();
        let total = |which: usize| {
            let channels = channels * self.groups;
            let sum = |channel| per_image.iter().skip(channel).step_by(channels).map(|sums| sums[which]).sum::<f64>();
            Array::new((0..channels).map(|channel| sum(channel) as f32).collect(), [channels])
        };
        let [want_x, want_weight, want_bias] = wanted;
        [want_x.then(|| Array::new(out, x.shape())), want_weight.then(|| total(1)), want_bias.then(|| total(0))]
    }
}

vectorised! {
    fn affine(x: &[f32], mean: f32, slope: f32, bias: f32, out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = (x - mean) * slope + bias;
        }
    }

    fn affine_silu(x: &[f32], mean: f32, slope: f32, bias: f32, out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            let y = (x - mean) * slope + bias;
            *out = y * sigmoid(y);
        }
    }

    fn affine_silu_backward(x: &[f32], grad: &[f32], mean: f32, slope: f32, bias: f32, out: &mut [f32]) {
        for ((out, &x), &grad) in out.iter_mut().zip(x).zip(grad) {
            *out = grad * silu_slope((x - mean) * slope + bias);
        }
    }

    fn gradient_sums(x: &[f32], grad: &[f32], moments: Moments) -> [f64; 2] {
        let Moments { mean, scale } = moments;
        sums(x, grad, |x, grad| [grad, grad * ((x - mean) * scale)])
    }

    /// Turns the gradient of a channel in `out` into that of `x`: takes out what mean and variance took out of `x`.
    fn project(x: &[f32], weight: f32, moments: Moments, means: [f32; 2], out: &mut [f32]) {
        let Moments { mean, scale } = moments;
        let [mean_g, mean_gx] = means;
        for (out, &x) in out.iter_mut().zip(x) {
            *out = scale * (weight * *out - mean_g - (x - mean) * scale * mean_gx);
        }
    }
}
