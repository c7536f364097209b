use burn::tensor::Tensor;
use rayon::prelude::*;

use super::{
    bridge::{Array, span},
    scratch::Scratch,
    simd::{add, vectorized},
};

/// Side of a window.
const SIDE: usize = 3;

/// Reduction of each 3x3 window.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) enum Pool {
    /// Maximum, with windows `stride` apart and `pad` pixels of minus infinity on each side.
    Max { stride: usize, pad: usize },
    /// Mean of the pixels inside the image, with a window around every pixel.
    Mean,
}

/// Pools `[batch, channels, height, width]`, off the graph.
///
/// # Panics
/// If images are smaller than a window.
pub(in crate::ops) fn pool(x: Tensor<4>, pool: Pool) -> Tensor<4> {
    let _span = span::<Pool>("forward");
    let [batch, channels, height, width] = x.dims();
    let (stride, pad) = match pool {
        Pool::Max { stride, pad } => (stride, pad),
        Pool::Mean => (1, 1),
    };
    assert!(height.min(width) + 2 * pad >= SIDE, "pool: images of {height}x{width} are smaller than a window");
    let [down, across] = [height, width].map(|side| (side + 2 * pad - SIDE) / stride + 1);
    let x = Array::from(x);
    let mut out = vec![0.0; batch * channels * down * across];
    let planes = x.values().par_chunks(height * width).zip(out.par_chunks_mut(down * across));
    planes.for_each(|(plane, out)| {
        let mut line = Scratch::new(width + 2);
        for (y, out) in out.chunks_exact_mut(across).enumerate() {
            let rows = (y * stride).saturating_sub(pad)..height.min(y * stride + SIDE - pad);
            line.fill(if matches!(pool, Pool::Max { .. }) { f32::NEG_INFINITY } else { 0.0 });
            for row in plane.chunks_exact(width).take(rows.end).skip(rows.start) {
                match pool {
                    Pool::Max { .. } => larger(row, &mut line[1..=width]),
                    Pool::Mean => add(row, &mut line[1..=width]),
                }
            }
            match pool {
                Pool::Max { .. } => largest_of_three(&line[1 - pad..], stride, out),
                Pool::Mean => means_of_three(&line, rows.len() as f32, out),
            }
        }
    });
    Array::new(out, [batch, channels, down, across]).into()
}

/// Returns the larger number; NaN counts as larger than any number.
#[inline(always)]
fn max(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() { b } else { a }
}

vectorized! {
    fn larger(from: &[f32], to: &mut [f32]) {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = max(*to, from);
        }
    }

    fn largest_of_three(line: &[f32], stride: usize, out: &mut [f32]) {
        for (window, out) in line.windows(SIDE).step_by(stride).zip(out) {
            *out = max(max(window[0], window[1]), window[2]);
        }
    }

    /// Computes the means of windows from `line`, the sums of columns with a zero beyond each end.
    fn means_of_three(line: &[f32], rows: f32, out: &mut [f32]) {
        for (window, out) in line.windows(SIDE).zip(out.iter_mut()) {
            *out = (window[0] + window[1] + window[2]) * (1.0 / (SIDE as f32 * rows));
        }
        let width = out.len();
        let fewer = if width == 1 { 1.0 } else { 2.0 };
        out[0] *= SIDE as f32 / fewer;
        if width > 1 {
            out[width - 1] *= SIDE as f32 / fewer;
        }
    }
}
