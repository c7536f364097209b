use burn::tensor::Tensor;
use rayon::prelude::*;

use super::{
    attention::Head,
    bridge::{Array, Kernel, span},
    matrix::{Shared, View},
    scratch::Scratch,
    simd::{add, sums, vectorized},
};

/// Minimum length that a vector is divided by.
const EPSILON: f32 = 1e-12;

/// Self-attention of packed queries, keys and values, with optional biases of queries and values, a sharpness per head
/// or a table of rotary positions, and a mask. Each task computes one head of one image, and reads and writes the packed tensors without copying the
/// heads apart.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct SelfAttention {
    pub(in crate::ops) heads: usize,
    /// Scale of the scores; without one, queries and keys are normalized and the sharpness is read.
    pub(in crate::ops) scale: Option<f32>,
    /// Reads cosines and sines, `[tokens, channels]`, in place of a sharpness.
    pub(in crate::ops) rotary: bool,
}

impl Kernel<5> for SelfAttention {
    type Saved = [Array; 5];

    fn forward(&self, inputs: [Array; 5]) -> (Array, [Array; 5]) {
        let packed = Packed::new(self, &inputs);
        let Packed { batch, tokens, width, .. } = packed;
        let mut out: Vec<f32> = Vec::with_capacity(batch * tokens * width);
        let shared = Shared::new(out.as_mut_ptr());
        (0..batch * self.heads).into_par_iter().for_each(|index| {
            let parts = packed.parts(index);
            let first = packed.first(index, width);
            // SAFETY: the channels of this head, in the rows of its image, belong to no other task.
            unsafe { packed.head(&parts).mix(shared.at(first), width) };
        });
        // SAFETY: the heads of all images cover the output.
        unsafe { out.set_len(batch * tokens * width) };
        (Array::new(out, [batch, tokens, width]), inputs)
    }

    fn backward(&self, inputs: [Array; 5], grad: Array, wanted: [bool; 5]) -> [Option<Array>; 5] {
        let packed = Packed::new(self, &inputs);
        let Packed { batch, tokens, width, channels, .. } = packed;
        let mut out: Vec<f32> = Vec::with_capacity(batch * tokens * 3 * width);
        let shared = Shared::new(out.as_mut_ptr());
        // Gradients per task of its part of both biases and of its head's sharpness.
        let sums = (0..batch * self.heads).into_par_iter().map(|index| {
            let parts = packed.parts(index);
            let grad = View::new(&grad.values()[packed.first(index, width)..], [tokens, channels], width);
            let mut grads = [(); 3].map(|()| Scratch::new(tokens * channels));
            grads[1].fill(0.0);
            grads[2].fill(0.0);
            let [query, key, value] = grads.each_mut().map(|grads| &mut **grads);
            packed.head(&parts).backward(grad, [query, key, value], None);
            let mut sums = vec![0.0; 2 * channels + 1];
            let (bias_sums, sharpness_sum) = sums.split_at_mut(2 * channels);
            let (q_sum, v_sum) = bias_sums.split_at_mut(channels);
            for token in 0..tokens {
                let row = token * channels..(token + 1) * channels;
                let [query, key, value] = [0, 1, 2].map(|part| {
                    let first = packed.first_of(index, token) + part * width;
                    // SAFETY: the channels of this head in this row belong to no other task, and are all written below.
                    unsafe { core::slice::from_raw_parts_mut(shared.at(first), channels) }
                });
                query.copy_from_slice(&grads[0][row.clone()]);
                key.copy_from_slice(&grads[1][row.clone()]);
                value.copy_from_slice(&grads[2][row.clone()]);
                if self.rotary {
                    turn_back(packed.angles(token), query);
                    turn_back(packed.angles(token), key);
                }
                if self.scale.is_none() {
                    let sharpness = packed.sharpness(index);
                    let (unit, length) = (&parts.query[row.clone()], parts.lengths[token]);
                    sharpness_sum[0] += unit_backward(unit, sharpness, length, query);
                    unit_backward(&parts.key[row], 1.0, parts.lengths[tokens + token], key);
                }
                add(query, q_sum);
                add(value, v_sum);
            }
            sums
        });
        let sums = sums.collect::<Vec<_>>();
        // SAFETY: the tasks cover all heads of all tokens.
        unsafe { out.set_len(batch * tokens * 3 * width) };
        let total = |from: usize, len: usize| {
            let mut total = vec![0.0; self.heads * len];
            for sums in sums.chunks(self.heads) {
                for (total, sums) in total.chunks_mut(len).zip(sums) {
                    add(&sums[from..from + len], total);
                }
            }
            total
        };
        [
            wanted[0].then(|| Array::new(out, [batch, tokens, 3 * width])),
            wanted[1].then(|| Array::new(total(0, channels), [width])),
            wanted[2].then(|| Array::new(total(channels, channels), [width])),
            (wanted[3] && self.scale.is_none()).then(|| Array::new(total(2 * channels, 1), [self.heads])),
            None,
        ]
    }
}

impl SelfAttention {
    /// Computes the output for tokens that also attend to the first `held` tokens of `memory`, keys and values `[batch,
    /// heads, capacity, channels]`, off the graph; their own keys and values are appended. `vectors` are both biases
    /// and the sharpness.
    pub(in crate::ops) fn cached(
        &self,
        qkv: Tensor<3>,
        vectors: [Tensor<1>; 3],
        memory: [Tensor<4>; 2],
        held: usize,
    ) -> (Tensor<3>, [Tensor<4>; 2]) {
        let _span = span::<Self>("forward");
        let [q_bias, v_bias, sharpness] = vectors.map(Array::from);
        let inputs = [qkv.into(), q_bias, v_bias, sharpness, Array::new(Vec::new(), [0])];
        let packed = Packed::new(self, &inputs);
        let Packed { batch, tokens, width, channels, .. } = packed;
        let mut memory = memory.map(Array::from);
        let [_, _, capacity, _] = memory[0].dims();
        let (first, all) = (held * channels, held + tokens);
        assert!(all <= capacity, "cached_attention: {all} tokens in memory for {capacity}");
        for memory in &memory {
            assert_eq!(memory.dims(), [batch, self.heads, capacity, channels], "cached_attention: shape of the memory");
        }
        let mut out: Vec<f32> = Vec::with_capacity(batch * tokens * width);
        let shared = Shared::new(out.as_mut_ptr());
        let [keys, values] = memory.each_mut().map(|part| part.values_mut().par_chunks_mut(capacity * channels));
        keys.zip(values).enumerate().for_each(|(index, (key, value))| {
            let [mut query, mut lengths] = [tokens * channels, 2 * tokens].map(Scratch::new);
            packed.fill(index, [&mut query, &mut key[first..], &mut value[first..]], &mut lengths);
            let head = Head {
                query: &query,
                key,
                value,
                bias: &[],
                bias_step: 0,
                sizes: [tokens, all, channels, channels],
                scale: packed.scale(),
            };
            // SAFETY: the channels of this head, in the rows of its image, belong to no other task.
            unsafe { head.mix(shared.at(packed.first(index, width)), width) };
        });
        // SAFETY: the heads of all images cover the output.
        unsafe { out.set_len(batch * tokens * width) };
        (Array::new(out, [batch, tokens, width]).into(), memory.map(Tensor::from))
    }
}

/// Inputs of a self-attention.
struct Packed<'a> {
    kernel: &'a SelfAttention,
    qkv: &'a [f32],
    q_bias: &'a [f32],
    v_bias: &'a [f32],
    /// The sharpness of each head, or the table of positions.
    sharpness: &'a [f32],
    mask: &'a [f32],
    batch: usize,
    tokens: usize,
    width: usize,
    /// Channels of a head.
    channels: usize,
}

/// Queries, keys and values of one head, scaled and biased.
struct Parts {
    query: Scratch,
    key: Scratch,
    value: Scratch,
    /// Lengths of the queries, then of the keys, before normalization.
    lengths: Scratch,
}

impl<'a> Packed<'a> {
    /// # Panics
    /// If shapes do not fit together.
    fn new(kernel: &'a SelfAttention, inputs: &'a [Array; 5]) -> Self {
        let [batch, tokens, packed] = inputs[0].dims();
        let [qkv, q_bias, v_bias, sharpness, mask] = inputs.each_ref().map(Array::values);
        let width = packed / 3;
        assert!(
            packed == 3 * width && kernel.heads > 0 && width.is_multiple_of(kernel.heads),
            "self_attention: {packed} channels are not three times a width for {} heads",
            kernel.heads
        );
        let fits = |bias: &[f32]| bias.is_empty() || bias.len() == width;
        assert!(fits(q_bias) && fits(v_bias), "self_attention: length of a bias, width {width}");
        assert!(
            kernel.scale.is_some() || sharpness.len() == kernel.heads,
            "self_attention: a sharpness for each of {} heads",
            kernel.heads
        );
        assert!(
            !kernel.rotary || sharpness.len() == tokens * (width / kernel.heads),
            "self_attention: angles for {tokens} tokens"
        );
        assert!(
            mask.is_empty() || mask.len() == tokens * tokens,
            "self_attention: a mask of shape {:?} for {tokens} tokens",
            inputs[4].shape()
        );
        let channels = width / kernel.heads;
        Self { kernel, qkv, q_bias, v_bias, sharpness, mask, batch, tokens, width, channels }
    }

    /// Returns the offset of a head's channels in rows of `width`.
    fn first(&self, index: usize, width: usize) -> usize {
        index / self.kernel.heads * self.tokens * width + index % self.kernel.heads * self.channels
    }

    /// Returns the offset of a token's query.
    fn first_of(&self, index: usize, token: usize) -> usize {
        self.first(index, 3 * self.width) + token * 3 * self.width
    }

    /// Returns the cosines and sines of a token.
    fn angles(&self, token: usize) -> &[f32] {
        &self.sharpness[token * self.channels..][..self.channels]
    }

    fn sharpness(&self, index: usize) -> f32 {
        self.sharpness[index % self.kernel.heads]
    }

    fn parts(&self, index: usize) -> Parts {
        let len = self.tokens * self.channels;
        let [mut query, mut key, mut value] = [(); 3].map(|()| Scratch::new(len));
        let mut lengths = Scratch::new(2 * self.tokens);
        self.fill(index, [&mut query, &mut key, &mut value], &mut lengths);
        Parts { query, key, value, lengths }
    }

    /// Writes queries, keys and values, `[tokens, channels]` each, and their original lengths.
    fn fill(&self, index: usize, [queries, keys, values]: [&mut [f32]; 3], lengths: &mut [f32]) {
        let channels = index % self.kernel.heads * self.channels..(index % self.kernel.heads + 1) * self.channels;
        let [q_bias, v_bias] = [self.q_bias, self.v_bias].map(|bias| bias.get(channels.clone()).unwrap_or_default());
        for token in 0..self.tokens {
            let row = token * self.channels..(token + 1) * self.channels;
            let [query, key, value] =
                [0, 1, 2].map(|part| &self.qkv[self.first_of(index, token) + part * self.width..][..self.channels]);
            queries[row.clone()].copy_from_slice(query);
            add(q_bias, &mut queries[row.clone()]);
            keys[row.clone()].copy_from_slice(key);
            values[row.clone()].copy_from_slice(value);
            add(v_bias, &mut values[row.clone()]);
            if self.kernel.rotary {
                turn(self.angles(token), &mut queries[row.clone()]);
                turn(self.angles(token), &mut keys[row.clone()]);
            }
            if self.kernel.scale.is_none() {
                lengths[token] = to_length(self.sharpness(index), &mut queries[row.clone()]);
                lengths[self.tokens + token] = to_length(1.0, &mut keys[row]);
            }
        }
    }

    fn head<'b>(&'b self, parts: &'b Parts) -> Head<'b> {
        Head {
            query: &parts.query,
            key: &parts.key,
            value: &parts.value,
            bias: self.mask,
            bias_step: self.tokens,
            sizes: [self.tokens, self.tokens, self.channels, self.channels],
            scale: self.scale(),
        }
    }

    fn scale(&self) -> f32 {
        self.kernel.scale.unwrap_or(1.0)
    }
}

vectorized! {
    /// Scales a vector to a length, and returns its original length.
    fn to_length(length: f32, x: &mut [f32]) -> f32 {
        let [square] = sums(x, x, |x, _| [x * x]);
        let before = (square.sqrt() as f32).max(EPSILON);
        let factor = length / before;
        for x in x.iter_mut() {
            *x *= factor;
        }
        before
    }

    /// Turns pairs of adjacent values by angles, given their cosines and sines.
    fn turn(angles: &[f32], x: &mut [f32]) {
        for (pair, angle) in x.as_chunks_mut::<2>().0.iter_mut().zip(angles.as_chunks::<2>().0) {
            let ([a, b], [cos, sin]) = (*pair, *angle);
            *pair = [a * cos - b * sin, b * cos + a * sin];
        }
    }

    /// Turns the gradient of the output of [`turn`] into that of its input.
    fn turn_back(angles: &[f32], grad: &mut [f32]) {
        for (pair, angle) in grad.as_chunks_mut::<2>().0.iter_mut().zip(angles.as_chunks::<2>().0) {
            let ([a, b], [cos, sin]) = (*pair, *angle);
            *pair = [a * cos + b * sin, b * cos - a * sin];
        }
    }

    /// Turns the gradient of `y = length x / before` into that of `x`, and returns that of `length`.
    fn unit_backward(y: &[f32], length: f32, before: f32, grad: &mut [f32]) -> f32 {
        let [dot] = sums(y, grad, |y, grad| [y * grad]).map(|dot| dot as f32 / length);
        // The component along the vector changes only its length, unless that is below the minimum.
        let along = if before > EPSILON { dot / length } else { 0.0 };
        let factor = length / before;
        for (grad, &y) in grad.iter_mut().zip(y) {
            *grad = (*grad - y * along) * factor;
        }
        dot
    }
}
