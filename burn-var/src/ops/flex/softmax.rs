use super::{
    bridge::{Array, Kernel},
    simd::{exp, sums, vectorized},
};

/// Softmax over the last axis.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Softmax;

impl Kernel<1> for Softmax {
    /// The output.
    type Saved = Array;

    fn forward(&self, [x]: [Array; 1]) -> (Array, Array) {
        let len = row_len(&x);
        let (out, _) = x.update(len, |_, row| softmax(row));
        (out.clone(), out)
    }

    fn backward(&self, y: Array, grad: Array, _: [bool; 1]) -> [Option<Array>; 1] {
        let len = row_len(&y);
        let (out, _) = grad.update(len, |row, grad| softmax_backward(&y.values()[row * len..][..len], grad));
        [Some(out)]
    }
}

fn row_len(x: &Array) -> usize {
    x.shape().last().copied().unwrap_or(1)
}

vectorized! {
    fn softmax(row: &mut [f32]) {
        softmax_inline::<FMA>(row);
    }

    pub(super) fn softmax_backward(y: &[f32], grad: &mut [f32]) {
        softmax_backward_inline(y, grad);
    }
}

/// Computes the softmax of a row in place.
#[inline(always)]
pub(super) fn softmax_inline<const FMA: bool>(row: &mut [f32]) {
    // The comparison skips NaN, but the exponential below does not.
    let max = largest(row);
    for value in row.iter_mut() {
        *value = exp::<FMA>(*value - max);
    }
    let [sum] = sums(row, row, |value, _| [value]);
    let factor = sum.recip() as f32;
    for value in row.iter_mut() {
        *value *= factor;
    }
}

/// Turns the gradient of the output `y` of a softmax into that of its input.
#[inline(always)]
pub(super) fn softmax_backward_inline(y: &[f32], grad: &mut [f32]) {
    let [mean] = sums(y, grad, |y, grad| [y * grad]).map(|sum| sum as f32);
    for (grad, &y) in grad.iter_mut().zip(y) {
        *grad = y * (*grad - mean);
    }
}

#[inline(always)]
pub(super) fn largest(x: &[f32]) -> f32 {
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
