//! Layers of LlamaGen (`autoregressive/models/gpt.py` of its code): attention with rotary positions and a gated
//! feed-forward, each behind a norm. No layer has a bias.

use burn::module::{Initializer, Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};

use super::LlamaGenConfig;
use super::lora::LayerLora;
use crate::models::common::attention::Context;
use crate::models::common::dropout::{drop_path, dropout};
use crate::models::common::lora::adapted;
use crate::ops::QueryKeys;
use crate::rng::Rng;
use crate::{nn, ops};

/// Division by the root mean square of the channels, and a learned weight.
#[derive(Module, Debug)]
pub(super) struct RmsNorm {
    /// `[channels]`.
    weight: Param<Tensor<1>>,
    epsilon: f64,
}

impl RmsNorm {
    pub(super) fn new(config: &LlamaGenConfig, device: &Device) -> Self {
        Self { weight: Initializer::Ones.init([config.dim], device), epsilon: config.norm_eps }
    }

    pub(super) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        ops::rms_norm(x, self.weight.val(), self.epsilon)
    }
}

/// Attention in which several heads of queries can share one of keys and values.
#[derive(Module, Debug)]
struct Attention {
    /// Joint projection to queries, keys and values.
    wqkv: Linear,
    wo: Linear,
    heads: usize,
    head_dim: usize,
}

impl Attention {
    /// Computes attention over `[batch, tokens, dim]`; `positions` is the rows of the rotary table for these tokens.
    fn forward(
        &self,
        x: Tensor<3>,
        positions: &Tensor<2>,
        context: Context<'_>,
        lora: Option<&LayerLora>,
    ) -> Tensor<3> {
        let scale = 1.0 / (self.head_dim as f64).sqrt();
        let query_keys = QueryKeys::Rotary { scale, table: positions.clone() };
        let qkv = adapted(&self.wqkv, lora.map(|lora| &lora.wqkv), x);
        let mixed = match context {
            Context::Masked(mask) => ops::self_attention(qkv, None, self.heads, query_keys, Some(mask.clone())),
            Context::Cached(cache) => ops::cached_attention(qkv, None, self.heads, query_keys, cache),
        };
        adapted(&self.wo, lora.map(|lora| &lora.wo), mixed)
    }
}

/// `w2(silu(w1 x) * w3 x)`.
#[derive(Module, Debug)]
struct FeedForward {
    w1: Linear,
    w3: Linear,
    w2: Linear,
}

impl FeedForward {
    fn forward(&self, x: Tensor<3>, lora: Option<&LayerLora>) -> Tensor<3> {
        let gate = adapted(&self.w1, lora.map(|lora| &lora.w1), x.clone());
        let h = ops::swiglu(gate, adapted(&self.w3, lora.map(|lora| &lora.w3), x));
        adapted(&self.w2, lora.map(|lora| &lora.w2), h)
    }
}

/// One layer. Field names are those of the checkpoints.
#[derive(Module, Debug)]
pub(super) struct Layer {
    attention: Attention,
    feed_forward: FeedForward,
    attention_norm: RmsNorm,
    ffn_norm: RmsNorm,
    resid_dropout: f64,
    ffn_dropout: f64,
    drop_path: f64,
}

impl Layer {
    pub(super) fn new(config: &LlamaGenConfig, index: usize, device: &Device) -> Self {
        let linear = |input, output| nn::linear(input, output, false, device);
        let (dim, hidden, head_dim) = (config.dim, config.ffn_hidden, config.head_dim());
        Self {
            attention: Attention {
                wqkv: linear(dim, (config.n_head + 2 * config.kv_heads()) * head_dim),
                wo: linear(dim, dim),
                heads: config.n_head,
                head_dim,
            },
            feed_forward: FeedForward { w1: linear(dim, hidden), w3: linear(dim, hidden), w2: linear(hidden, dim) },
            attention_norm: RmsNorm::new(config, device),
            ffn_norm: RmsNorm::new(config, device),
            resid_dropout: config.resid_dropout_p,
            ffn_dropout: config.ffn_dropout_p,
            drop_path: match config.n_layer {
                1 => 0.0,
                layers => config.drop_path_rate * index as f64 / (layers - 1) as f64,
            },
        }
    }

    /// Computes the layer over `[batch, tokens, dim]`. With `noise`, one stream per image, dropout and drop path are enabled.
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        positions: &Tensor<2>,
        context: Context<'_>,
        lora: Option<&LayerLora>,
        mut noise: Option<&mut [Rng]>,
    ) -> Tensor<3> {
        let h = self.attention.forward(self.attention_norm.forward(x.clone()), positions, context, lora);
        let h = dropout(h, self.resid_dropout, noise.as_deref_mut());
        let x = x + drop_path(h, self.drop_path, noise.as_deref_mut());
        let h = self.feed_forward.forward(self.ffn_norm.forward(x.clone()), lora);
        let h = dropout(h, self.ffn_dropout, noise.as_deref_mut());
        x + drop_path(h, self.drop_path, noise)
    }

    /// Merges an update into the weights.
    pub(super) fn merge(&mut self, change: &LayerLora) {
        let (attention, feed_forward) = (&mut self.attention, &mut self.feed_forward);
        let each = [
            (&mut attention.wqkv, &change.wqkv),
            (&mut attention.wo, &change.wo),
            (&mut feed_forward.w1, &change.w1),
            (&mut feed_forward.w3, &change.w3),
            (&mut feed_forward.w2, &change.w2),
        ];
        for (linear, change) in each {
            *linear = change.merged(linear.clone());
        }
    }
}
