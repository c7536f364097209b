//! Attention of next-scale transformers: softmax, heads, the block-causal mask of teacher forcing, and the key-value
//! cache of generation.

use burn::tensor::{Device, Tensor, module, ops::AttentionModuleOptions};

#[cfg(feature = "flex")]
use super::flex;
use crate::Scales;
use crate::math::Constants;

/// Computes scaled dot-product attention, `softmax(scale * query key^T + bias) value`.
///
/// A bias of `-inf` masks a key; the output is undefined for a query whose keys are all masked.
///
/// # Shapes
/// - `query`: `[batch, heads, queries, channels]`
/// - `key`: `[batch, heads, keys, channels]`
/// - `value`: `[batch, heads, keys, value_channels]`
/// - `bias`: `[batch, heads, queries, keys]`, any of the first three may be 1
/// - output: `[batch, queries, heads * value_channels]`, the heads of a query concatenated
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

/// Scaling of queries and keys before their product.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a value lives for one call")]
pub enum QueryKeys {
    /// Factor of the products; queries and keys stay as they are.
    Scaled(f64),
    /// Queries and keys normalized to unit length (epsilon 1e-12, as PyTorch's `normalize`), queries times the
    /// sharpness of their head, `[heads]`.
    Unit(Tensor<1>),
}

/// Computes multi-head self-attention from a joint projection to queries, keys and values, `[batch, tokens, 3 * width]`
/// to `[batch, tokens, width]`, with `width` a multiple of `heads`.
///
/// # Shapes
/// - `biases`: of queries and values, `[width]` each; `None` if the projection has its own
/// - `mask`: `[1, 1, tokens, tokens]`, added to the scores; gets no gradient
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

/// Splits the inputs of [`self_attention`] into the queries, keys and values of each head, as [`attention`] takes them,
/// and the scale of their products.
fn split_heads(
    qkv: Tensor<3>,
    biases: Option<[Tensor<1>; 2]>,
    heads: usize,
    query_keys: QueryKeys,
) -> (Tensor<4>, Tensor<4>, Tensor<4>, f64) {
    let [batch, tokens, packed] = qkv.dims();
    let width = packed / 3;
    // Sliced before the heads are split: permuting the whole would copy it three times.
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

/// Iterates over the inputs of a self-attention besides the joint projection and the mask.
#[cfg(feature = "flex")]
fn vectors<'a>(biases: &'a Option<[Tensor<1>; 2]>, query_keys: &'a QueryKeys) -> impl Iterator<Item = &'a Tensor<1>> {
    let sharpness = match query_keys {
        QueryKeys::Scaled(_) => None,
        QueryKeys::Unit(sharpness) => Some(sharpness),
    };
    biases.iter().flatten().chain(sharpness)
}

/// Returns the kernel, and its inputs for both biases and the sharpness.
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

/// Normalizes vectors along the last axis to unit length (epsilon 1e-12, as PyTorch's `normalize`).
fn unit(x: Tensor<4>) -> Tensor<4> {
    let length = x.clone().square().sum_dim(3).sqrt().clamp_min(1e-12);
    x / length
}

/// Scales that a token attends to in a teacher-forced pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sight {
    /// Its own and all before.
    Causal,
    /// Its own and the first.
    FirstAndOwn,
    /// Its own and the first; the first scale sees the second too.
    FirstSeesSecond,
    /// Its own and the first; the first scale sees all.
    FirstSeesAll,
}

impl Sight {
    fn sees(self, query: usize, key: usize) -> bool {
        match self {
            Self::Causal => query >= key,
            Self::FirstAndOwn => key == query || key == 0,
            Self::FirstSeesSecond => key == query || key == 0 || (query == 0 && key == 1),
            Self::FirstSeesAll => key == query || key == 0 || query == 0,
        }
    }
}

/// Returns the mask of teacher forcing over a scale schedule, `[1, 1, L, L]`: 0 where the query's scale sees the key's,
/// minus infinity elsewhere.
pub fn scale_mask(scales: &Scales, sight: Sight, device: &Device) -> Tensor<4> {
    static MASKS: Constants<(Scales, Sight), 4> = Constants::new();
    MASKS.get((scales.clone(), sight), device, || {
        let levels = scales.levels();
        let count = levels.len();
        let entry = |query: usize, key: usize| if sight.sees(query, key) { 0.0 } else { f32::NEG_INFINITY };
        let mask = levels.iter().flat_map(|query| levels.iter().map(move |key| entry(*query, *key)));
        (mask.collect(), [1, 1, count, count])
    })
}

/// Key-value cache of one attention layer.
#[derive(Debug, Clone)]
pub struct KvCache {
    /// Number of tokens for which memory is reserved.
    #[cfg_attr(not(feature = "flex"), allow(dead_code, reason = "other devices allocate as tokens come"))]
    capacity: usize,
    tokens: usize,
    /// Keys and values, `[batch, heads, at least tokens, head_width]`; undefined behind `tokens`.
    memory: Option<[Tensor<4>; 2]>,
}

impl KvCache {
    /// Creates an empty cache for `capacity` tokens. It can hold more, at the cost of a copy when it grows.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, tokens: 0, memory: None }
    }

    /// Returns the number of cached tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Forgets all tokens but the first `tokens`.
    pub fn truncate(&mut self, tokens: usize) {
        self.tokens = self.tokens.min(tokens);
    }

    /// Keeps only the first `batch` sequences.
    #[must_use]
    pub fn keep_first(self, batch: usize) -> Self {
        Self { memory: self.memory.map(|parts| parts.map(|part| part.narrow(0, 0, batch))), ..self }
    }

    /// Detaches the cached tokens: no gradient passes to them.
    pub(crate) fn detach(&mut self) {
        self.memory = self.memory.take().map(|parts| parts.map(Tensor::detach));
    }

    /// Takes the cached tokens, without the spare memory behind them.
    fn take(&mut self) -> Option<[Tensor<4>; 2]> {
        let tokens = self.tokens;
        let memory = self.memory.take().filter(|_| tokens > 0);
        memory.map(|parts| parts.map(|part| part.narrow(2, 0, tokens)))
    }

    /// Appends tokens and returns all keys and values.
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

/// Computes [`self_attention`] of new tokens, which attend to the cached tokens and one another, and appends them to
/// the cache.
///
/// On Flex, off the autodiff graph, their keys and values are written to the cache in place.
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
