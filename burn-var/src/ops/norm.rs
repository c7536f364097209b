use burn::tensor::Tensor;

#[cfg(feature = "flex")]
use super::flex;
use super::silu;

/// Group normalisation: each of `groups` runs of channels of an image gets mean 0 and (biased) variance 1, then every
/// channel its `weight` and `bias`. `eps` is added to the variance.
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
    let normalised = standardise(rows, eps).reshape([batch, channels, height, width]);
    normalised * weight.reshape([1, channels, 1, 1]) + bias.reshape([1, channels, 1, 1])
}

/// [`group_norm`] followed by [`silu`].
pub fn group_norm_silu(x: Tensor<4>, weight: Tensor<1>, bias: Tensor<1>, groups: usize, eps: f64) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if flex::supports(&x) && flex::supports(&weight) && flex::supports(&bias) {
        let kernel = flex::GroupNorm { groups, eps, silu: true };
        return flex::run(kernel, [x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()]);
    }
    silu(group_norm(x, weight, bias, groups, eps))
}

/// Layer normalisation over the last axis without weights of its own, then `* (1 + scale) + shift`: the adaptive
/// layer norm of DiT and VAR, where scale and shift come from the class.
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
    standardise(x, eps) * (scale + 1.0) + shift
}

/// Layer normalisation over the last axis, then every channel its `weight` and `bias`.
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
    standardise(x, eps) * weight + bias
}

/// Mean 0 and biased variance 1 along the last axis.
fn standardise(x: Tensor<3>, eps: f64) -> Tensor<3> {
    let centred = x.clone() - x.mean_dim(2);
    let variance = centred.clone().square().mean_dim(2);
    centred / (variance + eps).sqrt()
}
