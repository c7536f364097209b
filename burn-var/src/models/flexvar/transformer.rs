//! The FlexVAR transformer (`models/flexvar.py` of its code): VAR's blocks, over a table of positions that is resized to
//! each scale.
#![allow(non_snake_case, reason = "fields bear the checkpoints' names")]

use burn::module::{Module, Param};
use burn::nn::{Embedding, Linear};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::require_positive;
use crate::generation::{Condition, NextScale, ScaleInput, State, TeacherForced, TeacherInput, Vocabulary};
use crate::init::{Init, initialize};
use crate::math::Resize;
use crate::models::common::trunk::{check_teacher_input, embed_classes};
use crate::models::common::{Block, BlockSizes, BlockStack, HeadNorm, Lora, LoraTarget, StackState, VarInit};
use crate::rng::Rng;
use crate::scales::ScaleAt;
use crate::{MapSize, Result, Scales, nn, ops};

/// Side of the table of positions in the published models.
pub(super) const POSITIONS: usize = 32;

/// Sizes of a [`FlexVar`]. Fields are named as in the authors' code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlexVarConfig {
    /// Number of blocks.
    pub depth: usize,
    /// Width C; in the published models 64 times the depth.
    pub embed_dim: usize,
    /// Attention heads; must divide the width.
    pub num_heads: usize,
    /// Hidden width of the feed-forward, as a multiple of the width.
    #[serde(default = "default_mlp_ratio")]
    pub mlp_ratio: f64,
    /// Epsilon of the layer norms.
    #[serde(default = "default_norm_eps")]
    pub norm_eps: f64,
    /// Shares one adaptive norm projection among all blocks.
    #[serde(default)]
    pub shared_aln: bool,
    /// Normalizes queries and keys to unit length, with a learned scale per head.
    #[serde(default = "default_attn_l2_norm")]
    pub attn_l2_norm: bool,
    /// Number of codes.
    pub vocab_size: usize,
    /// Channels of a code.
    pub z_channels: usize,
    /// Number of classes, the null class not counted.
    pub num_classes: usize,
    /// Default scale schedule. The weights depend on none.
    pub patch_nums: Scales,
    /// Side of the learned table of positions.
    #[serde(default = "default_positions")]
    pub positions: usize,
    /// Drop path rate of the last block, for training; it rises linearly from 0 at the first. 0.1 * depth / 24 in the
    /// published recipes.
    #[serde(default)]
    pub drop_path_rate: f64,
}

fn default_mlp_ratio() -> f64 {
    4.0
}

fn default_norm_eps() -> f64 {
    1e-6
}

fn default_attn_l2_norm() -> bool {
    true
}

fn default_positions() -> usize {
    POSITIONS
}

impl FlexVarConfig {
    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// [`crate::Error::Config`] naming the field, what it is, and what would be accepted.
    pub fn validate(&self) -> Result<()> {
        require_positive(&[
            ("vocab_size", self.vocab_size),
            ("z_channels", self.z_channels),
            ("num_classes", self.num_classes),
            ("positions", self.positions),
        ])?;
        self.blocks().validate(self.mlp_ratio)
    }

    /// Creates a transformer with the authors' initial weights, drawn from `seed`.
    ///
    /// # Errors
    /// The errors of [`FlexVarConfig::validate`].
    pub fn init(&self, start: VarInit, seed: u64, device: &Device) -> Result<FlexVar> {
        let sizes = self.blocks();
        Ok(initialize(self.init_zeros(device)?, seed, |param| match param.path {
            "pos_1LC" => Init::Values(sinusoid(self.embed_dim, self.positions)),
            _ => start.of(&sizes, param),
        }))
    }

    /// Creates a transformer whose weights take no memory until they are loaded.
    ///
    /// # Errors
    /// The errors of [`FlexVarConfig::validate`].
    pub fn init_zeros(&self, device: &Device) -> Result<FlexVar> {
        self.validate()?;
        let (width, sizes) = (self.embed_dim, self.blocks());
        Ok(FlexVar {
            word_embed: nn::linear(self.z_channels, width, true, device),
            class_emb: nn::embedding(self.num_classes + 1, width, device),
            pos_start: nn::zeros([1, 1, width], device),
            pos_1LC: nn::zeros([1, width, self.positions, self.positions], device),
            shared_ada_lin: self.shared_aln.then(|| nn::linear(width, 6 * width, true, device)),
            blocks: Block::stack(&sizes, device),
            head_nm: HeadNorm::new(&sizes, device),
            head: nn::linear(width, self.vocab_size, true, device),
            config: self.clone(),
        })
    }

    fn blocks(&self) -> BlockSizes {
        BlockSizes {
            depth: self.depth,
            width: self.embed_dim,
            heads: self.num_heads,
            hidden: BlockSizes::hidden(self.embed_dim, self.mlp_ratio),
            norm_eps: self.norm_eps,
            shared_aln: self.shared_aln,
            attn_l2_norm: self.attn_l2_norm,
            drop_path_rate: self.drop_path_rate,
        }
    }
}

/// Returns the initial table of positions, `[1, width, side, side]`: `sin(y w_j)` in channel 2j and `cos(x w_j)` in channel
/// 2j + 1, with `w_j = 10000^(-2j / width)`. Not the usual two-dimensional sinusoid, which has both of each; training
/// changes it.
fn sinusoid(width: usize, side: usize) -> Vec<f32> {
    let mut table = Vec::with_capacity(width * side * side);
    for channel in 0..width {
        let frequency = 10000f64.powf(-((channel / 2 * 2) as f64) / width as f64);
        for y in 0..side {
            for x in 0..side {
                let value = match channel % 2 {
                    0 => (y as f64 * frequency).sin(),
                    _ => (x as f64 * frequency).cos(),
                };
                table.push(value as f32);
            }
        }
    }
    table
}

/// The FlexVAR transformer. Field names are those of the checkpoints.
#[derive(Module, Debug)]
pub struct FlexVar {
    word_embed: Linear,
    class_emb: Embedding,
    pos_start: Param<Tensor<3>>,
    /// Table of positions, `[1, width, positions, positions]`.
    pos_1LC: Param<Tensor<4>>,
    shared_ada_lin: Option<Linear>,
    blocks: Vec<Block>,
    head_nm: HeadNorm,
    head: Linear,
    #[module(skip)]
    config: FlexVarConfig,
}

impl FlexVar {
    /// Returns the sizes.
    pub fn config(&self) -> &FlexVarConfig {
        &self.config
    }

    /// Returns the positions of a token map, `[1, tokens, width]`: the table, area-resized to its size.
    pub fn positions(&self, size: MapSize) -> Tensor<3> {
        Resize::Area.apply(self.pos_1LC.val(), size).flatten::<3>(2, 3).swap_dims(1, 2)
    }

    /// Computes the logits of one scale from its input and the class token alone, `[batch, tokens, vocab_size]`: the pass
    /// over the model's own predictions in the released code of SAR.
    ///
    /// `input` is `[batch, tokens, z_channels]` of a map of `size`. The class token has a position, but not the start
    /// embedding, and no scale between the two is seen: unlike generation, in both.
    ///
    /// # Errors
    /// The errors of [`TeacherForced::teacher_forced`].
    pub fn class_and_scale(
        &self,
        conditions: &[Condition],
        input: Tensor<3>,
        size: MapSize,
        noise: Option<&mut [Rng]>,
    ) -> Result<Tensor<3>> {
        let scales = Scales::new(vec![MapSize::square(1), size])?;
        check_teacher_input(conditions, &scales, &input, self.config.z_channels, noise.as_deref())?;
        let state = self.start(conditions, &scales)?;
        let class = state.stack.condition.clone().unsqueeze_dim(1);
        let x = Tensor::cat(vec![class, nn::apply(&self.word_embed, input)], 1) + state.positions.clone();
        let mask = ops::block_causal_mask(&scales, &x.device());
        let logits = self.stack().teacher_forced(&state.stack, x, &mask, noise);
        Ok(logits.narrow(1, 1, size.area()))
    }

    /// Returns the first scale's tokens without positions, `[batch, tokens, width]`: class embedding plus start embedding,
    /// the same for each of them.
    fn start_tokens(&self, state: &FlexVarState, tokens: usize) -> Tensor<3> {
        let token = state.stack.condition.clone().unsqueeze_dim::<3>(1) + self.pos_start.val();
        if tokens == 1 { token } else { token.repeat_dim(1, tokens) }
    }

    fn stack(&self) -> BlockStack<'_> {
        BlockStack {
            blocks: &self.blocks,
            shared_ada_lin: self.shared_ada_lin.as_ref(),
            head_nm: &self.head_nm,
            head: &self.head,
            norm_eps: self.config.norm_eps,
        }
    }
}

/// State of a batch of a [`FlexVar`].
#[derive(Debug, Clone)]
pub struct FlexVarState {
    /// Positions of all scales, `[1, L, width]`.
    positions: Tensor<3>,
    stack: StackState,
}

impl State for FlexVarState {
    fn sequences(&self) -> usize {
        self.stack.sequences()
    }

    fn keep_first(self, count: usize) -> Self {
        Self { stack: self.stack.keep_first(count), ..self }
    }

    fn detach(&mut self) {
        self.stack.detach();
    }
}

impl NextScale for FlexVar {
    type State = FlexVarState;

    fn scales(&self) -> &Scales {
        &self.config.patch_nums
    }

    fn vocabulary(&self) -> Vocabulary {
        Vocabulary::codes(self.config.vocab_size)
    }

    fn num_classes(&self) -> usize {
        self.config.num_classes
    }

    fn code_embedding(&self) -> Option<&Linear> {
        Some(&self.word_embed)
    }

    /// Accepts any schedule: positions are resized to each scale.
    fn check_scales(&self, _scales: &Scales) -> Result<()> {
        Ok(())
    }

    fn start(&self, conditions: &[Condition], scales: &Scales) -> Result<FlexVarState> {
        let condition = embed_classes(&self.class_emb, conditions, self.config.num_classes)?;
        let positions = scales.sizes().iter().map(|size| self.positions(*size)).collect();
        Ok(FlexVarState { positions: Tensor::cat(positions, 1), stack: self.stack().start(condition, scales.tokens()) })
    }

    fn embed(&self, state: &FlexVarState, at: ScaleAt<'_>, input: ScaleInput<'_>) -> Tensor<3> {
        let range = at.range();
        let positions = state.positions.clone().narrow(1, range.start, range.len());
        let tokens = match at.is_first() {
            true => self.start_tokens(state, range.len()),
            false => nn::apply(&self.word_embed, input.map.flatten::<3>(2, 3).swap_dims(1, 2)),
        };
        tokens + positions
    }

    fn step(&self, state: &mut FlexVarState, _at: ScaleAt<'_>, hidden: Tensor<3>) -> Tensor<3> {
        self.stack().step(&mut state.stack, hidden)
    }
}

impl TeacherForced for FlexVar {
    fn teacher_forced(
        &self,
        conditions: &[Condition],
        input: impl Into<TeacherInput>,
        scales: &Scales,
        noise: Option<&mut [Rng]>,
    ) -> Result<Tensor<3>> {
        let input = input.into().codes;
        check_teacher_input(conditions, scales, &input, self.config.z_channels, noise.as_deref())?;
        let state = self.start(conditions, scales)?;
        let start = self.start_tokens(&state, scales.size(0).area());
        let x = match scales.len() {
            1 => start,
            _ => Tensor::cat(vec![start, nn::apply(&self.word_embed, input)], 1),
        };
        let x = x + state.positions.clone();
        let mask = ops::block_causal_mask(scales, &x.device());
        Ok(self.stack().teacher_forced(&state.stack, x, &mask, noise))
    }
}

impl LoraTarget for FlexVar {
    fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    fn blocks_mut(&mut self) -> &mut [Block] {
        &mut self.blocks
    }

    fn adapt(state: &mut FlexVarState, lora: Lora) {
        state.stack.adapt(lora);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::flexvar::FlexVarPreset;

    #[test]
    fn published_sizes_have_their_number_of_parameters() {
        let counts = [315.6, 607.5, 1041.3];
        for (preset, millions) in FlexVarPreset::ALL.into_iter().zip(counts) {
            let model = preset.config().init_zeros(&Device::flex()).unwrap();
            let found = crate::weights::export(&model, &<FlexVar as crate::weights::Pretrained>::keys(model.config()));
            let found = found.unwrap();
            let count: usize = found.keys().map(|key| found.shape(key).unwrap().iter().product::<usize>()).sum();
            assert_eq!((count as f64 / 1e5).round() / 10.0, millions, "million parameters of {}", preset.name());
        }
    }
}
