use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::parallel::{UNITS, dims, like, plain, sum_over_units};

/// Normalizes the channels in `values` to mean 0 and variance 1, and writes them, scaled and shifted, as one row of `out`.
#[cube]
fn write_normed(
    values: &Shared<[f32]>,
    partial: &mut Shared<[f32]>,
    scales: &Tensor<f32>,
    shifts: &Tensor<f32>,
    scale: usize,
    shift: usize,
    epsilon: f32,
    out: &mut Tensor<f32>,
    row: usize,
    #[comptime] channels: usize,
) {
    let unit = UNIT_POS as usize;
    let count = f32::cast_from(channels);
    let mut sum = 0.0f32;
    for step in 0..comptime!(channels.div_ceil(UNITS)) {
        let channel = step * UNITS + unit;
        if channel < channels {
            sum += values[channel];
        }
    }
    let mean = sum_over_units(partial, sum) / count;
    let mut squares = 0.0f32;
    for step in 0..comptime!(channels.div_ceil(UNITS)) {
        let channel = step * UNITS + unit;
        if channel < channels {
            let centered = values[channel] - mean;
            squares += centered * centered;
        }
    }
    let variance = sum_over_units(partial, squares) / count;
    let deviation = (variance + epsilon).sqrt();
    for step in 0..comptime!(channels.div_ceil(UNITS)) {
        let channel = step * UNITS + unit;
        if channel < channels {
            let normed = (values[channel] - mean) / deviation;
            out[row + channel] = normed * (scales[scale + channel] + 1.0) + shifts[shift + channel];
        }
    }
}

/// A cube per token: x by tokens, y by images.
#[cube(launch)]
fn modulated_kernel(
    x: &Tensor<f32>,
    scales: &Tensor<f32>,
    shifts: &Tensor<f32>,
    out: &mut Tensor<f32>,
    scale_width: u32,
    scale: u32,
    shift_width: u32,
    shift: u32,
    epsilon: f32,
    #[comptime] channels: usize,
) {
    let image = CUBE_POS_Y as usize;
    let row = (image * CUBE_COUNT_X as usize + CUBE_POS_X as usize) * channels;
    let unit = UNIT_POS as usize;
    let mut values = Shared::<[f32]>::new_slice(channels);
    let mut partial = Shared::<[f32]>::new_slice(UNITS);
    for step in 0..comptime!(channels.div_ceil(UNITS)) {
        let channel = step * UNITS + unit;
        if channel < channels {
            values[channel] = x[row + channel];
        }
    }
    sync_cube();
    let scale = image * scale_width as usize + scale as usize;
    let shift = image * shift_width as usize + shift as usize;
    write_normed(&values, &mut partial, scales, shifts, scale, shift, epsilon, out, row, channels);
}

/// A cube per token: x by tokens, y by images.
#[cube(launch)]
fn residual_kernel(
    x: &Tensor<f32>,
    branch: &Tensor<f32>,
    bias: &Tensor<f32>,
    gates: &Tensor<f32>,
    scales: &Tensor<f32>,
    shifts: &Tensor<f32>,
    sum: &mut Tensor<f32>,
    out: &mut Tensor<f32>,
    gate_width: u32,
    gate: u32,
    scale_width: u32,
    scale: u32,
    shift_width: u32,
    shift: u32,
    epsilon: f32,
    #[comptime] channels: usize,
    #[comptime] biased: bool,
) {
    let image = CUBE_POS_Y as usize;
    let row = (image * CUBE_COUNT_X as usize + CUBE_POS_X as usize) * channels;
    let unit = UNIT_POS as usize;
    let gate = image * gate_width as usize + gate as usize;
    let mut values = Shared::<[f32]>::new_slice(channels);
    let mut partial = Shared::<[f32]>::new_slice(UNITS);
    for step in 0..comptime!(channels.div_ceil(UNITS)) {
        let channel = step * UNITS + unit;
        if channel < channels {
            let mut added = branch[row + channel];
            if biased {
                added += bias[channel];
            }
            let value = x[row + channel] + added * gates[gate + channel];
            sum[row + channel] = value;
            values[channel] = value;
        }
    }
    sync_cube();
    let scale = image * scale_width as usize + scale as usize;
    let shift = image * shift_width as usize + shift as usize;
    write_normed(&values, &mut partial, scales, shifts, scale, shift, epsilon, out, row, channels);
}

pub(super) fn modulated(tensors: [CubeTensor; 3], [scale, shift]: [usize; 2], epsilon: f32) -> CubeTensor {
    let [x, scales, shifts] = tensors.map(plain);
    let [batch, tokens, channels] = dims(&x);
    let ([_, scale_width], [_, shift_width]) = (dims(&scales), dims(&shifts));
    let out = like(&x, [batch, tokens, channels]);
    modulated_kernel::launch(
        &x.client.clone(),
        CubeCount::Static(tokens as u32, batch as u32, 1),
        CubeDim::new_1d(UNITS as u32),
        x.into_tensor_arg(),
        scales.into_tensor_arg(),
        shifts.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        scale_width as u32,
        scale as u32,
        shift_width as u32,
        shift as u32,
        epsilon,
        channels,
    );
    out
}

pub(super) fn residual(
    tensors: [CubeTensor; 6],
    [gate, scale, shift]: [usize; 3],
    epsilon: f32,
) -> (CubeTensor, CubeTensor) {
    let [x, branch, bias, gates, scales, shifts] = tensors.map(plain);
    let [batch, tokens, channels] = dims(&x);
    let ([_, gate_width], [_, scale_width], [_, shift_width]) = (dims(&gates), dims(&scales), dims(&shifts));
    let [biased] = dims(&bias);
    let [sum, out] = [(); 2].map(|()| like(&x, [batch, tokens, channels]));
    // A binding of no bytes is not allowed: anything stands for a bias that is not read.
    let bias = if biased == 0 { gates.clone() } else { bias };
    residual_kernel::launch(
        &x.client.clone(),
        CubeCount::Static(tokens as u32, batch as u32, 1),
        CubeDim::new_1d(UNITS as u32),
        x.into_tensor_arg(),
        branch.into_tensor_arg(),
        bias.into_tensor_arg(),
        gates.into_tensor_arg(),
        scales.into_tensor_arg(),
        shifts.into_tensor_arg(),
        sum.clone().into_tensor_arg(),
        out.clone().into_tensor_arg(),
        gate_width as u32,
        gate as u32,
        scale_width as u32,
        scale as u32,
        shift_width as u32,
        shift as u32,
        epsilon,
        channels,
        biased != 0,
    );
    (sum, out)
}
