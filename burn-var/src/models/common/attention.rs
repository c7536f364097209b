//! Self-attention of VAR and FlexVAR: queries and keys of length one with a learned sharpness per head, or plain.
#![allow(non_snake_case, reason = "fields bear the checkpoints' names")]

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};

use super::block::BlockSizes;
use super::lora::{BlockLora, adapted, branch};
pub use crate::ops::KvCache;
use crate::ops::{Branch, QueryKeys};
use crate::{nn, ops};

/// Tokens that a token attends to besides those of its own scale.
#[derive(Debug)]
pub enum Context<'a> {
    /// The scales before it: generation.
    Cached(&'a mut KvCache),
    /// All scales at once under an additive mask, `[1, 1, tokens, tokens]`: teacher forcing.
    Masked(&'a Tensor<4>),
}

/// Multi-head self-attention. Field names are those of the checkpoints.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// Joint projection to queries, keys and values, without bias: keys have none, queries and values have their own.
    pub mat_qkv: Linear,
    /// Bias of the queries, `[width]`.
    pub q_bias: Param<Tensor<1>>,
    /// Bias of the values, `[width]`.
    pub v_bias: Param<Tensor<1>>,
    /// Logarithm of each head's sharpness, `[1, heads, 1, 1]`; only with L2-normalized attention.
    pub scale_mul_1H11: Option<Param<Tensor<4>>>,
    /// Output projection.
    pub proj: Linear,
    heads: usize,
}

impl SelfAttention {
    pub(super) fn new(sizes: &BlockSizes, device: &Device) -> Self {
        let width = sizes.width;
        Self {
            mat_qkv: nn::linear(width, 3 * width, false, device),
            q_bias: nn::zeros([width], device),
            v_bias: nn::zeros([width], device),
            scale_mul_1H11: sizes.attn_l2_norm.then(|| nn::zeros([1, sizes.heads, 1, 1], device)),
            proj: nn::linear(width, width, true, device),
            heads: sizes.heads,
        }
    }

    /// Computes attention over `[batch, tokens, width]`.
    pub(super) fn forward(&self, x: Tensor<3>, context: Context<'_>, lora: Option<&BlockLora>) -> Branch {
        let [_, _, width] = x.dims();
        let query_keys = match &self.scale_mul_1H11 {
            Some(scale_mul) => QueryKeys::UnitLog(scale_mul.val()),
            None => QueryKeys::Scaled(0.25 / ((width / self.heads) as f64).sqrt()),
        };
        let qkv = adapted(&self.mat_qkv, lora.map(|lora| &lora.mat_qkv), x);
        let biases = Some([self.q_bias.val(), self.v_bias.val()]);
        let mixed = match context {
            Context::Masked(mask) => ops::self_attention(qkv, biases, self.heads, query_keys, Some(mask.clone())),
            Context::Cached(cache) => ops::cached_attention(qkv, biases, self.heads, query_keys, cache),
        };
        branch(&self.proj, lora.map(|lora| &lora.proj), mixed)
    }
}
