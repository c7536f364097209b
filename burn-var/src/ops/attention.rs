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
/// - output: `[batch, queries, heads * value_channels]`, the heads of a query side by side
pub fn attention(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>, bias: Option<Tensor<4>>, scale: f64) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if [&query, &key, &value].into_iter().chain(&bias).all(flex::supports) {
        let bias = bias.unwrap_or_else(|| flex::absent(&key));
        return flex::run(
            flex::Attention { scale: scale as f32 },
            [query, key, value, bias].map(Tensor::into_dispatch),
        );
    }
    let ([batch, heads, queries, _], value_channels) = (query.dims(), value.dims()[3]);
    let options = AttentionModuleOptions { scale: Some(scale), ..Default::default() };
    let mixed = module::attention(query, key, value, None, bias, options);
    mixed.swap_dims(1, 2).reshape([batch, queries, heads * value_channels])
}

/// What becomes of queries and keys before they meet.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "one lives for one call")]
pub enum QueryKeys {
    /// Nothing; their products are multiplied by this.
    Scaled(f64),
    /// Both are brought to length one (epsilon 1e-12, as PyTorch's `normalize`), queries times the sharpness of their
    /// head, `[heads]`.
    Unit(Tensor<1>),
}

/// Multi-head self-attention from a joint projection, `[batch, tokens, 3 * width]` of queries, keys and values, to
/// `[batch, tokens, width]`, `width` a multiple of `heads`.
///
/// # Shapes
/// - `biases`: of queries and values, `[width]` each; where they are absent, the projection has its own
/// - `mask`: `[1, 1, tokens, tokens]`, added to the scores, a constant
pub fn self_attention(
    qkv: Tensor<3>,
    biases: Option<[Tensor<1>; 2]>,
    heads: usize,
    query_keys: QueryKeys,
    mask: Option<Tensor<4>>,
) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if flex::supports(&qkv) && vectors(&biases, &query_keys).all(flex::supports) && mask.iter().all(flex::supports) {
        let mask = mask.unwrap_or_else(|| flex::absent(&qkv));
        let (kernel, vectors) = packed(&qkv, biases, heads, query_keys);
        let [q_bias, v_bias, sharpness] = vectors.map(Tensor::into_dispatch);
        return flex::run(kernel, [qkv.into_dispatch(), q_bias, v_bias, sharpness, mask.into_dispatch()]);
    }
    let (q, k, v, scale) = split_heads(qkv, biases, heads, query_keys);
    attention(q, k, v, mask, scale)
}

/// Queries, keys and values of each head as [`attention`] takes them, and the scale of their products; inputs as those
/// of [`self_attention`].
pub(super) fn split_heads(
    qkv: Tensor<3>,
    biases: Option<[Tensor<1>; 2]>,
    heads: usize,
    query_keys: QueryKeys,
) -> (Tensor<4>, Tensor<4>, Tensor<4>, f64) {
    let [batch, tokens, packed] = qkv.dims();
    let width = packed / 3;
    // Sliced before the heads are split: a permutation of the whole would copy it three times over.
    let part = |i: usize, bias: Option<Tensor<1>>| {
        let part = qkv.clone().narrow(2, i * width, width);
        let part = match bias {
            Some(bias) => part + bias.unsqueeze::<3>(),
            None => part,
        };
        part.reshape([batch, tokens, heads, width / heads]).swap_dims(1, 2) // [batch, heads, tokens, head_width]
    };
    let [q_bias, v_bias] = biases.map_or([None, None], |biases| biases.map(Some));
    let (q, k, v) = (part(0, q_bias), part(1, None), part(2, v_bias));
    match query_keys {
        QueryKeys::Scaled(scale) => (q, k, v, scale),
        QueryKeys::Unit(sharpness) => (unit(q) * sharpness.reshape([1, heads, 1, 1]), unit(k), v, 1.0),
    }
}

/// All that goes into a self-attention besides the joint projection and the mask.
#[cfg(feature = "flex")]
pub(super) fn vectors<'a>(
    biases: &'a Option<[Tensor<1>; 2]>,
    query_keys: &'a QueryKeys,
) -> impl Iterator<Item = &'a Tensor<1>> {
    let sharpness = match query_keys {
        QueryKeys::Scaled(_) => None,
        QueryKeys::Unit(sharpness) => Some(sharpness),
    };
    biases.iter().flatten().chain(sharpness)
}

/// The kernel, and what it takes of both biases and the sharpness.
#[cfg(feature = "flex")]
pub(super) fn packed(
    qkv: &Tensor<3>,
    biases: Option<[Tensor<1>; 2]>,
    heads: usize,
    query_keys: QueryKeys,
) -> (flex::SelfAttention, [Tensor<1>; 3]) {
    let [q_bias, v_bias] = biases.unwrap_or_else(|| [(); 2].map(|()| flex::absent(qkv)));
    let (scale, sharpness) = match query_keys {
        QueryKeys::Scaled(scale) => (Some(scale as f32), flex::absent(qkv)),
        QueryKeys::Unit(sharpness) => (None, sharpness),
    };
    (flex::SelfAttention { heads, scale }, [q_bias, v_bias, sharpness])
}

/// Vectors of length one along the last axis (epsilon 1e-12, as PyTorch's `normalize`).
fn unit(x: Tensor<4>) -> Tensor<4> {
    let length = x.clone().square().sum_dim(3).sqrt().clamp_min(1e-12);
    x / length
}
