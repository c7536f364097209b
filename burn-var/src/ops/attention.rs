//! Attention of next-scale transformers: softmax, heads, the block-causal mask of teacher forcing, and the cache of
//! generation.

use burn::tensor::{Device, Tensor, module, ops::AttentionModuleOptions};

#[cfg(feature = "flex")]
use super::flex;
use crate::Scales;
use crate::math::Constants;

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

/// Normalization of queries and keys before their product.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "one lives for one call")]
pub enum QueryKeys {
    /// None; the products are multiplied by this factor.
    Scaled(f64),
    /// Both have length one (epsilon 1e-12, as PyTorch's `normalize`), queries times the sharpness of
    /// their head, `[heads]`.
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
fn split_heads(
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
fn vectors<'a>(biases: &'a Option<[Tensor<1>; 2]>, query_keys: &'a QueryKeys) -> impl Iterator<Item = &'a Tensor<1>> {
    let sharpness = match query_keys {
        QueryKeys::Scaled(_) => None,
        QueryKeys::Unit(sharpness) => Some(sharpness),
    };
    biases.iter().flatten().chain(sharpness)
}

/// The kernel, and what it takes of both biases and the sharpness.
#[cfg(feature = "flex")]
fn packed(
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

/// Returns the mask of teacher forcing over a scale schedule, `[1, 1, L, L]`: 0 where the key's scale is that of the
/// query or coarser, minus infinity elsewhere.
pub fn block_causal_mask(scales: &Scales, device: &Device) -> Tensor<4> {
    static MASKS: Constants<Scales, 4> = Constants::new();
    MASKS.get(scales.clone(), device, || {
        let levels = scales.levels();
        let count = levels.len();
        let entry = |query: usize, key: usize| if query >= key { 0.0 } else { f32::NEG_INFINITY };
        let mask = levels.iter().flat_map(|query| levels.iter().map(move |key| entry(*query, *key)));
        (mask.collect(), [1, 1, count, count])
    })
}

/// Keys and values of the tokens so far, of one attention.
#[derive(Debug, Clone)]
pub struct KvCache {
    /// Tokens for which memory is set aside.
    #[cfg_attr(not(feature = "flex"), allow(dead_code, reason = "other devices allocate as tokens come"))]
    capacity: usize,
    tokens: usize,
    /// Keys and values, `[batch, heads, at least tokens, head_width]`; what lies behind `tokens` is not defined.
    memory: Option<[Tensor<4>; 2]>,
}

impl KvCache {
    /// Creates an empty cache for `capacity` tokens. It can take more, which costs a copy of all.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, tokens: 0, memory: None }
    }

    /// Returns the number of tokens that it holds.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Keeps the first `batch` sequences only.
    #[must_use]
    pub fn keep_first(self, batch: usize) -> Self {
        Self { memory: self.memory.map(|parts| parts.map(|part| part.narrow(0, 0, batch))), ..self }
    }

    /// Lets no gradient pass to the tokens that it holds.
    pub(crate) fn detach(&mut self) {
        self.memory = self.memory.take().map(|parts| parts.map(Tensor::detach));
    }

    /// Takes the tokens that it holds, without the memory behind them.
    fn take(&mut self) -> Option<[Tensor<4>; 2]> {
        let tokens = self.tokens;
        self.memory.take().map(|parts| parts.map(|part| part.narrow(2, 0, tokens)))
    }

    /// Appends tokens, and returns all keys and values.
    fn extend(&mut self, new: [Tensor<4>; 2]) -> [Tensor<4>; 2] {
        let count = new[0].dims()[2];
        let all = match self.take() {
            None => new,
            Some(old) => {
                let mut pairs = old.into_iter().zip(new).map(|(old, new)| Tensor::cat(vec![old, new], 2));
                core::array::from_fn(|_| pairs.next().expect("two pairs"))
            }
        };
        self.tokens += count;
        self.memory = Some(all.clone());
        all
    }

    /// Returns memory with room for `count` more tokens.
    #[cfg(feature = "flex")]
    fn reserve(&mut self, [batch, heads, count, channels]: [usize; 4], like: &Tensor<3>) -> [Tensor<4>; 2] {
        let needed = self.tokens + count;
        match self.memory.take() {
            Some(memory) if memory[0].dims()[2] >= needed => memory,
            old => {
                let shape = [batch, heads, needed.max(self.capacity), channels];
                let grow = |old: Option<Tensor<4>>| {
                    let memory = Tensor::zeros(shape, (&like.device(), like.dtype()));
                    match old.filter(|_| self.tokens > 0) {
                        None => memory,
                        Some(old) => {
                            let held = [0..batch, 0..heads, 0..self.tokens, 0..channels];
                            memory.slice_assign(held.clone(), old.slice(held))
                        }
                    }
                };
                let [keys, values] = old.map_or([None, None], |memory| memory.map(Some));
                [grow(keys), grow(values)]
            }
        }
    }
}

/// [`self_attention`] of new tokens, which see all tokens of the cache and one another, and then join the cache.
///
/// On Flex, without a graph, they are written into the memory of the cache in place.
///
/// # Shapes
/// - `qkv`: `[batch, tokens, 3 * width]`, the joint projection of the new tokens
/// - `biases`: of queries and values, `[width]` each
/// - output: `[batch, tokens, width]`
pub fn cached_attention(
    qkv: Tensor<3>,
    biases: Option<[Tensor<1>; 2]>,
    heads: usize,
    query_keys: QueryKeys,
    cache: &mut KvCache,
) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if flex::is_plain(&qkv)
        && vectors(&biases, &query_keys).all(flex::is_plain)
        && cache.memory.iter().flatten().all(flex::is_plain)
    {
        let [batch, tokens, channels] = qkv.dims();
        let memory = cache.reserve([batch, heads, tokens, channels / 3 / heads], &qkv);
        let (kernel, vectors) = packed(&qkv, biases, heads, query_keys);
        let (mixed, memory) = kernel.cached(qkv, vectors, memory, cache.tokens);
        cache.memory = Some(memory);
        cache.tokens += tokens;
        return mixed;
    }
    let (query, key, value, scale) = split_heads(qkv, biases, heads, query_keys);
    let [keys, values] = cache.extend([key, value]);
    attention(query, keys, values, None, scale)
}
