use burn::tensor::Tensor;

use super::QueryKeys;
use super::attention::{attention, split_heads};
#[cfg(feature = "flex")]
use super::{
    attention::{packed, vectors},
    flex,
};

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
    /// An empty cache for `capacity` tokens. It can take more, which costs a copy of all.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, tokens: 0, memory: None }
    }

    /// Number of tokens that it holds.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Goes on with the first `batch` sequences only.
    #[must_use]
    pub fn truncate(self, batch: usize) -> Self {
        Self { memory: self.memory.map(|parts| parts.map(|part| part.narrow(0, 0, batch))), ..self }
    }

    /// Lets no gradient pass to what it holds.
    pub(crate) fn detach(&mut self) {
        self.memory = self.memory.take().map(|parts| parts.map(Tensor::detach));
    }

    /// What it holds, without what lies behind.
    fn take(&mut self) -> Option<[Tensor<4>; 2]> {
        let tokens = self.tokens;
        self.memory.take().map(|parts| parts.map(|part| part.narrow(2, 0, tokens)))
    }

    /// Adds tokens, and returns all keys and values.
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

    /// Memory with room for `count` tokens more.
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

/// [`self_attention`](super::self_attention) of new tokens, which see all tokens of the cache and one another, and
/// then join the cache.
///
/// On Flex, off the graph, they are written into the memory of the cache in place.
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
