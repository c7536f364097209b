use super::simd::{sums, vectorized};

/// Mean and reciprocal standard deviation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moments {
    pub(super) mean: f32,
    pub(super) scale: f32,
}

vectorized! {
    /// Computes the moments of all values. Two passes: the mean is known before squares are summed.
    pub(super) fn moments(x: &[f32], eps: f64) -> Moments {
        moments_inline(x, eps)
    }
}

/// Computes [`moments`] inside vector code.
#[inline(always)]
pub(super) fn moments_inline(x: &[f32], eps: f64) -> Moments {
    let [sum] = sums(x, x, |x, _| [x]);
    let mean = (sum / x.len() as f64) as f32;
    let [squares] = sums(x, x, |x, _| [(x - mean) * (x - mean)]);
    Moments { mean, scale: (squares / x.len() as f64 + eps).sqrt().recip() as f32 }
}
