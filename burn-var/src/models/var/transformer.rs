//! The VAR transformer (`models/var.py`, `models/basic_var.py` of VAR's code).
#![allow(non_snake_case, reason = "fields bear the checkpoints' names")]

use burn::module::{Module, Param};
use burn::nn::{Embedding, Linear};
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::error::require_positive;
use crate::generation::{Condition, NextScale, ScaleInput, State, TeacherForced, TeacherInput, Vocabulary};
use crate::init::initialize;
use crate::models::common::trunk::{check_teacher_input, embed_classes};
use crate::models::common::{Block, BlockSizes, BlockStack, HeadNorm, Lora, LoraTarget, StackState, VarInit};
use crate::rng::Rng;
use crate::scales::ScaleAt;
use crate::{Result, Scales, nn, ops};

/// Sizes of a [`Var`]. Fields are named as in VAR's code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VarConfig {
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
    /// Shares one adaptive norm projection among all blocks (the 512-pixel model).
    #[serde(default)]
    pub shared_aln: bool,
    /// Normalizes queries and keys to unit length, with a learned scale per head (all published models).
    #[serde(default = "default_attn_l2_norm")]
    pub attn_l2_norm: bool,
    /// Number of codes.
    pub vocab_size: usize,
    /// Channels of a code.
    pub z_channels: usize,
    /// Number of classes, the null class not counted.
    pub num_classes: usize,
    /// Sizes of the token maps.
    pub patch_nums: Scales,
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

impl VarConfig {
    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// [`crate::Error::Config`] naming the field, what it is, and what would be accepted.
    pub fn validate(&self) -> Result<()> {
        require_positive(&[
            ("vocab_size", self.vocab_size),
            ("z_channels", self.z_channels),
            ("num_classes", self.num_classes),
        ])?;
        self.blocks().validate(self.mlp_ratio)
    }

    /// Returns the hidden width of the feed-forward.
    pub fn hidden(&self) -> usize {
        BlockSizes::hidden(self.embed_dim, self.mlp_ratio)
    }

    /// Creates a transformer with the authors' initial weights, drawn from `seed`.
    ///
    /// # Errors
    /// The errors of [`VarConfig::validate`].
    pub fn init(&self, start: VarInit, seed: u64, device: &Device) -> Result<Var> {
        let sizes = self.blocks();
        Ok(initialize(self.init_zeros(device)?, seed, |param| start.of(&sizes, param)))
    }

    /// Creates a transformer whose weights take no memory until they are loaded.
    ///
    /// # Errors
    /// The errors of [`VarConfig::validate`].
    pub fn init_zeros(&self, device: &Device) -> Result<Var> {
        self.validate()?;
        let (width, sizes) = (self.embed_dim, self.blocks());
        Ok(Var {
            word_embed: nn::linear(self.z_channels, width, true, device),
            class_emb: nn::embedding(self.num_classes + 1, width, device),
            pos_start: nn::zeros([1, self.patch_nums.size(0).area(), width], device),
            pos_1LC: nn::zeros([1, self.patch_nums.tokens(), width], device),
            lvl_embed: nn::embedding(self.patch_nums.len(), width, device),
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
            hidden: self.hidden(),
            norm_eps: self.norm_eps,
            shared_aln: self.shared_aln,
            attn_l2_norm: self.attn_l2_norm,
            drop_path_rate: self.drop_path_rate,
        }
    }
}

/// The VAR transformer. Field names are those of the checkpoints.
#[derive(Module, Debug)]
pub struct Var {
    word_embed: Linear,
    class_emb: Embedding,
    pos_start: Param<Tensor<3>>,
    pos_1LC: Param<Tensor<3>>,
    lvl_embed: Embedding,
    shared_ada_lin: Option<Linear>,
    blocks: Vec<Block>,
    head_nm: HeadNorm,
    head: Linear,
    #[module(skip)]
    config: VarConfig,
}

impl Var {
    /// Returns the sizes.
    pub fn config(&self) -> &VarConfig {
        &self.config
    }

    /// Returns the embedding of code vectors, `[.., z_channels]` to `[.., width]`, without positions.
    pub fn word_embed(&self) -> &Linear {
        &self.word_embed
    }

    /// Embeds code vectors `[batch, tokens, z_channels]`, without positions: `[batch, tokens, width]`.
    pub fn embed_codes(&self, codes: Tensor<3>) -> Tensor<3> {
        nn::apply(&self.word_embed, codes)
    }

    /// Returns the first scale's tokens: class embedding plus start embedding, `[batch, tokens, width]`.
    fn start_tokens(&self, state: &VarState) -> Tensor<3> {
        state.stack.condition.clone().unsqueeze_dim(1) + self.pos_start.val()
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

/// State of a batch of a [`Var`].
#[derive(Debug, Clone)]
pub struct VarState {
    /// Position plus level embedding of all scales, `[1, L, width]`.
    positions: Tensor<3>,
    stack: StackState,
}

impl State for VarState {
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

impl NextScale for Var {
    type State = VarState;

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

    fn start(&self, conditions: &[Condition], scales: &Scales) -> Result<VarState> {
        self.check_scales(scales)?;
        let condition = embed_classes(&self.class_emb, conditions, self.config.num_classes)?;
        let levels: Vec<i64> = scales.levels().into_iter().map(|level| level as i64).collect();
        let shape = [1, levels.len()];
        let levels = Tensor::<2, Int>::from_data(TensorData::new(levels, shape), &condition.device());
        Ok(VarState {
            positions: self.lvl_embed.forward(levels) + self.pos_1LC.val(),
            stack: self.stack().start(condition, scales.tokens()),
        })
    }

    fn embed(&self, state: &VarState, at: ScaleAt<'_>, input: ScaleInput<'_>) -> Tensor<3> {
        let range = at.range();
        let positions = state.positions.clone().narrow(1, range.start, range.len());
        let tokens = match at.is_first() {
            true => self.start_tokens(state),
            false => self.embed_codes(ops::transpose(input.map.flatten::<3>(2, 3))), // [batch, tokens, width]
        };
        tokens + positions
    }

    fn step(&self, state: &mut VarState, _at: ScaleAt<'_>, hidden: Tensor<3>) -> Tensor<3> {
        self.stack().step(&mut state.stack, hidden)
    }
}

impl TeacherForced for Var {
    fn teacher_forced(
        &self,
        conditions: &[Condition],
        input: impl Into<TeacherInput>,
        scales: &Scales,
        noise: Option<&mut [Rng]>,
    ) -> Result<Tensor<3>> {
        self.teacher_forced_from(&self.start(conditions, scales)?, input.into(), scales, noise)
    }
}

impl LoraTarget for Var {
    fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    fn blocks_mut(&mut self) -> &mut [Block] {
        &mut self.blocks
    }

    fn adapt(state: &mut VarState, lora: Lora) {
        state.stack.adapt(lora);
    }

    fn teacher_forced_from(
        &self,
        state: &VarState,
        input: TeacherInput,
        scales: &Scales,
        noise: Option<&mut [Rng]>,
    ) -> Result<Tensor<3>> {
        let input = input.codes;
        check_teacher_input(state.sequences(), scales, &input, self.config.z_channels, noise.as_deref())?;
        let start = self.start_tokens(state);
        let x = if scales.len() == 1 { start } else { Tensor::cat(vec![start, self.embed_codes(input)], 1) };
        let x = x + state.positions.clone();
        let mask = ops::scale_mask(scales, ops::Sight::Causal, &x.device());
        Ok(self.stack().teacher_forced(&state.stack, x, &mask, noise))
    }
}

/// Replaces class labels by the null condition with probability `rate` (0.1 in the published recipe), so that the model
/// learns both branches of classifier-free guidance. `rngs` holds one stream per image.
pub fn drop_labels(labels: &[usize], rate: f64, rngs: &mut [Rng]) -> Vec<Condition> {
    let drop = |(label, rng): (&usize, &mut Rng)| {
        if rng.uniform() < rate { Condition::Null } else { Condition::Class(*label) }
    };
    labels.iter().zip(rngs).map(drop).collect()
}
