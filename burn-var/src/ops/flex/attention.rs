use rayon::prelude::*;

use super::{
    bridge::{Array, Kernel},
    matrix::{View, multiply_into},
    simd::vectorised,
    softmax::{softmax_backward, softmax_inline},
};

/// Most queries at a time: their scores for all keys stay in the cache.
const MAX_BLOCK: usize = 128;

/// Attention of queries, keys, values and a bias, one head of one image per task. The backward pass forms the weights
/// again: that costs one product more and saves a tensor of `[batch, heads, queries, keys]`.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Attention {
    pub(in crate::ops) scale: f32,
}

impl Kernel<4> for Attention {
    type Saved = [Array; 4];

    fn forward(&self, inputs: [Array; 4]) -> (Array, [Array; 4]) {
        let heads = Heads::new(&inputs);
        let [batch, head_count, queries, keys] = heads.scores;
        let len = queries * heads.value_channels;
        let mut out = vec![0.0; batch * head_count * len];
        out.par_chunks_mut(len.max(1)).enumerate().for_each_init(Vec::new, |weights, (index, out)| {
            let head = heads.get(index);
            for (first, rows) in heads.blocks() {
                head.weights(first, rows, self.scale, weights);
                let out = &mut out[first * heads.value_channels..];
                multiply_into(out, View::new(weights, [rows, keys], keys), head.values(), false);
            }
        });
        (Array::new(out, [batch, head_count, queries, heads.value_channels]), inputs)
    }

    fn backward(&self, inputs: [Array; 4], grad: Array, wanted: [bool; 4]) -> [Option<Array>; 4] {
        let heads = Heads::new(&inputs);
        let [_, _, queries, keys] = heads.scores;
        let (channels, value_channels) = (heads.channels, heads.value_channels);
        let [mut query_grad, mut key_grad, mut value_grad] = [0, 1, 2].map(|i| vec![0.0; inputs[i].values().len()]);
        let outputs = query_grad
            .par_chunks_mut((queries * channels).max(1))
            .zip(key_grad.par_chunks_mut((keys * channels).max(1)))
            .zip(value_grad.par_chunks_mut((keys * value_channels).max(1)));
        let grads = grad.values().par_chunks((queries * value_channels).max(1));
        let score_grads =
            outputs.zip(grads).enumerate().map(|(index, (((query_grad, key_grad), value_grad), grad))| {
                let head = heads.get(index);
                let (mut weights, mut weight_grad) = (Vec::new(), vec![0.0; MAX_BLOCK.min(queries) * keys]);
                let mut score_grads = Vec::new();
                for (first, rows) in heads.blocks() {
                    let grad = View::new(&grad[first * value_channels..], [rows, value_channels], value_channels);
                    head.weights(first, rows, self.scale, &mut weights);
                    let score_grad = &mut weight_grad[..rows * keys];
                    multiply_into(score_grad, grad, head.values().transposed(), false);
                    for (weights, score_grad) in weights.chunks(keys).zip(score_grad.chunks_mut(keys)) {
                        softmax_backward(weights, score_grad);
                    }
                    if wanted[3] {
                        score_grads.extend_from_slice(score_grad);
                    }
                    score_grad.iter_mut().for_each(|value| *value *= self.scale);
                    let (weights, score_grad) =
                        (View::new(&weights, [rows, keys], keys), View::new(score_grad, [rows, keys], keys));
                    multiply_into(value_grad, weights.transposed(), grad, true);
                    multiply_into(key_grad, score_grad.transposed(), head.queries(first, rows), true);
                    multiply_into(&mut query_grad[first * channels..], score_grad, head.keys(), false);
                }
                score_grads
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

/// The inputs of an attention, cut into heads.
struct Heads<'a> {
    inputs: [&'a [f32]; 4],
    /// Batch, heads, queries, keys.
    scores: [usize; 4],
    /// The same of the bias, 1 where it is broadcast; never along the keys.
    bias: [usize; 4],
    channels: usize,
    value_channels: usize,
}

impl<'a> Heads<'a> {
    /// # Panics
    /// When shapes do not fit together.
    fn new(inputs: &'a [Array; 4]) -> Self {
        let [query, key, value, bias] = inputs.each_ref().map(Array::dims::<4>);
        let ([batch, heads, queries, channels], [.., keys, value_channels]) = (query, value);
        assert_eq!(key, [batch, heads, keys, channels], "attention: shape of the keys");
        assert_eq!(value, [batch, heads, keys, value_channels], "attention: shape of the values");
        let scores = [batch, heads, queries, keys];
        let fits = bias.iter().zip(scores).take(3).all(|(&bias, size)| bias == size || bias == 1) && bias[3] == keys;
        assert!(fits, "attention: a bias of shape {bias:?} does not fit scores of shape {scores:?}");
        let inputs = inputs.each_ref().map(Array::values);
        Self { inputs, scores, bias, channels, value_channels }
    }

    /// First query and size of blocks as even as can be.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize)> {
        let queries = self.scores[2];
        let rows = queries.div_ceil(queries.div_ceil(MAX_BLOCK).max(1)).max(1);
        (0..queries).step_by(rows).map(move |first| (first, rows.min(queries - first)))
    }

    fn get(&self, index: usize) -> Head<'_> {
        Head { heads: self, index }
    }

    /// Where in the bias the row of a query begins.
    fn bias_row(&self, head: usize, query: usize) -> usize {
        let position = [head / self.scores[1], head % self.scores[1], query];
        let row =
            position.iter().zip(self.bias).fold(0, |row, (&at, size)| row * size + if size == 1 { 0 } else { at });
        row * self.scores[3]
    }

    /// Sums the gradients of the scores of every head where the bias is broadcast.
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
struct Head<'a> {
    heads: &'a Heads<'a>,
    index: usize,
}

impl Head<'_> {
    fn matrix(&self, input: usize, rows: usize, columns: usize) -> View<'_> {
        View::new(&self.heads.inputs[input][self.index * rows * columns..], [rows, columns], columns)
    }

    fn queries(&self, first: usize, rows: usize) -> View<'_> {
        let Heads { inputs, scores: [_, _, queries, _], channels, .. } = self.heads;
        View::new(&inputs[0][(self.index * queries + first) * channels..], [rows, *channels], *channels)
    }

    fn keys(&self) -> View<'_> {
        self.matrix(1, self.heads.scores[3], self.heads.channels)
    }

    fn values(&self) -> View<'_> {
        self.matrix(2, self.heads.scores[3], self.heads.value_channels)
    }

    /// Attention weights of some queries: softmax of scaled products plus bias.
    fn weights(&self, first: usize, rows: usize, scale: f32, weights: &mut Vec<f32>) {
        let keys = self.heads.scores[3];
        weights.resize(rows * keys, 0.0);
        multiply_into(weights, self.queries(first, rows), self.keys().transposed(), false);
        for (row, weights) in weights.chunks_mut(keys).enumerate() {
            let bias = &self.heads.inputs[3][self.heads.bias_row(self.index, first + row)..][..keys];
            scores_to_weights(weights, scale, bias);
        }
    }
}

vectorised! {
    fn scores_to_weights(scores: &mut [f32], scale: f32, bias: &[f32]) {
        for (score, &bias) in scores.iter_mut().zip(bias) {
            *score = *score * scale + bias;
        }
        softmax_inline(scores);
    }
}
