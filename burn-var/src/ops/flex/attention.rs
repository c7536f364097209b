use rayon::prelude::*;

use super::{
    bridge::{Array, Kernel},
    matrix::{Shared, View, multiply, multiply_into},
    scratch::Scratch,
    simd::vectorized,
    softmax::{softmax_backward, softmax_inline},
};

/// Maximum number of queries at a time: their scores for all keys stay in the cache.
const MAX_BLOCK: usize = 128;

/// Attention of queries, keys, values and a bias, one head of one image per task. The backward pass recomputes the
/// attention weights: this costs one more product and saves a tensor of `[batch, heads, queries, keys]`.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Attention {
    pub(in crate::ops) scale: f32,
}

impl Kernel<4> for Attention {
    type Saved = [Array; 4];

    fn forward(&self, inputs: [Array; 4]) -> (Array, [Array; 4]) {
        let heads = Heads::new(&inputs, self.scale);
        let [batch, head_count, queries, _] = heads.scores;
        let width = head_count * heads.value_channels;
        let mut out: Vec<f32> = Vec::with_capacity(batch * queries * width);
        let shared = Shared::new(out.as_mut_ptr());
        (0..batch * head_count).into_par_iter().for_each(|index| {
            // SAFETY: the channels of this head, in the rows of its image, belong to no other task.
            unsafe { heads.get(index).mix(shared.at(heads.first_output(index)), width) };
        });
        // SAFETY: the heads of all images cover the output.
        unsafe { out.set_len(batch * queries * width) };
        (Array::new(out, [batch, queries, width]), inputs)
    }

    fn backward(&self, inputs: [Array; 4], grad: Array, wanted: [bool; 4]) -> [Option<Array>; 4] {
        let heads = Heads::new(&inputs, self.scale);
        let [_, head_count, queries, keys] = heads.scores;
        let (channels, value_channels) = (heads.channels, heads.value_channels);
        let [mut query_grad, mut key_grad, mut value_grad] = [0, 1, 2].map(|i| vec![0.0; inputs[i].values().len()]);
        let outputs = query_grad
            .par_chunks_mut((queries * channels).max(1))
            .zip(key_grad.par_chunks_mut((keys * channels).max(1)))
            .zip(value_grad.par_chunks_mut((keys * value_channels).max(1)));
        let score_grads = outputs.enumerate().map(|(index, ((query, key), value))| {
            let mut scores = Vec::new();
            let grad = &grad.values()[heads.first_output(index)..];
            let grad = View::new(grad, [queries, value_channels], head_count * value_channels);
            heads.get(index).backward(grad, [query, key, value], wanted[3].then_some(&mut scores));
            scores
        });
        let score_grads = score_grads.collect::<Vec<_>>();
        let [query, key, value, bias] = &inputs;
        [
            wanted[0].then(|| Array::new(query_grad, query.shape())),
            wanted[1].then(|| Array::new(key_grad, key.shape())),
            wanted[2].then(|| Array::new(value_grad, value.shape())),
            wanted[3].then(|| Array::new(heads.bias_gradient(&score_grads), bias.shape())),
        ]
    }
}

/// Inputs of an attention, to be split into heads.
struct Heads<'a> {
    inputs: [&'a [f32]; 4],
    scale: f32,
    /// Batch, heads, queries, keys.
    scores: [usize; 4],
    /// Shape of the bias, 1 where it is broadcast; never along the keys.
    bias: [usize; 4],
    channels: usize,
    value_channels: usize,
}

impl<'a> Heads<'a> {
    /// # Panics
    /// If shapes do not fit together.
    fn new(inputs: &'a [Array; 4], scale: f32) -> Self {
        let [query, key, value, bias] = inputs.each_ref().map(Array::dims::<4>);
        let ([batch, heads, queries, channels], [.., keys, value_channels]) = (query, value);
        assert_eq!(key, [batch, heads, keys, channels], "attention: shape of the keys");
        assert_eq!(value, [batch, heads, keys, value_channels], "attention: shape of the values");
        let scores = [batch, heads, queries, keys];
        let fits = bias == [0; 4]
            || bias.iter().zip(scores).take(3).all(|(&bias, size)| bias == size || bias == 1) && bias[3] == keys;
        assert!(fits, "attention: a bias of shape {bias:?} does not fit scores of shape {scores:?}");
        let inputs = inputs.each_ref().map(Array::values);
        Self { inputs, scale, scores, bias, channels, value_channels }
    }

    fn get(&self, index: usize) -> Head<'a> {
        let [_, _, queries, keys] = self.scores;
        let matrix = |input: usize, rows: usize, columns: usize| &self.inputs[input][index * rows * columns..];
        Head {
            query: matrix(0, queries, self.channels),
            key: matrix(1, keys, self.channels),
            value: matrix(2, keys, self.value_channels),
            bias: if self.inputs[3].is_empty() { &[] } else { &self.inputs[3][self.bias_row(index, 0)..] },
            bias_step: if self.bias[2] == 1 { 0 } else { keys },
            sizes: [queries, keys, self.channels, self.value_channels],
            scale: self.scale,
        }
    }

    /// Returns the offset of the output of a head's first query.
    fn first_output(&self, index: usize) -> usize {
        let [_, heads, queries, _] = self.scores;
        (index / heads * queries * heads + index % heads) * self.value_channels
    }

    /// Returns the offset of a query's row in the bias.
    fn bias_row(&self, head: usize, query: usize) -> usize {
        let position = [head / self.scores[1], head % self.scores[1], query];
        let row =
            position.iter().zip(self.bias).fold(0, |row, (&at, size)| row * size + if size == 1 { 0 } else { at });
        row * self.scores[3]
    }

    /// Sums the gradients of the scores over every axis where the bias is broadcast.
    fn bias_gradient(&self, score_grads: &[Vec<f32>]) -> Vec<f32> {
        let keys = self.scores[3];
        let mut out = vec![0.0; self.bias.iter().product()];
        for (head, score_grads) in score_grads.iter().enumerate() {
            for (query, row) in score_grads.chunks(keys.max(1)).enumerate() {
                let start = self.bias_row(head, query);
                out[start..start + keys].iter_mut().zip(row).for_each(|(sum, &value)| *sum += value);
            }
        }
        out
    }
}

/// One head of one image.
pub(super) struct Head<'a> {
    /// `[queries, channels]`, `[keys, channels]`, `[keys, value_channels]`.
    pub(super) query: &'a [f32],
    pub(super) key: &'a [f32],
    pub(super) value: &'a [f32],
    /// Rows added to the scores, `bias_step` apart; empty if there is no bias.
    pub(super) bias: &'a [f32],
    pub(super) bias_step: usize,
    /// Queries, keys, channels, value channels.
    pub(super) sizes: [usize; 4],
    pub(super) scale: f32,
}

impl Head<'_> {
    /// Iterates over blocks of queries of about equal size: first query and number of queries.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let queries = self.sizes[0];
        let rows = queries.div_ceil(queries.div_ceil(MAX_BLOCK).max(1)).max(1);
        (0..queries).step_by(rows).map(move |first| (first, rows.min(queries - first)))
    }

    fn keys(&self) -> View<'_> {
        View::new(self.key, [self.sizes[1], self.sizes[2]], self.sizes[2])
    }

    fn values(&self) -> View<'_> {
        View::new(self.value, [self.sizes[1], self.sizes[3]], self.sizes[3])
    }

    fn queries(&self, first: usize, rows: usize) -> View<'_> {
        View::new(&self.query[first * self.sizes[2]..], [rows, self.sizes[2]], self.sizes[2])
    }

    /// Computes the attention weights of some queries: the softmax of scaled products plus bias.
    fn weights(&self, first: usize, rows: usize) -> Scratch {
        let keys = self.sizes[1];
        let mut weights = Scratch::new(rows * keys);
        multiply_into(&mut weights, self.queries(first, rows), self.keys().transposed(), false);
        for (row, weights) in weights.chunks_mut(keys).enumerate() {
            match self.bias.is_empty() {
                true => scaled_to_weights(weights, self.scale),
                false => scores_to_weights(weights, self.scale, &self.bias[(first + row) * self.bias_step..][..keys]),
            }
        }
        weights
    }

    /// Writes the weighted values, one row per query, `row_stride` values apart.
    ///
    /// # Safety
    /// `out` must be valid for writes of these rows, and nothing else may access them meanwhile.
    pub(super) unsafe fn mix(&self, out: *mut f32, row_stride: usize) {
        for (first, rows) in self.blocks() {
            let weights = self.weights(first, rows);
            let weights = View::new(&weights, [rows, self.sizes[1]], self.sizes[1]);
            // SAFETY: rows of the output, which the caller guarantees.
            unsafe { multiply(out.wrapping_add(first * row_stride), row_stride, weights, self.values(), false) };
        }
    }

    /// Adds the gradients of keys and values to their slices, writes that of the queries, and appends that of the
    /// scores.
    pub(super) fn backward(&self, grad: View<'_>, grads: [&mut [f32]; 3], mut scores: Option<&mut Vec<f32>>) {
        let [query_grad, key_grad, value_grad] = grads;
        let [_, keys, channels, _] = self.sizes;
        for (first, rows) in self.blocks() {
            let grad = grad.rows(first..first + rows);
            let weights = self.weights(first, rows);
            let mut score_grad = Scratch::new(rows * keys);
            multiply_into(&mut score_grad, grad, self.values().transposed(), false);
            for (weights, score_grad) in weights.chunks(keys).zip(score_grad.chunks_mut(keys)) {
                softmax_backward(weights, score_grad);
            }
            if let Some(scores) = &mut scores {
                scores.extend_from_slice(&score_grad);
            }
            score_grad.iter_mut().for_each(|value| *value *= self.scale);
            let [weights, score_grad] = [&weights, &score_grad].map(|values| View::new(values, [rows, keys], keys));
            multiply_into(value_grad, weights.transposed(), grad, true);
            multiply_into(key_grad, score_grad.transposed(), self.queries(first, rows), true);
            multiply_into(&mut query_grad[first * channels..], score_grad, self.keys(), false);
        }
    }
}

vectorized! {
    fn scores_to_weights(scores: &mut [f32], scale: f32, bias: &[f32]) {
        for (score, &bias) in scores.iter_mut().zip(bias) {
            *score = *score * scale + bias;
        }
        softmax_inline::<FMA>(scores);
    }

    fn scaled_to_weights(scores: &mut [f32], scale: f32) {
        for score in scores.iter_mut() {
            *score *= scale;
        }
        softmax_inline::<FMA>(scores);
    }
}
