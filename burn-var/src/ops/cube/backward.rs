//! Kernels of the softmax and of backward passes.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::attention::HIGHEST_SHARPNESS;
use super::parallel::{UNITS, dims, largest_over_units, like, plain, sum_over_units};

/// Logarithm of the largest sharpness, ln 100.
const HIGHEST_LOG: f32 = 4.605_170_2;

/// A cube per row of scores: x by queries, y by heads of all images.
#[cube(launch)]
fn softmax_kernel(
    scores: &Tensor<f32>,
    mask: &Tensor<f32>,
    out: &mut Tensor<f32>,
    #[comptime] keys: usize,
    #[comptime] masked: bool,
) {
    let query = CUBE_POS_X as usize;
    let row = (CUBE_POS_Y as usize * CUBE_COUNT_X as usize + query) * keys;
    let unit = UNIT_POS as usize;
    let mut values = Shared::<[f32]>::new_slice(keys);
    let mut partial = Shared::<[f32]>::new_slice(UNITS);
    let mut highest = f32::new(-1e30);
    for step in 0..comptime!(keys.div_ceil(UNITS)) {
        let key = step * UNITS + unit;
        if key < keys {
            let mut value = scores[row + key];
            if masked {
                value += mask[query * keys + key];
            }
            values[key] = value;
            if value > highest {
                highest = value;
            }
        }
    }
    let highest = largest_over_units(&mut partial, highest);
    let mut sum = 0.0f32;
    for step in 0..comptime!(keys.div_ceil(UNITS)) {
        let key = step * UNITS + unit;
        if key < keys {
            let value = (values[key] - highest).exp();
            values[key] = value;
            sum += value;
        }
    }
    let sum = sum_over_units(&mut partial, sum);
    for step in 0..comptime!(keys.div_ceil(UNITS)) {
        let key = step * UNITS + unit;
        if key < keys {
            out[row + key] = values[key] / sum;
        }
    }
}

/// A cube per row of scores.
#[cube(launch)]
fn softmax_backward_kernel(shares: &Tensor<f32>, grad: &Tensor<f32>, out: &mut Tensor<f32>, #[comptime] keys: usize) {
    let row = (CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize) * keys;
    let unit = UNIT_POS as usize;
    let mut partial = Shared::<[f32]>::new_slice(UNITS);
    let mut sum = 0.0f32;
    for step in 0..comptime!(keys.div_ceil(UNITS)) {
        let key = step * UNITS + unit;
        if key < keys {
            sum += shares[row + key] * grad[row + key];
        }
    }
    let sum = sum_over_units(&mut partial, sum);
    for step in 0..comptime!(keys.div_ceil(UNITS)) {
        let key = step * UNITS + unit;
        if key < keys {
            out[row + key] = shares[row + key] * (grad[row + key] - sum);
        }
    }
}

/// A unit per image and channel.
#[cube(launch)]
fn gate_backward_kernel(
    grad: &Tensor<f32>,
    branch: &Tensor<f32>,
    bias: &Tensor<f32>,
    gates: &Tensor<f32>,
    out: &mut Tensor<f32>,
    gate_grad: &mut Tensor<f32>,
    sums: &mut Tensor<f32>,
    tokens: u32,
    gate_width: u32,
    gate: u32,
    #[comptime] channels: usize,
) {
    let (channel, image) = (CUBE_POS_X as usize * UNITS + UNIT_POS as usize, CUBE_POS_Y as usize);
    if channel < channels {
        let tokens = tokens as usize;
        let gate = gates[image * gate_width as usize + gate as usize + channel];
        let bias = bias[channel];
        let mut product = 0.0f32;
        let mut sum = 0.0f32;
        for token in 0..tokens {
            let at = (image * tokens + token) * channels + channel;
            let value = grad[at];
            product += value * (branch[at] + bias);
            let passed = value * gate;
            sum += passed;
            out[at] = passed;
        }
        gate_grad[image * channels + channel] = product;
        sums[image * channels + channel] = sum;
    }
}

/// A cube per token: x by tokens, y by images.
#[cube(launch)]
fn norm_backward_kernel(
    x: &Tensor<f32>,
    grad: &Tensor<f32>,
    added: &Tensor<f32>,
    scales: &Tensor<f32>,
    out: &mut Tensor<f32>,
    moments: &mut Tensor<f32>,
    scale_width: u32,
    scale: u32,
    epsilon: f32,
    #[comptime] channels: usize,
) {
    let image = CUBE_POS_Y as usize;
    let token = image * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    let row = token * channels;
    let unit = UNIT_POS as usize;
    let scale = image * scale_width as usize + scale as usize;
    let count = f32::cast_from(channels);
    let mut partial = Shared::<[f32]>::new_slice(UNITS);
    let mut sum = 0.0f32;
    for step in 0..comptime!(channels.div_ceil(UNITS)) {
        let channel = step * UNITS + unit;
        if channel < channels {
            sum += x[row + channel];
        }
    }
    let mean = sum_over_units(&mut partial, sum) / count;
    let mut squares = 0.0f32;
    for step in 0..comptime!(channels.div_ceil(UNITS)) {
        let channel = step * UNITS + unit;
        if channel < channels {
            let centered = x[row + channel] - mean;
            squares += centered * centered;
        }
    }
    let variance = sum_over_units(&mut partial, squares) / count;
    let deviation = (variance + epsilon).sqrt();
    let mut sum = 0.0f32;
    let mut along = 0.0f32;
    for step in 0..comptime!(channels.div_ceil(UNITS)) {
        let channel = step * UNITS + unit;
        if channel < channels {
            let value = grad[row + channel] * (scales[scale + channel] + 1.0);
            sum += value;
            along += value * (x[row + channel] - mean);
        }
    }
    let sum = sum_over_units(&mut partial, sum) / count;
    let along = sum_over_units(&mut partial, along) / count / deviation / deviation;
    for step in 0..comptime!(channels.div_ceil(UNITS)) {
        let channel = step * UNITS + unit;
        if channel < channels {
            let value = grad[row + channel] * (scales[scale + channel] + 1.0);
            let centered = x[row + channel] - mean;
            out[row + channel] = added[row + channel] + (value - sum - centered * along) / deviation;
        }
    }
    if unit == 0 {
        moments[token * 2] = mean;
        moments[token * 2 + 1] = deviation;
    }
}

/// A unit per image and channel.
#[cube(launch)]
fn norm_columns_kernel(
    x: &Tensor<f32>,
    grad: &Tensor<f32>,
    moments: &Tensor<f32>,
    scale_grad: &mut Tensor<f32>,
    shift_grad: &mut Tensor<f32>,
    tokens: u32,
    #[comptime] channels: usize,
) {
    let (channel, image) = (CUBE_POS_X as usize * UNITS + UNIT_POS as usize, CUBE_POS_Y as usize);
    if channel < channels {
        let tokens = tokens as usize;
        let mut along = 0.0f32;
        let mut sum = 0.0f32;
        for token in 0..tokens {
            let row = image * tokens + token;
            let value = grad[row * channels + channel];
            along += value * (x[row * channels + channel] - moments[row * 2]) / moments[row * 2 + 1];
            sum += value;
        }
        scale_grad[image * channels + channel] = along;
        shift_grad[image * channels + channel] = sum;
    }
}

/// A unit per token, part and head: x by those of a token, y by tokens, z by images.
#[cube(launch)]
fn split_backward_kernel(
    joint: &Tensor<f32>,
    q_bias: &Tensor<f32>,
    sharpness: &Tensor<f32>,
    query: &Tensor<f32>,
    key: &Tensor<f32>,
    value: &Tensor<f32>,
    out: &mut Tensor<f32>,
    log_grad: &mut Tensor<f32>,
    #[comptime] heads: usize,
    #[comptime] width: usize,
) {
    let at = CUBE_POS_X as usize * UNITS + UNIT_POS as usize;
    let (token, image, tokens) = (CUBE_POS_Y as usize, CUBE_POS_Z as usize, CUBE_COUNT_Y as usize);
    let channels = comptime!(heads * width);
    if at < comptime!(3 * heads) {
        let (part, head) = (at / heads, at % heads);
        let row = image * tokens + token;
        let to = row * comptime!(3 * heads * width) + part * channels + head * width;
        let from = ((image * heads + head) * tokens + token) * width;
        if part == 2 {
            for i in 0..width {
                out[to + i] = value[from + i];
            }
        } else {
            let mut squares = 0.0f32;
            let mut along = 0.0f32;
            for i in 0..width {
                let mut input = joint[to + i];
                let mut grad = key[from + i];
                if part == 0 {
                    input += q_bias[head * width + i];
                    grad = query[from + i];
                }
                squares += input * input;
                along += input * grad;
            }
            let mut length = squares.sqrt();
            if length < 1e-12 {
                length = f32::new(1e-12);
            }
            let along = along / length;
            let mut factor = 1.0f32;
            if part == 0 {
                let log = sharpness[head];
                let mut slope = 1.0f32;
                factor = log.exp();
                if log > HIGHEST_LOG {
                    factor = f32::new(HIGHEST_SHARPNESS as f32);
                    slope = 0.0f32;
                }
                log_grad[row * heads + head] = along * factor * slope;
            }
            for i in 0..width {
                let mut input = joint[to + i];
                let mut grad = key[from + i];
                if part == 0 {
                    input += q_bias[head * width + i];
                    grad = query[from + i];
                }
                out[to + i] = (grad - input / length * along) / length * factor;
            }
        }
    }
}

pub(super) fn softmax(scores: CubeTensor, mask: CubeTensor) -> CubeTensor {
    let [scores, mask] = [scores, mask].map(plain);
    let [batch, heads, queries, keys] = dims(&scores);
    let masked = mask.meta.shape().num_elements() != 0;
    // A binding of no bytes is not allowed: anything stands for a mask that is not read.
    let mask = if masked { mask } else { scores.clone() };
    let out = like(&scores, [batch, heads, queries, keys]);
    softmax_kernel::launch(
        &scores.client.clone(),
        CubeCount::Static(queries as u32, (batch * heads) as u32, 1),
        CubeDim::new_1d(UNITS as u32),
        scores.into_tensor_arg(),
        mask.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        keys,
        masked,
    );
    out
}

pub(super) fn softmax_backward(shares: CubeTensor, grad: CubeTensor) -> CubeTensor {
    let [shares, grad] = [shares, grad].map(plain);
    let [batch, heads, queries, keys] = dims(&shares);
    let out = like(&shares, [batch, heads, queries, keys]);
    softmax_backward_kernel::launch(
        &shares.client.clone(),
        CubeCount::Static(queries as u32, (batch * heads) as u32, 1),
        CubeDim::new_1d(UNITS as u32),
        shares.into_tensor_arg(),
        grad.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        keys,
    );
    out
}

pub(super) fn gate_backward(tensors: [CubeTensor; 4], gate: usize) -> (CubeTensor, CubeTensor, CubeTensor) {
    let [grad, branch, bias, gates] = tensors.map(plain);
    let ([batch, tokens, channels], [_, gate_width]) = (dims(&grad), dims(&gates));
    let out = like(&grad, [batch, tokens, channels]);
    let [gate_grad, sums] = [(); 2].map(|()| like(&grad, [batch, channels]));
    gate_backward_kernel::launch(
        &grad.client.clone(),
        CubeCount::Static(channels.div_ceil(UNITS) as u32, batch as u32, 1),
        CubeDim::new_1d(UNITS as u32),
        grad.into_tensor_arg(),
        branch.into_tensor_arg(),
        bias.into_tensor_arg(),
        gates.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        gate_grad.clone().into_tensor_arg(),
        sums.clone().into_tensor_arg(),
        tokens as u32,
        gate_width as u32,
        gate as u32,
        channels,
    );
    (out, gate_grad, sums)
}

pub(super) fn norm_backward(tensors: [CubeTensor; 4], scale: usize, epsilon: f32) -> (CubeTensor, CubeTensor) {
    let [x, grad, added, scales] = tensors.map(plain);
    let ([batch, tokens, channels], [_, scale_width]) = (dims(&x), dims(&scales));
    let out = like(&x, [batch, tokens, channels]);
    let moments = like(&x, [batch * tokens, 2]);
    norm_backward_kernel::launch(
        &x.client.clone(),
        CubeCount::Static(tokens as u32, batch as u32, 1),
        CubeDim::new_1d(UNITS as u32),
        x.into_tensor_arg(),
        grad.into_tensor_arg(),
        added.into_tensor_arg(),
        scales.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        moments.clone().into_tensor_arg(),
        scale_width as u32,
        scale as u32,
        epsilon,
        channels,
    );
    (out, moments)
}

pub(super) fn norm_columns(x: CubeTensor, grad: CubeTensor, moments: CubeTensor) -> (CubeTensor, CubeTensor) {
    let [x, grad, moments] = [x, grad, moments].map(plain);
    let [batch, tokens, channels] = dims(&x);
    let [scale_grad, shift_grad] = [(); 2].map(|()| like(&x, [batch, channels]));
    norm_columns_kernel::launch(
        &x.client.clone(),
        CubeCount::Static(channels.div_ceil(UNITS) as u32, batch as u32, 1),
        CubeDim::new_1d(UNITS as u32),
        x.into_tensor_arg(),
        grad.into_tensor_arg(),
        moments.into_tensor_arg(),
        scale_grad.clone().into_tensor_arg(),
        shift_grad.clone().into_tensor_arg(),
        tokens as u32,
        channels,
    );
    (scale_grad, shift_grad)
}

pub(super) fn split_backward(tensors: [CubeTensor; 6]) -> (CubeTensor, CubeTensor) {
    let [joint, q_bias, sharpness, query, key, value] = tensors.map(plain);
    let [batch, heads, tokens, width] = dims(&query);
    let out = like(&joint, [batch * tokens, 3 * heads * width]);
    let log_grad = like(&joint, [batch * tokens, heads]);
    split_backward_kernel::launch(
        &joint.client.clone(),
        CubeCount::Static((3 * heads).div_ceil(UNITS) as u32, tokens as u32, batch as u32),
        CubeDim::new_1d(UNITS as u32),
        joint.into_tensor_arg(),
        q_bias.into_tensor_arg(),
        sharpness.into_tensor_arg(),
        query.into_tensor_arg(),
        key.into_tensor_arg(),
        value.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        log_grad.clone().into_tensor_arg(),
        heads,
        width,
    );
    (out, log_grad)
}
