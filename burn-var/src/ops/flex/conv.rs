//! Convolution as matrix products: for one band of output rows at a time, small enough for the cache, a matrix holds
//! the inputs of one pixel per column (im2col).

use rayon::prelude::*;

use super::{
    bridge::{Array, Kernel},
    columns::{Band, Geometry},
    linear::multiply_by_parts,
    matrix::{Shared, View, multiply_into, transpose},
    simd::{sums, vectorized},
    winograd,
};
use crate::ops::ConvSpec;

/// Approximate number of output pixels per band: enough columns for a product at full speed, few enough for the cache.
const BAND: usize = 512;
/// Minimum for images so small that there would be fewer bands than threads.
const MIN_BAND: usize = 64;
/// Approximate number of bands per thread.
const BANDS: usize = 4;
/// Maximum number of partial sums of a weight gradient, which limits its number of threads.
const MAX_PARTS: usize = 16;
/// Maximum number of values in all partial sums of a weight gradient.
const MAX_PART_VALUES: usize = 1 << 24;

/// Convolution of images, a weight and a bias.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Conv2d(pub(in crate::ops) ConvSpec);

impl Kernel<3> for Conv2d {
    /// The images and the weight.
    type Saved = [Array; 2];

    fn forward(&self, [x, weight, bias]: [Array; 3]) -> (Array, [Array; 2]) {
        let geometry = Geometry::new(x.dims(), weight.dims(), self.0);
        let convolve = if winograd::pays(&geometry) { winograd::convolve } else { convolve };
        let out = convolve(&geometry, x.values(), weight.values(), bias.values());
        (Array::new(out, geometry.output_shape()), [x, weight])
    }

    fn backward(&self, [x, weight]: [Array; 2], grad: Array, wanted: [bool; 3]) -> [Option<Array>; 3] {
        let geometry = Geometry::new(x.dims(), weight.dims(), self.0);
        let [want_x, want_weight, want_bias] = wanted;
        let (input_gradient, weight_gradient): (Gradient, Gradient) = match winograd::pays(&geometry) {
            true => (winograd::input_gradient, winograd::weight_gradient),
            false => (input_gradient, weight_gradient),
        };
        [
            want_x.then(|| Array::new(input_gradient(&geometry, weight.values(), grad.values()), x.shape())),
            want_weight.then(|| Array::new(weight_gradient(&geometry, x.values(), grad.values()), weight.shape())),
            want_bias.then(|| Array::new(bias_gradient(&geometry, grad.values()), [geometry.channels_out])),
        ]
    }
}

/// Computes the gradient of one input from the geometry, the other input and the gradient of the output.
type Gradient = fn(&Geometry, &[f32], &[f32]) -> Vec<f32>;

fn convolve(g: &Geometry, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
    assert_eq!(bias.len(), g.channels_out, "conv2d: length of the bias");
    let weight = View::new(weight, [g.channels_out, g.taps()], g.taps());
    let mut out: Vec<f32> = Vec::with_capacity(g.batch * g.channels_out * g.pixels_out());
    for _ in 0..g.batch {
        bias.iter().for_each(|&bias| out.extend(core::iter::repeat_n(bias, g.pixels_out())));
    }
    let shared = Shared::new(out.as_mut_ptr());
    let share = g.batch * g.pixels_out() / (BANDS * rayon::current_num_threads());
    g.bands(share.clamp(MIN_BAND, BAND)).par_iter().for_each_init(Vec::new, |columns, band| {
        let first = band.image * g.channels_out * g.pixels_out() + band.first_pixel();
        let columns = inputs_of(g, x, band, columns);
        // SAFETY: the rows of a band, in all channels of its image, lie inside the output and belong to no other band.
        unsafe { multiply_by_parts(shared.at(first), g.pixels_out(), weight, columns, true) };
    });
    out
}

/// Returns the matrix `[taps, pixels]` of the inputs of a band, a part of the image itself if the kernel is 1x1.
fn inputs_of<'a>(g: &Geometry, x: &'a [f32], band: &Band, columns: &'a mut Vec<f32>) -> View<'a> {
    let image = &x[band.image * g.channels_in * g.pixels_in()..][..g.channels_in * g.pixels_in()];
    let shape = [g.taps(), band.pixels()];
    if g.is_pointwise() {
        return View::new(&image[band.first_pixel()..], shape, g.pixels_in());
    }
    columns.resize(shape[0] * shape[1], 0.0);
    g.gather(image, band, columns);
    View::new(columns, shape, shape[1])
}

/// Returns the matrix `[channels, pixels]` of the gradients of a band of the output.
fn gradients_of<'a>(g: &Geometry, grad: &'a [f32], band: &Band) -> View<'a> {
    let first = band.image * g.channels_out * g.pixels_out() + band.first_pixel();
    View::new(&grad[first..], [g.channels_out, band.pixels()], g.pixels_out())
}

/// Computes `d loss / d x`: the transposed product, scattered to the pixels of the columns.
fn input_gradient(g: &Geometry, weight: &[f32], grad: &[f32]) -> Vec<f32> {
    let weight = View::new(weight, [g.channels_out, g.taps()], g.taps()).transposed();
    let image_len = g.channels_in * g.pixels_in();
    let bands = g.bands(BAND);
    let bands_per_image = bands.len() / g.batch.max(1);
    let mut out = vec![0.0; g.batch * image_len];
    let images = out.par_chunks_mut(image_len.max(1)).zip(bands.par_chunks(bands_per_image.max(1)));
    images.for_each_init(Vec::new, |columns, (image, bands)| {
        for band in bands {
            columns.resize(g.taps() * band.pixels(), 0.0);
            multiply_into(columns, weight, gradients_of(g, grad, band), false);
            g.scatter_add(columns, band, image);
        }
    });
    out
}

/// Computes `d loss / d weight` as `[taps, channels_out]` partial sums over runs of bands, which are added in order at
/// the end.
fn weight_gradient(g: &Geometry, x: &[f32], grad: &[f32]) -> Vec<f32> {
    let len = g.taps() * g.channels_out;
    let bands = g.bands(BAND);
    let parts = MAX_PARTS.min(MAX_PART_VALUES / len.max(1)).clamp(1, bands.len().max(1));
    let partial_sums = bands.par_chunks(bands.len().div_ceil(parts).max(1)).map(|bands| {
        let (mut columns, mut transposed, mut sum) = (Vec::new(), Vec::new(), vec![0.0; len]);
        for band in bands {
            let inputs = inputs_of(g, x, band, &mut columns);
            // With the gradient transposed, both operands are read along their rows, which is three times as fast.
            transposed.resize(g.channels_out * band.pixels(), 0.0);
            transpose(gradients_of(g, grad, band), &mut transposed);
            let transposed = View::new(&transposed, [band.pixels(), g.channels_out], g.channels_out);
            multiply_into(&mut sum, inputs, transposed, true);
        }
        sum
    });
    let partial_sums = partial_sums.collect::<Vec<_>>();
    let mut total = vec![0.0; len];
    for sum in &partial_sums {
        total.iter_mut().zip(sum).for_each(|(total, &value)| *total += value);
    }
    let mut out = vec![0.0; len];
    transpose(View::new(&total, [g.taps(), g.channels_out], g.channels_out), &mut out);
    out
}

/// Computes `d loss / d bias`: the sum over images and pixels.
fn bias_gradient(g: &Geometry, grad: &[f32]) -> Vec<f32> {
    let planes = grad.par_chunks(g.pixels_out().max(1)).map(total).collect::<Vec<_>>();
    let channel = |channel: usize| planes.iter().skip(channel).step_by(g.channels_out).sum::<f64>() as f32;
    (0..g.channels_out).map(channel).collect()
}

vectorized! {
    fn total(values: &[f32]) -> f64 {
        sums(values, values, |value, _| [value])[0]
    }
}
