//! Attention of next-scale transformers: softmax, heads, the block-causal mask of teacher forcing, and the key-value
//! cache of generation.

use burn::tensor::{Device, Tensor, module, ops::AttentionModuleOptions};

#[cfg(feature = "gpu")]
use super::cube;
#[cfg(feature = "flex")]
use super::flex;
use super::precision::Form;
use super::{softmax, swap, transpose};
use crate::Scales;
use crate::math::Constants;

/// Computes scaled dot-product attention, `softmax(scale * query key^T + bias) value`, both products in the
/// [`Precision`](super::Precision) of the thread and the softmax in `f32`.
///
/// A bias of `-inf` masks a key; the output is undefined for a query whose keys are all masked.
///
/// # Shapes
/// - `query`: `[batch, heads, queries, channels]`
/// - `key`: `[batch, heads, keys, channels]`
/// - `value`: `[batch, heads, keys, value_channels]`
/// - `bias`: `[batch, heads, queries, keys]`, any of the first three may be 1
/// - output: `[batch, queries, heads * value_channels]`, the heads of a query concatenated
#[allow(clippy::disallowed_methods, reason = "the one place that uses Burn's attention")]
pub fn attention(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>, bias: Option<Tensor<4>>, scale: f64) -> Tensor<3> {
    let form = Form::of(&query);
    #[cfg(feature = "flex")]
    if form == Form::Plain && [&query, &key, &value].into_iter().chain(&bias).all(flex::supports) {
        let bias = bias.unwrap_or_else(|| flex::absent(&key));
        return flex::run(
            flex::Attention { scale: scale as f32 },
            [query, key, value, bias].map(Tensor::into_dispatch),
        );
    }
    let ([batch, heads, queries, _], value_channels) = (query.dims(), value.dims()[3]);
    // Burn's attention with a scale or a bias is a composition, too, on GPUs of three times as many kernels.
    #[cfg(feature = "gpu")]
    let composed = form != Form::Plain || cube::is_gpu(&query);
    #[cfg(not(feature = "gpu"))]
    let composed = form != Form::Plain;
    let mixed = if composed {
        let query = if scale == 1.0 { query } else { query * scale };
        let shares = shares(form.product(query, transpose(key)), bias);
        form.product(shares, value)
    } else {
        let options = AttentionModuleOptions { scale: Some(scale), ..Default::default() };
        module::attention(query, key, value, None, bias, options)
    };
    swap(mixed, 1, 2).reshape([batch, queries, heads * value_channels])
}

/// Computes the softmax of scores plus a bias.
fn shares(scores: Tensor<4>, bias: Option<Tensor<4>>) -> Tensor<4> {
    #[cfg(feature = "gpu")]
    if cube::is_gpu(&scores) {
        return cube::softmax(scores, bias);
    }
    softmax(match bias {
        Some(bias) => scores + bias,
        None => scores,
    })
}

/// Largest sharpness of a head.
pub(super) const HIGHEST_SHARPNESS: f64 = 100.0;

/// Scaling of queries and keys before their product.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a value lives for one call")]
pub enum QueryKeys {
    /// Factor of the products; queries and keys stay as they are.
    Scaled(f64),
    /// Queries and keys normalized to unit length (epsilon 1e-12, as PyTorch's `normalize`), queries times the
    /// sharpness of their head, `[heads]`.
    Unit(Tensor<1>),
    /// `Unit`, given the logarithm of the sharpness, `[1, heads, 1, 1]`; above ln 100 it counts as ln 100.
    UnitLog(Tensor<4>),
    /// Rotary positions: each pair of adjacent channels of queries and keys is turned by an angle of its token's position.
    Rotary {
        /// Factor of the products.
        scale: f64,
        /// Cosine and sine of each pair, side by side: `[tokens, head_width]`. Gets no gradient.
        table: Tensor<2>,
    },
}

impl QueryKeys {
    /// Returns the number of heads of keys and values in a joint projection of `packed` channels: fewer than those of
    /// queries if several of them share one, which only rotary attention has.
    fn key_heads(&self, packed: usize, heads: usize) -> usize {
        match self {
            Self::Rotary { table, .. } => (packed / table.dims()[1].max(1)).saturating_sub(heads) / 2,
            Self::Scaled(_) | Self::Unit(_) | Self::UnitLog(_) => heads,
        }
    }

    /// Computes the sharpness where its logarithm is given.
    fn resolved(self) -> Self {
        match self {
            Self::UnitLog(log) => {
                let heads = log.dims()[1];
                Self::Unit(log.clamp_max(HIGHEST_SHARPNESS.ln()).exp().reshape([heads]))
            }
            other => other,
        }
    }
}

/// Computes multi-head self-attention from a joint projection to queries, keys and values, `[batch, tokens, 3 * width]`
/// to `[batch, tokens, width]`, with `width` a multiple of `heads`.
///
/// With [rotary](QueryKeys::Rotary) positions there may be fewer heads of keys and values, each shared by as many adjacent
/// heads of queries (grouped-query attention): the projection then has fewer than three times the width.
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
    let query_keys = query_keys.resolved();
    #[cfg(feature = "flex")]
    if Form::of(&qkv) == Form::Plain
        && flex::supports(&qkv)
        && inputs_are(&biases, &query_keys, &qkv, heads, flex::supports)
        && mask.iter().all(flex::supports)
    {
        let mask = mask.unwrap_or_else(|| flex::absent(&qkv));
        let (kernel, vectors) = packed(&qkv, biases, heads, query_keys);
        let [q_bias, v_bias, per_head] = vectors.map(Tensor::into_dispatch);
        return flex::run(kernel, [qkv.into_dispatch(), q_bias, v_bias, per_head, mask.into_dispatch()]);
    }
    let (q, k, v, scale) = split_heads(qkv, biases, heads, query_keys);
    let [k, v] = [k, v].map(|part| for_each_head(part, heads));
    attention(q, k, v, mask, scale)
}

/// Repeats each head of keys or values, `[batch, heads, tokens, channels]`, for the heads of queries that share it.
fn for_each_head(part: Tensor<4>, heads: usize) -> Tensor<4> {
    let [batch, own, tokens, channels] = part.dims();
    if own == heads {
        return part;
    }
    let part = part.unsqueeze_dim::<5>(2).expand([batch, own, heads / own, tokens, channels]);
    part.reshape([batch, heads, tokens, channels])
}

/// Splits the inputs of [`self_attention`] into the queries, keys and values of each head, as [`attention`] takes them
/// except that keys and values may have fewer heads, and the scale of their products.
fn split_heads(
    qkv: Tensor<3>,
    biases: Option<[Tensor<1>; 2]>,
    heads: usize,
    query_keys: QueryKeys,
) -> (Tensor<4>, Tensor<4>, Tensor<4>, f64) {
    let [batch, tokens, packed] = qkv.dims();
    let key_heads = query_keys.key_heads(packed, heads);
    let channels = packed / (heads + 2 * key_heads);
    // Sliced before the heads are split: permuting the whole would copy it three times.
    let part = |first: usize, heads: usize, bias: Option<Tensor<1>>| {
        let part = qkv.clone().narrow(2, first * channels, heads * channels);
        let part = match bias {
            Some(bias) => part + bias.unsqueeze::<3>(),
            None => part,
        };
        swap(part.reshape([batch, tokens, heads, channels]), 1, 2) // [batch, heads, tokens, head_width]
    };
    let [q_bias, v_bias] = biases.map_or([None, None], |biases| biases.map(Some));
    let (q, k) = (part(0, heads, q_bias), part(heads, key_heads, None));
    let v = part(heads + key_heads, key_heads, v_bias);
    match query_keys {
        QueryKeys::Rotary { scale, table } => (rotated(q, &table), rotated(k, &table), v, scale),
        QueryKeys::Scaled(scale) => (q, k, v, scale),
        QueryKeys::Unit(sharpness) => (unit(q) * sharpness.reshape([1, heads, 1, 1]), unit(k), v, 1.0),
        QueryKeys::UnitLog(_) => unreachable!("resolved before"),
    }
}

/// Turns pairs of adjacent channels, `[batch, heads, tokens, channels]`, by the cosines and sines of a table, `[tokens,
/// channels]`.
fn rotated(x: Tensor<4>, table: &Tensor<2>) -> Tensor<4> {
    let [batch, heads, tokens, channels] = x.dims();
    let pairs = x.reshape([batch, heads, tokens, channels / 2, 2]);
    let table = table.clone().reshape([1, 1, tokens, channels / 2, 2]);
    let [a, b] = [0, 1].map(|i| pairs.clone().narrow(4, i, 1));
    let [cos, sin] = [0, 1].map(|i| table.clone().narrow(4, i, 1));
    let turned = vec![a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin];
    Tensor::cat(turned, 4).reshape([batch, heads, tokens, channels])
}

/// Returns true if the kernel can compute a self-attention: it is not grouped, and `accepts` all inputs besides the joint
/// projection and the mask.
#[cfg(feature = "flex")]
fn inputs_are(
    biases: &Option<[Tensor<1>; 2]>,
    query_keys: &QueryKeys,
    qkv: &Tensor<3>,
    heads: usize,
    accepts: fn(&Tensor<1>) -> bool,
) -> bool {
    let other = match query_keys {
        QueryKeys::Scaled(_) => true,
        QueryKeys::UnitLog(_) => false,
        QueryKeys::Unit(sharpness) => accepts(sharpness),
        QueryKeys::Rotary { table, .. } => flex::supports(table) && query_keys.key_heads(qkv.dims()[2], heads) == heads,
    };
    other && biases.iter().flatten().all(accepts)
}

/// Returns the kernel, and its inputs for both biases and the sharpness or the table of positions.
#[cfg(feature = "flex")]
fn packed(
    qkv: &Tensor<3>,
    biases: Option<[Tensor<1>; 2]>,
    heads: usize,
    query_keys: QueryKeys,
) -> (flex::SelfAttention, [Tensor<1>; 3]) {
    let [q_bias, v_bias] = biases.unwrap_or_else(|| [(); 2].map(|()| flex::absent(qkv)));
    let (scale, per_head) = match query_keys {
        QueryKeys::Scaled(scale) => (Some(scale as f32), flex::absent(qkv)),
        QueryKeys::Unit(sharpness) => (None, sharpness),
        QueryKeys::UnitLog(_) => unreachable!("resolved before"),
        QueryKeys::Rotary { scale, table } => {
            let table = table.flatten::<1>(0, 1);
            // A constant, which must not end up in the graph.
            (Some(scale as f32), if table.device().is_autodiff() { table.inner() } else { table })
        }
    };
    let rotary = scale.is_some() && per_head.dims() != [0];
    (flex::SelfAttention { heads, scale, rotary }, [q_bias, v_bias, per_head])
}

/// Normalizes vectors along the last axis to unit length (epsilon 1e-12, as PyTorch's `normalize`).
fn unit(x: Tensor<4>) -> Tensor<4> {
    let length = x.clone().square().sum_dim(3).sqrt().clamp_min(1e-12);
    x / length
}

/// Scales that a token attends to in a teacher-forced pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sight {
    /// Each scale sees itself and all scales before it.
    Causal,
    /// Each scale sees itself and the first.
    FirstAndOwn,
    /// Each scale sees itself and the first, and the first scale sees the second.
    FirstSeesSecond,
    /// Each scale sees itself and the first, and the first scale sees all.
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
    #[cfg_attr(
        not(any(feature = "flex", feature = "gpu")),
        allow(dead_code, reason = "other devices allocate as tokens come")
    )]
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
    #[cfg(any(feature = "flex", feature = "gpu"))]
    fn reserve(&mut self, [batch, heads, count, channels]: [usize; 4], like: &Tensor<3>) -> [Tensor<4>; 2] {
        let needed = self.tokens + count;
        match self.memory.take() {
            Some(memory) if memory[0].dims()[2] >= needed => memory,
            old => {
                let shape = [batch, heads, needed.max(self.capacity), channels];
                let grow = |old: Option<Tensor<4>>| {
                    // Nothing reads what has not been written.
                    #[cfg(feature = "gpu")]
                    let spare = cube::is_plain(like);
                    #[cfg(not(feature = "gpu"))]
                    let spare = false;
                    let of = (&like.device(), like.dtype());
                    let memory = if spare { Tensor::empty(shape, of) } else { Tensor::zeros(shape, of) };
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
/// On Flex and on GPUs, off the autodiff graph, their keys and values are written to the cache in place.
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
    #[cfg(feature = "gpu")]
    if cube::is_plain(&qkv) && !matches!(query_keys, QueryKeys::Rotary { .. }) {
        let [batch, tokens, channels] = qkv.dims();
        let memory = cache.reserve([batch, heads, tokens, channels / 3 / heads], &qkv);
        let (scale, unit) = match query_keys {
            QueryKeys::Unit(sharpness) => (1.0, Some((sharpness, false))),
            QueryKeys::UnitLog(log) => (1.0, Some((log.flatten::<1>(0, 3), true))),
            QueryKeys::Scaled(scale) | QueryKeys::Rotary { scale, .. } => (scale, None),
        };
        let (query, memory) = cube::append(qkv, biases, unit, memory, cache.tokens);
        cache.tokens += tokens;
        cache.memory = Some(memory.clone());
        if cube::fits(query.dims(), cache.tokens) {
            return cube::attend(query, memory, cache.tokens, scale);
        }
        let [keys, values] = memory.map(|part| part.narrow(2, 0, cache.tokens));
        return attention(query, keys, values, None, scale);
    }
    let query_keys = query_keys.resolved();
    #[cfg(feature = "flex")]
    if Form::of(&qkv) == Form::Plain
        && flex::is_plain(&qkv)
        && inputs_are(&biases, &query_keys, &qkv, heads, flex::is_plain)
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
    let [keys, values] = cache.extend([key, value]).map(|part| for_each_head(part, heads));
    attention(query, keys, values, None, scale)
}
