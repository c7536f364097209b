use burn::tensor::{DType, Tensor};

#[cfg(feature = "flex")]
use super::flex;
use super::silu;

/// Applies group normalization: normalizes each of `groups` runs of channels of an image to mean 0 and (biased)
/// variance 1, then applies each channel's `weight` and `bias`. `eps` is added to the variance.
///
/// # Shapes
/// - `x` and output: `[batch, channels, height, width]`, `channels` a multiple of `groups`
/// - `weight`, `bias`: `[channels]`
pub fn group_norm(x: Tensor<4>, weight: Tensor<1>, bias: Tensor<1>, groups: usize, eps: f64) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if flex::supports(&x) && flex::supports(&weight) && flex::supports(&bias) {
        let kernel = flex::GroupNorm { groups, eps, silu: false };
        return flex::run(kernel, [x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()]);
    }
    let [batch, channels, height, width] = x.dims();
    let rows = x.reshape([batch, groups, channels / groups * height * width]);
    let normalized = normalize(rows, eps).reshape([batch, channels, height, width]);
    normalized * weight.reshape([1, channels, 1, 1]) + bias.reshape([1, channels, 1, 1])
}

/// Computes [`group_norm`] followed by [`silu`].
pub fn group_norm_silu(x: Tensor<4>, weight: Tensor<1>, bias: Tensor<1>, groups: usize, eps: f64) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if flex::supports(&x) && flex::supports(&weight) && flex::supports(&bias) {
        let kernel = flex::GroupNorm { groups, eps, silu: true };
        return flex::run(kernel, [x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()]);
    }
    silu(group_norm(x, weight, bias, groups, eps))
}

/// Applies layer normalization over the last axis without learned parameters, then `* (1 + scale) + shift`: the
/// adaptive layer norm of DiT and VAR, where scale and shift are projected from the condition.
///
/// # Shapes
/// - `x` and output: `[batch, length, channels]`
/// - `scale`, `shift`: `[batch, 1, channels]`
pub fn layer_norm_modulate(x: Tensor<3>, scale: Tensor<3>, shift: Tensor<3>, eps: f64) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if flex::supports(&x) && flex::supports(&scale) && flex::supports(&shift) {
        let kernel = flex::LayerNorm { eps, offset: 1.0 };
        return flex::run(kernel, [x.into_dispatch(), scale.into_dispatch(), shift.into_dispatch()]);
    }
    normalize(x, eps) * (scale + 1.0) + shift
}

/// Applies layer normalization over the last axis, then each channel's `weight` and `bias`.
///
/// # Shapes
/// - `x` and output: `[batch, length, channels]`
/// - `weight`, `bias`: `[channels]`
pub fn layer_norm(x: Tensor<3>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<3> {
    let [weight, bias] = [weight, bias].map(Tensor::unsqueeze::<3>);
    #[cfg(feature = "flex")]
    if flex::supports(&x) && flex::supports(&weight) && flex::supports(&bias) {
        let kernel = flex::LayerNorm { eps, offset: 0.0 };
        return flex::run(kernel, [x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()]);
    }
    normalize(x, eps) * weight + bias
}

/// Divides vectors along the last axis by their root mean square, then multiplies each channel by its `weight`. `eps` is
/// added to the mean square, which is computed in single precision.
///
/// # Shapes
/// - `x` and output: `[batch, length, channels]`
/// - `weight`: `[channels]`
pub fn rms_norm(x: Tensor<3>, weight: Tensor<1>, eps: f64) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if flex::supports(&x) && flex::supports(&weight) {
        return flex::run(flex::RmsNorm { eps }, [x.into_dispatch(), weight.into_dispatch()]);
    }
    let dtype = x.dtype();
    let x = if matches!(dtype, DType::F16 | DType::BF16) { x.cast(DType::F32) } else { x };
    let size = (x.clone().square().mean_dim(2) + eps).sqrt();
    (x / size).cast(dtype) * weight.unsqueeze::<3>()
}

/// Normalizes the last axis to mean 0 and biased variance 1.
fn normalize(x: Tensor<3>, eps: f64) -> Tensor<3> {
    let centered = x.clone() - x.mean_dim(2);
    let variance = centered.clone().square().mean_dim(2);
    centered / (variance + eps).sqrt()
}
