use rayon::prelude::*;

use super::{
    bridge::{Array, Kernel},
    simd::{exp, sums, vectorised},
};

/// Softmax over the last axis.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Softmax;

/// Rows a thread takes at once at the least, so that short ones are worth the hand-over.
const MIN_ROWS: usize = 16;

impl Kernel<1> for Softmax {
    /// The output.
    type Saved = Array;

    fn forward(&self, [x]: [Array; 1]) -> (Array, Array) {
        let len = row_len(&x);
        let mut out = vec![0.0; x.values().len()];
        let rows = out.par_chunks_mut(len).zip(x.values().par_chunks(len));
        rows.with_min_len(MIN_ROWS).for_each(|(out, x)| softmax(x, out));
        let out = Array::new(out, x.shape());
        (out.clone(), out)
    }

    fn backward(&self, y: Array, grad: Array, _: [bool; 1]) -> [Option<Array>; 1] {
        let len = row_len(&y);
        let mut out = vec![0.0; y.values().len()];
        let inputs = y.values().par_chunks(len).zip(grad.values().par_chunks(len));
        let rows = out.par_chunks_mut(len).zip(inputs);
        rows.with_min_len(MIN_ROWS).for_each(|(out, (y, grad))| softmax_backward(y, grad, out));
        [Some(Array::new(out, y.shape()))]
    }
}

fn row_len(x: &Array) -> usize {
    x.shape().last().copied().unwrap_or(1).max(1)
}

vectorised! {
    fn softmax(x: &[f32], out: &mut [f32]) {
        softmax_inline(x, out);
    }

    fn softmax_backward(y: &[f32], grad: &[f32], out: &mut [f32]) {
        let [mean] = sums(y, grad, |y, grad| [y * grad]).map(|sum| sum as f32);
        for ((out, &y), &grad) in out.iter_mut().zip(y).zip(grad) {
            *out = y * (grad - mean);
        }
    }
}

#[inline(always)]
fn softmax_inline(x: &[f32], out: &mut [f32]) {
    // The comparison passes over NaN, but the exponential below does not.
    let max = largest(x);
    for (out, &x) in out.iter_mut().zip(x) {
        *out = exp(x - max);
    }
    let [sum] = sums(out, out, |y, _| [y]);
    let factor = sum.recip() as f32;
    for out in out.iter_mut() {
        *out *= factor;
    }
}

#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    const LANES: usize = 16;
    let max = |a: f32, b: f32| if b > a { b } else { a };
    let (full, rest) = x.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in full {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = max(*lane, x);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, max)
}
