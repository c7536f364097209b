//! A transformer block as one operation of the graph: Burn's graph would launch each part of the backward pass of each
//! operation by itself, and add the gradients of the parts of a projection one by one.

use burn::backend::DispatchTensor;
use burn::tensor::Tensor;

use super::bridge::{self, Recorded};
use super::{
    append, gate_backward, gelu, gelu_backward, masked_softmax, modulated_norm, norm_backward, residual_norm,
    softmax_backward,
};
use super::{norm_columns, split_backward};
use crate::ops::modulation::{Branch, Rows};
use crate::ops::precision::Form;
use crate::ops::{swap, transpose};

/// Weights of a block.
#[derive(Debug, Clone)]
pub(crate) struct BlockWeights {
    /// Projection to queries, keys and values, `[width, 3 * width]`.
    pub(crate) qkv: Tensor<2>,
    /// Biases of queries and values, `[width]` each.
    pub(crate) biases: [Tensor<1>; 2],
    /// Logarithm of the sharpness of each head, `[1, heads, 1, 1]`.
    pub(crate) sharpness: Tensor<4>,
    /// Output projection of attention, both layers of the feed-forward: weight and bias of each.
    pub(crate) layers: [(Tensor<2>, Tensor<1>); 3],
}

/// The block.
#[derive(Debug, Clone)]
struct Block {
    /// Added to the scores, `[1, 1, tokens, tokens]`.
    mask: Tensor<4>,
    epsilon: f64,
    /// Form of the products, in the backward pass too.
    form: Form,
}

/// Values that the backward pass reads. Norms, GELU and the shares of attention are computed again: memory bounds the batch,
/// and the shares of all keys for all queries are most of it.
#[derive(Debug, Clone)]
struct Saved {
    x: Tensor<3>,
    packed: Tensor<2>,
    weights: BlockWeights,
    joint: Tensor<2>,
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mixed: Tensor<2>,
    attended: Tensor<3>,
    middle: Tensor<3>,
    inner: Tensor<2>,
    fed: Tensor<3>,
}

/// Computes a block on tensors of a GPU that are on the graph: `x`, `[batch, tokens, width]`, and the projection of the
/// condition, `[batch, 6 * width]`, to the output, `[batch, tokens, width]`.
pub(crate) fn block(
    x: Tensor<3>,
    packed: Tensor<2>,
    weights: BlockWeights,
    mask: Tensor<4>,
    epsilon: f64,
) -> Tensor<3> {
    let form = Form::of(&x);
    // A constant, which must not end up in the graph.
    let mask = if mask.device().is_autodiff() { mask.inner() } else { mask };
    let BlockWeights { qkv, biases: [q_bias, v_bias], sharpness, layers } = weights;
    let [(w0, b0), (w1, b1), (w2, b2)] = layers;
    let inputs = [
        x.into_dispatch(),
        packed.into_dispatch(),
        qkv.into_dispatch(),
        q_bias.into_dispatch(),
        v_bias.into_dispatch(),
        sharpness.into_dispatch(),
        w0.into_dispatch(),
        b0.into_dispatch(),
        w1.into_dispatch(),
        b1.into_dispatch(),
        w2.into_dispatch(),
        b2.into_dispatch(),
    ];
    bridge::run(Block { mask, epsilon, form }, inputs)
}

impl Block {
    /// Computes the share that each query takes of each value, `[batch, heads, tokens, tokens]`.
    fn shares(&self, query: &Tensor<4>, key: &Tensor<4>) -> Tensor<4> {
        let scores = self.form.product(query.clone(), transpose(key.clone()));
        masked_softmax(scores, Some(self.mask.clone()))
    }
}

impl Recorded<12> for Block {
    type Saved = Saved;

    fn forward(&self, inputs: [DispatchTensor; 12]) -> (DispatchTensor, Saved) {
        let [x, packed, qkv, q_bias, v_bias, sharpness, w0, b0, w1, b1, w2, b2] = inputs;
        let x = Tensor::<3>::from_dispatch(x);
        let packed = Tensor::<2>::from_dispatch(packed);
        let weights = BlockWeights {
            qkv: Tensor::from_dispatch(qkv),
            biases: [q_bias, v_bias].map(Tensor::from_dispatch),
            sharpness: Tensor::from_dispatch(sharpness),
            layers: [(w0, b0), (w1, b1), (w2, b2)].map(|(w, b)| (Tensor::from_dispatch(w), Tensor::from_dispatch(b))),
        };
        let [batch, tokens, width] = x.dims();
        let heads = weights.sharpness.dims()[1];
        let [gamma1, gamma2, scale1, scale2, shift1, shift2] = Rows::split(packed.clone());
        let flat = |x: Tensor<3>| x.reshape([batch * tokens, width]);
        let [(w0, b0), (w1, b1), (w2, b2)] = weights.layers.clone();

        let normed = modulated_norm(x.clone(), [&scale1, &shift1], self.epsilon);
        let joint = self.form.product(flat(normed), weights.qkv.clone());
        let empty = || Tensor::<4>::empty([batch, heads, tokens, width / heads], &x.device());
        let log = weights.sharpness.clone().flatten::<1>(0, 3);
        let as_sequence = joint.clone().reshape([batch, tokens, 3 * width]);
        let (query, [key, value]) =
            append(as_sequence, Some(weights.biases.clone()), Some((log, true)), [empty(), empty()], 0);
        let shares = self.shares(&query, &key);
        let mixed = swap(self.form.product(shares, value.clone()), 1, 2).reshape([batch * tokens, width]);
        let attended = self.form.product(mixed.clone(), w0).reshape([batch, tokens, width]);
        let branch = Branch { value: attended.clone(), bias: Some(b0) };
        let (middle, normed) = residual_norm(x.clone(), branch, &gamma1, [&scale2, &shift2], self.epsilon);
        let inner = self.form.product(flat(normed), w1);
        let active = gelu(inner.clone(), b1);
        let fed = self.form.product(active, w2).reshape([batch, tokens, width]);
        let out = middle.clone() + (fed.clone() + b2.unsqueeze::<3>()) * gamma2.tensor();
        let saved = Saved { x, packed, weights, joint, query, key, value, mixed, attended, middle, inner, fed };
        (out.into_dispatch(), saved)
    }

    fn backward(&self, saved: Saved, grad: DispatchTensor, _: [bool; 12]) -> [Option<DispatchTensor>; 12] {
        let grad = Tensor::<3>::from_dispatch(grad);
        let Saved { x, packed, weights, joint, query, key, value, mixed, attended, middle, inner, fed } = saved;
        let [batch, tokens, width] = x.dims();
        let rows = batch * tokens;
        let heads = weights.sharpness.dims()[1];
        let [gamma1, gamma2, scale1, scale2, shift1, shift2] = Rows::split(packed);
        let flat = |x: Tensor<3>| x.reshape([rows, width]);
        let deep = |x: Tensor<2>| x.reshape([batch, tokens, width]);
        let over_rows = |x: Tensor<2>| x.sum_dim(0).squeeze_dim::<1>(0);
        let [(w0, b0), (w1, b1), (w2, b2)] = weights.layers;

        let (d_fed, d_gamma2, d_b2) = gate_backward(grad.clone(), fed, b2, &gamma2);
        let d_fed = flat(d_fed);
        let [d_inner, active] = gelu_backward(inner, b1, self.form.product(d_fed.clone(), transpose(w2)));
        let d_w2 = self.form.product(transpose(active), d_fed);
        let normed = flat(modulated_norm(middle.clone(), [&scale2, &shift2], self.epsilon));
        let d_w1 = self.form.product(transpose(normed), d_inner.clone());
        let d_b1 = over_rows(d_inner.clone());
        let d_normed = deep(self.form.product(d_inner, transpose(w1)));
        let (d_middle, moments) = norm_backward(middle.clone(), d_normed.clone(), grad, &scale2, self.epsilon);
        let (d_scale2, d_shift2) = norm_columns(middle, d_normed, moments);

        let (d_attended, d_gamma1, d_b0) = gate_backward(d_middle.clone(), attended, b0, &gamma1);
        let d_attended = flat(d_attended);
        let d_mixed = self.form.product(d_attended.clone(), transpose(w0));
        let d_w0 = self.form.product(transpose(mixed), d_attended);
        let d_mixed = swap(d_mixed.reshape([batch, tokens, heads, width / heads]), 1, 2);
        let shares = self.shares(&query, &key);
        let d_value = self.form.product(transpose(shares.clone()), d_mixed.clone());
        let d_scores = softmax_backward(shares, self.form.product(d_mixed, transpose(value)));
        let d_query = self.form.product(d_scores.clone(), key);
        let d_key = self.form.product(transpose(d_scores), query);
        let log = weights.sharpness.clone().flatten::<1>(0, 3);
        let [q_bias, _] = weights.biases;
        let (d_joint, d_log) = split_backward(joint, q_bias, log, [d_query, d_key, d_value]);
        let d_log = over_rows(d_log).reshape([1, heads, 1, 1]);
        let d_biases = over_rows(d_joint.clone());
        let [d_q_bias, d_v_bias] = [0, 2].map(|part| d_biases.clone().narrow(0, part * width, width));
        let normed = flat(modulated_norm(x.clone(), [&scale1, &shift1], self.epsilon));
        let d_qkv = self.form.product(transpose(normed), d_joint.clone());
        let d_normed = deep(self.form.product(d_joint, transpose(weights.qkv)));
        let (d_x, moments) = norm_backward(x.clone(), d_normed.clone(), d_middle, &scale1, self.epsilon);
        let (d_scale1, d_shift1) = norm_columns(x, d_normed, moments);

        let d_packed = Tensor::cat(vec![d_gamma1, d_gamma2, d_scale1, d_scale2, d_shift1, d_shift2], 1);
        [
            d_x.into_dispatch(),
            d_packed.into_dispatch(),
            d_qkv.into_dispatch(),
            d_q_bias.into_dispatch(),
            d_v_bias.into_dispatch(),
            d_log.into_dispatch(),
            d_w0.into_dispatch(),
            over_rows(d_b0).into_dispatch(),
            d_w1.into_dispatch(),
            d_b1.into_dispatch(),
            d_w2.into_dispatch(),
            over_rows(d_b2).into_dispatch(),
        ]
        .map(Some)
    }
}
