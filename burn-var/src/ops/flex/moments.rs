use super::simd::{sums, vectorised};

/// Mean and reciprocal standard deviation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moments {
    pub(super) mean: f32,
    pub(super) scale: f32,
}

vectorised! {
    /// Moments of all values together. Two passes: the mean is known before squares are summed.
    pub(super) fn moments(x: &[f32], eps: f64) -> Moments {
        moments_inline(x, eps)
    }
}

/// [`moments`] for use inside vector code.
#[inline(always)]
pub(super) fn moments_inline(x: &[f32], eps: f64) -> Moments {
    let [sum] = sums(x, x, |x, _| [x]);
    let mean = (sum / x.len() as f64) as f32;
    let [squares] = sums(x, x, |x, _| [(x - mean) * (x - mean)]);
    Moments { mean, scale: (squares / x.len() as f64 + eps).sqrt().recip() as f32 }
}
