use burn::tensor::{Tensor, module, ops::AttentionModuleOptions};

#[cfg(feature = "flex")]
use super::flex;

/// Scaled dot-product attention, `softmax(scale * query key^T + bias) value`.
///
/// A bias of `-inf` hides a key; a query that sees no key at all has no defined output.
///
/// # Shapes
/// - `query`: `[batch, heads, queries, channels]`
/// - `key`: `[batch, heads, keys, channels]`
/// - `value`: `[batch, heads, keys, value_channels]`
/// - `bias`: `[batch, heads, queries, keys]`, any of the first three may be 1
/// - output: `[batch, heads, queries, value_channels]`
pub fn attention(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>, bias: Option<Tensor<4>>, scale: f64) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if [&query, &key, &value].into_iter().chain(&bias).all(flex::supports) {
        let none = || Tensor::zeros([1, 1, 1, key.dims()[2]], (&key.device().inner(), key.dtype()));
        let bias = bias.unwrap_or_else(none);
        return flex::run(
            flex::Attention { scale: scale as f32 },
            [query, key, value, bias].map(Tensor::into_dispatch),
        );
    }
    let options = AttentionModuleOptions { scale: Some(scale), ..Default::default() };
    module::attention(query, key, value, None, bias, options)
}
