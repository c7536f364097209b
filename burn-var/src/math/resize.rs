//! Resize of feature maps, as PyTorch's `interpolate` computes it (`align_corners` false, no antialiasing).
//!
//! Each mode is linear and separable, so it is two products with small constant matrices: exact gradients on every
//! device, and the same result on every backend. Checked against golden case `interp`.

use burn::tensor::{Device, Tensor};

use super::Constants;
use crate::MapSize;
use crate::ops::{self, exact_matmul, transpose};

/// Interpolation mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resize {
    /// Mean over the window `floor(i * in / out) .. ceil((i + 1) * in / out)`: adaptive average pooling.
    Area,
    /// Cubic convolution with A = -0.75; the border value repeats beyond the border.
    Bicubic,
    /// Linear between the two neighbors; coordinates before the first center are clamped to it.
    Bilinear,
    /// Nearest: the value at `floor(i * in / out)`.
    Nearest,
}

impl Resize {
    /// Returns the `[to, from]` matrix that resizes one axis, row-major.
    pub fn matrix(self, from: usize, to: usize) -> Vec<f32> {
        let mut matrix = vec![0.0f64; to * from];
        // In single precision, as PyTorch computes it: over a long axis the rounding moves weights by 1e-5.
        let step = from as f32 / to as f32;
        let source = |i: usize| f64::from(step * (i as f32 + 0.5) - 0.5);
        for (i, row) in matrix.chunks_exact_mut(from).enumerate() {
            let mut add = |index: isize, weight: f64| row[index.clamp(0, from as isize - 1) as usize] += weight;
            match self {
                Self::Area => {
                    let (start, end) = (i * from / to, ((i + 1) * from).div_ceil(to));
                    (start..end).for_each(|j| add(j as isize, 1.0 / (end - start) as f64));
                }
                Self::Bicubic => {
                    let x = source(i);
                    let base = x.floor();
                    (-1..3).for_each(|tap| add(base as isize + tap, cubic(x - base - tap as f64)));
                }
                Self::Bilinear => {
                    let x = source(i).max(0.0);
                    let base = x.floor();
                    add(base as isize, 1.0 - (x - base));
                    add(base as isize + 1, x - base);
                }
                Self::Nearest => add((i * from / to) as isize, 1.0),
            }
        }
        matrix.into_iter().map(|weight| weight as f32).collect()
    }

    /// Resizes the last two axes of `x`, `[batch, channels, height, width]`, to `size`.
    pub fn apply(self, x: Tensor<4>, size: MapSize) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        if (height, width) == (size.height, size.width) {
            return x;
        }
        let device = x.device();
        let matrices = || [self.constant(height, size.height, &device), self.constant(width, size.width, &device)];
        if let Some(resized) = ops::resize(&x, matrices) {
            return resized;
        }
        let x = if width == size.width {
            x
        } else {
            let columns = transpose(self.constant(width, size.width, &device));
            let rows = x.reshape([batch * channels * height, width]); // [batch * channels * height, width]
            exact_matmul(rows, columns).reshape([batch, channels, height, size.width])
        };
        if height == size.height {
            return x;
        }
        let rows = self.constant(height, size.height, &device).unsqueeze::<3>().expand([
            (batch * channels) as i64,
            size.height as i64,
            height as i64,
        ]);
        let x = x.reshape([batch * channels, height, size.width]);
        exact_matmul(rows, x).reshape([batch, channels, size.height, size.width])
    }

    /// Resizes the last axis of `x`, `[batch, channels, length]`.
    pub fn apply_1d(self, x: Tensor<3>, length: usize) -> Tensor<3> {
        let [batch, channels, from] = x.dims();
        let matrix = transpose(self.constant(from, length, &x.device()));
        exact_matmul(x.reshape([batch * channels, from]), matrix).reshape([batch, channels, length])
    }

    fn constant(self, from: usize, to: usize, device: &Device) -> Tensor<2> {
        static MATRICES: Constants<(Resize, usize, usize), 2> = Constants::new();
        MATRICES.get((self, from, to), device, || (self.matrix(from, to), [to, from]))
    }
}

/// Computes the cubic convolution kernel at distance `x`, A = -0.75 as in PyTorch (Catmull-Rom would be -0.5).
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.75;
    let x = x.abs();
    if x <= 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_sums_to_one_and_equal_sizes_give_the_identity() {
        for resize in [Resize::Area, Resize::Bicubic, Resize::Bilinear, Resize::Nearest] {
            for (from, to) in [(1, 5), (5, 1), (3, 7), (7, 3), (13, 16), (4, 4)] {
                let matrix = resize.matrix(from, to);
                for (i, row) in matrix.chunks(from).enumerate() {
                    let sum: f32 = row.iter().sum();
                    assert!((sum - 1.0).abs() < 1e-6, "{resize:?} {from} to {to}, row {i} sums to {sum}");
                    if from == to {
                        assert!((row[i] - 1.0).abs() < 1e-6, "{resize:?} of the same size changes row {i}");
                    }
                }
            }
        }
    }
}
