//! Self-attention of VAR: queries and keys of length one with a learned sharpness a head, or plain.
#![allow(non_snake_case, reason = "fields bear the checkpoints' names")]

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};

use super::VarConfig;
use super::lora::{BlockLora, adapted};
use crate::ops::{KvCache, QueryKeys};
use crate::{nn, ops};

/// What tokens see besides one another.
#[derive(Debug)]
pub enum Context<'a> {
    /// The scales before: generation.
    Cached(&'a mut KvCache),
    /// All scales at once under a mask, `[1, 1, tokens, tokens]`, that is added to the scores: training.
    Masked(&'a Tensor<4>),
}

/// Multi-head self-attention. Field names are the checkpoints'.
#[derive(Module, Debug)]
pub struct Attention {
    /// Queries, keys and values in one, without bias: keys have none, the others their own.
    pub mat_qkv: Linear,
    /// `[width]`.
    pub q_bias: Param<Tensor<1>>,
    /// `[width]`.
    pub v_bias: Param<Tensor<1>>,
    /// Logarithm of each head's sharpness, `[1, heads, 1, 1]`; only with L2-normalised attention.
    pub scale_mul_1H11: Option<Param<Tensor<4>>>,
    /// Output projection.
    pub proj: Linear,
    heads: usize,
}

impl Attention {
    pub(super) fn new(config: &VarConfig, device: &Device) -> Self {
        let width = config.embed_dim;
        Self {
            mat_qkv: nn::linear(width, 3 * width, false, device),
            q_bias: nn::zeros([width], device),
            v_bias: nn::zeros([width], device),
            scale_mul_1H11: config.attn_l2_norm.then(|| nn::zeros([1, config.num_heads, 1, 1], device)),
            proj: nn::linear(width, width, true, device),
            heads: config.num_heads,
        }
    }

    /// `[batch, tokens, width]`, unchanged in shape.
    pub(super) fn forward(&self, x: Tensor<3>, context: Context<'_>, lora: Option<&BlockLora>) -> Tensor<3> {
        let [_, _, width] = x.dims();
        let query_keys = match &self.scale_mul_1H11 {
            Some(scale_mul) => QueryKeys::Unit(scale_mul.val().clamp_max(100f64.ln()).exp().reshape([self.heads])),
            None => QueryKeys::Scaled(0.25 / ((width / self.heads) as f64).sqrt()),
        };
        let qkv = adapted(&self.mat_qkv, lora.map(|lora| &lora.mat_qkv), x);
        let biases = Some([self.q_bias.val(), self.v_bias.val()]);
        let mixed = match context {
            Context::Masked(mask) => ops::self_attention(qkv, biases, self.heads, query_keys, Some(mask.clone())),
            Context::Cached(cache) => ops::cached_attention(qkv, biases, self.heads, query_keys, cache),
        };
        adapted(&self.proj, lora.map(|lora| &lora.proj), mixed)
    }
}
