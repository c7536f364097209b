//! Kernels for maps and logits, a unit per number of the result.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::parallel::{UNITS, dims, like, plain};

/// Returns the grid for a unit per number. Each axis of a grid has at most 65,535 cubes on WebGPU.
fn grid(numbers: usize) -> CubeCount {
    let cubes = numbers.div_ceil(UNITS);
    let x = cubes.min(32_768);
    CubeCount::Static(x as u32, cubes.div_ceil(x.max(1)) as u32, 1)
}

#[cube(launch)]
fn resize_kernel(
    x: &Tensor<f32>,
    rows: &Tensor<f32>,
    columns: &Tensor<f32>,
    out: &mut Tensor<f32>,
    channels: u32,
    height: u32,
    width: u32,
    numbers: u32,
    #[comptime] from_height: usize,
    #[comptime] from_width: usize,
) {
    let at = ABSOLUTE_POS;
    if at < numbers as usize {
        let (width, height, channels) = (width as usize, height as usize, channels as usize);
        let (column, row) = (at % width, at / width % height);
        let map = at / width / height;
        let start = map / channels * x.stride(0) + map % channels * x.stride(1);
        let mut sum = 0.0f32;
        for i in 0..from_height {
            let weight = rows[row * from_height + i];
            if weight != 0.0 {
                let mut along = 0.0f32;
                for j in 0..from_width {
                    along += x[start + i * x.stride(2) + j * x.stride(3)] * columns[column * from_width + j];
                }
                sum += weight * along;
            }
        }
        out[at] = sum;
    }
}

#[cube(launch)]
fn add_mixed_kernel(
    canvas: &Tensor<f32>,
    map: &Tensor<f32>,
    weight: &Tensor<f32>,
    bias: &Tensor<f32>,
    out: &mut Tensor<f32>,
    ratio: f32,
    height: u32,
    width: u32,
    numbers: u32,
    #[comptime] channels: usize,
    #[comptime] kernel: usize,
) {
    let at = ABSOLUTE_POS;
    if at < numbers as usize {
        let (width, height) = (width as usize, height as usize);
        let area = width * height;
        let (column, row, channel) = (at % width, at / width % height, at / area % channels);
        let image = at / area / channels * channels * area;
        let half = comptime!(kernel / 2);
        let mut sum = 0.0f32;
        for input in 0..channels {
            for i in 0..kernel {
                for j in 0..kernel {
                    // Shifted, so that no number is below 0.
                    let (y, x) = (row + i, column + j);
                    if y >= half && y < height + half && x >= half && x < width + half {
                        let value = map[image + input * area + (y - half) * width + x - half];
                        sum += value * weight[((channel * channels + input) * kernel + i) * kernel + j];
                    }
                }
            }
        }
        out[at] = canvas[at] + (map[at] * (1.0 - ratio) + (sum + bias[channel]) * ratio);
    }
}

#[cube(launch)]
fn extrapolate_kernel(toward: &Tensor<f32>, away: &Tensor<f32>, out: &mut Tensor<f32>, strength: f32, numbers: u32) {
    let at = ABSOLUTE_POS;
    if at < numbers as usize {
        out[at] = toward[at] * (1.0 + strength) - away[at] * strength;
    }
}

/// Computes the hyperbolic tangent in GELU's tanh form.
#[cube]
fn gelu_curve(x: f32) -> f32 {
    // The root of 2 / pi.
    let inner = (x + 0.044715 * x * x * x) * 0.797_884_6;
    inner.tanh()
}

#[cube(launch)]
fn gelu_kernel(x: &Tensor<f32>, bias: &Tensor<f32>, out: &mut Tensor<f32>, numbers: u32, #[comptime] channels: usize) {
    let at = ABSOLUTE_POS;
    if at < numbers as usize {
        let value = x[at] + bias[at % channels];
        out[at] = value * 0.5 * (gelu_curve(value) + 1.0);
    }
}

#[cube(launch)]
fn gelu_backward_kernel(
    x: &Tensor<f32>,
    bias: &Tensor<f32>,
    grad: &Tensor<f32>,
    out: &mut Tensor<f32>,
    active: &mut Tensor<f32>,
    numbers: u32,
    #[comptime] channels: usize,
) {
    let at = ABSOLUTE_POS;
    if at < numbers as usize {
        let value = x[at] + bias[at % channels];
        let curve = gelu_curve(value);
        let slope = (value * value * 0.134_145 + 1.0) * 0.797_884_6;
        active[at] = value * 0.5 * (curve + 1.0);
        out[at] = grad[at] * ((curve + 1.0) * 0.5 + value * 0.5 * (1.0 - curve * curve) * slope);
    }
}

#[cube(launch)]
fn round_kernel(x: &Tensor<f32>, out: &mut Tensor<f32>, numbers: u32, #[comptime] dropped: u32) {
    let at = ABSOLUTE_POS;
    if at < numbers as usize {
        let bits = u32::reinterpret(x[at]);
        let mut rounded = bits;
        // Infinities and what is no number stay.
        if bits & 0x7f80_0000u32 != 0x7f80_0000u32 {
            let half = comptime!((1u32 << (dropped - 1)) - 1);
            let kept = comptime!(!((1u32 << dropped) - 1));
            rounded = (bits + half + ((bits >> dropped) & 1u32)) & kept;
        }
        out[at] = f32::reinterpret(rounded);
    }
}

pub(super) fn gelu(x: CubeTensor, bias: CubeTensor) -> CubeTensor {
    let [x, bias] = [x, bias].map(plain);
    let (shape, [channels]) = (x.meta.shape().clone(), dims(&bias));
    let numbers = shape.num_elements();
    let out = like(&x, shape);
    gelu_kernel::launch(
        &x.client.clone(),
        grid(numbers),
        CubeDim::new_1d(UNITS as u32),
        x.into_tensor_arg(),
        bias.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        numbers as u32,
        channels,
    );
    out
}

pub(super) fn gelu_backward(x: CubeTensor, bias: CubeTensor, grad: CubeTensor) -> (CubeTensor, CubeTensor) {
    let [x, bias, grad] = [x, bias, grad].map(plain);
    let (shape, [channels]) = (x.meta.shape().clone(), dims(&bias));
    let numbers = shape.num_elements();
    let [out, active] = [(); 2].map(|()| like(&x, shape.clone()));
    gelu_backward_kernel::launch(
        &x.client.clone(),
        grid(numbers),
        CubeDim::new_1d(UNITS as u32),
        x.into_tensor_arg(),
        bias.into_tensor_arg(),
        grad.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        active.clone().into_tensor_arg(),
        numbers as u32,
        channels,
    );
    (out, active)
}

pub(super) fn resize(x: CubeTensor, rows: CubeTensor, columns: CubeTensor) -> CubeTensor {
    let [rows, columns] = [rows, columns].map(plain);
    let ([batch, channels, from_height, from_width], [height, _], [width, _]) = (dims(&x), dims(&rows), dims(&columns));
    let numbers = batch * channels * height * width;
    let out = like(&x, [batch, channels, height, width]);
    resize_kernel::launch(
        &x.client.clone(),
        grid(numbers),
        CubeDim::new_1d(UNITS as u32),
        x.into_tensor_arg(),
        rows.into_tensor_arg(),
        columns.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        channels as u32,
        height as u32,
        width as u32,
        numbers as u32,
        from_height,
        from_width,
    );
    out
}

pub(super) fn add_mixed(tensors: [CubeTensor; 4], ratio: f32) -> CubeTensor {
    let [canvas, map, weight, bias] = tensors.map(plain);
    let ([batch, channels, height, width], [_, _, kernel, _]) = (dims(&map), dims(&weight));
    let numbers = batch * channels * height * width;
    let out = like(&map, [batch, channels, height, width]);
    add_mixed_kernel::launch(
        &map.client.clone(),
        grid(numbers),
        CubeDim::new_1d(UNITS as u32),
        canvas.into_tensor_arg(),
        map.into_tensor_arg(),
        weight.into_tensor_arg(),
        bias.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        ratio,
        height as u32,
        width as u32,
        numbers as u32,
        channels,
        kernel,
    );
    out
}

pub(super) fn extrapolate(toward: CubeTensor, away: CubeTensor, strength: f32) -> CubeTensor {
    let [toward, away] = [toward, away].map(plain);
    let shape = toward.meta.shape().clone();
    let numbers = shape.num_elements();
    let out = like(&toward, shape);
    extrapolate_kernel::launch(
        &toward.client.clone(),
        grid(numbers),
        CubeDim::new_1d(UNITS as u32),
        toward.into_tensor_arg(),
        away.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        strength,
        numbers as u32,
    );
    out
}

/// Rounds to the nearest number without the last `dropped` bits.
pub(super) fn round(x: CubeTensor, dropped: usize) -> CubeTensor {
    let x = plain(x);
    let shape = x.meta.shape().clone();
    let numbers = shape.num_elements();
    let out = like(&x, shape);
    round_kernel::launch(
        &x.client.clone(),
        grid(numbers),
        CubeDim::new_1d(UNITS as u32),
        x.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        numbers as u32,
        dropped as u32,
    );
    out
}
