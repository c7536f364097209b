//! The VAR transformer (`models/var.py`, `models/basic_var.py` of VAR's code).
#![allow(non_snake_case, reason = "fields bear the checkpoints' names")]

use burn::module::{Module, Param};
use burn::nn::{Embedding, Linear};
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::error::require_positive;
use crate::generation::{Condition, NextScale, ScaleInput, State, Vocabulary};
use crate::init::{Init, initialize};
use crate::models::common::{Block, BlockSizes, BlockStack, HeadNorm, Lora, LoraTarget, StackState};
use crate::rng::Rng;
use crate::scales::ScaleAt;
use crate::{Error, Result, Scales, nn, ops};

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

/// Constants of the authors' initialization.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VarInit {
    /// Factor of the adaptive norms' scales and shifts.
    pub aln: f64,
    /// Factor of the gates: 1e-3 for d16 and d20, down to 5e-6 for d36.
    pub alng: f64,
    /// Factor of the head's weights.
    pub head: f64,
}

impl Default for VarInit {
    fn default() -> Self {
        Self { aln: 0.5, alng: 1e-3, head: 0.02 }
    }
}

impl VarConfig {
    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field, what it is, and what would be accepted.
    pub fn validate(&self) -> Result<()> {
        let positive = [
            ("depth", self.depth),
            ("embed_dim", self.embed_dim),
            ("num_heads", self.num_heads),
            ("vocab_size", self.vocab_size),
            ("z_channels", self.z_channels),
            ("num_classes", self.num_classes),
        ];
        require_positive(&positive)?;
        if !self.embed_dim.is_multiple_of(self.num_heads) {
            return Err(Error::config(
                "num_heads",
                self.num_heads,
                format!("a divisor of embed_dim {}", self.embed_dim),
            ));
        }
        if !(self.mlp_ratio.is_finite() && self.hidden() > 0) {
            return Err(Error::config("mlp_ratio", self.mlp_ratio, "a positive number"));
        }
        if !(0.0..1.0).contains(&self.drop_path_rate) {
            return Err(Error::config("drop_path_rate", self.drop_path_rate, "a fraction in 0..1"));
        }
        Ok(())
    }

    /// Returns the hidden width of the feed-forward.
    pub fn hidden(&self) -> usize {
        (self.embed_dim as f64 * self.mlp_ratio).round() as usize
    }

    /// Creates a transformer with the authors' initial weights, drawn from `seed`.
    ///
    /// # Errors
    /// The errors of [`VarConfig::validate`].
    pub fn init(&self, start: VarInit, seed: u64, device: &Device) -> Result<Var> {
        let width = self.embed_dim;
        let std = (1.0 / (3.0 * width as f64)).sqrt();
        let branch = std / (2.0 * self.depth as f64).sqrt();
        let packed = |std: f64| Init::NormalRuns(vec![(2 * width, std * start.alng), (4 * width, std * start.aln)]);
        Ok(initialize(self.init_zeros(device)?, seed, |param| match param.path {
            path if path.ends_with("scale_mul_1H11") => Init::Constant(4f64.ln()),
            path if path.ends_with("ada_gss") => packed((1.0 / width as f64).sqrt()),
            path if path.ends_with("bias") => Init::Keep,
            "head.weight" => Init::Normal(std * start.head),
            "head_nm.ada_lin.weight" => Init::Normal(std * start.aln),
            "shared_ada_lin.weight" => Init::Normal(std),
            path if path.ends_with("attn.proj.weight") || path.ends_with("ffn.fc2.weight") => Init::Normal(branch),
            path if path.ends_with("ada_lin.weight") => packed(std),
            _ => Init::Normal(std),
        }))
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

    /// Computes teacher-forced logits of all scales at once, `[batch, L, vocab_size]`.
    ///
    /// `input` is [`crate::Tokenizer::teacher_input`], `[batch, L - first, z_channels]`. With `noise`, one stream per
    /// image, drop path is enabled. The caller drops conditions, see [`drop_labels`].
    ///
    /// # Errors
    /// [`Error::Label`] for an unknown class, [`Error::Shape`] if conditions, input or noise do not fit each other.
    pub fn teacher_forced(
        &self,
        conditions: &[Condition],
        input: Tensor<3>,
        noise: Option<&mut [Rng]>,
    ) -> Result<Tensor<3>> {
        let scales = &self.config.patch_nums;
        let state = self.start(conditions, scales)?;
        let first = scales.size(0).area();
        let expected = [conditions.len(), scales.tokens() - first, self.config.z_channels];
        if input.dims() != expected {
            return Err(Error::shape("teacher input", format!("{expected:?}"), input.dims()));
        }
        if let Some(noise) = &noise
            && noise.len() != conditions.len()
        {
            return Err(Error::shape("noise", format!("{} streams, one per image", conditions.len()), [noise.len()]));
        }
        let start = self.start_tokens(&state);
        let x = if scales.len() == 1 { start } else { Tensor::cat(vec![start, self.embed_codes(input)], 1) };
        let x = x + state.positions.clone();
        let mask = ops::block_causal_mask(scales, &x.device());
        Ok(self.stack().teacher_forced(&state.stack, x, &mask, noise))
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
        if conditions.is_empty() {
            return Err(Error::shape("conditions", "at least one image", [0]));
        }
        let rows = Condition::class_rows(conditions, self.config.num_classes)?;
        let device = self.pos_start.val().device();
        let row = |ids: Vec<usize>| {
            let (count, ids) = (ids.len(), ids.into_iter().map(|id| id as i64).collect::<Vec<_>>());
            Tensor::<2, Int>::from_data(TensorData::new(ids, [1, count]), &device)
        };
        let condition = self.class_emb.forward(row(rows)).squeeze_dim::<2>(0); // [batch, width]
        Ok(VarState {
            positions: self.lvl_embed.forward(row(scales.levels())) + self.pos_1LC.val(),
            stack: self.stack().start(condition, scales.tokens()),
        })
    }

    fn embed(&self, state: &VarState, at: ScaleAt<'_>, input: ScaleInput<'_>) -> Tensor<3> {
        let range = at.range();
        let positions = state.positions.clone().narrow(1, range.start, range.len());
        let tokens = match at.is_first() {
            true => self.start_tokens(state),
            false => self.embed_codes(input.map.flatten::<3>(2, 3).swap_dims(1, 2)), // [batch, tokens, width]
        };
        tokens + positions
    }

    fn step(&self, state: &mut VarState, _at: ScaleAt<'_>, hidden: Tensor<3>) -> Tensor<3> {
        self.stack().step(&mut state.stack, hidden)
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
}

/// Replaces class labels by the null condition with probability `rate` (0.1 in the published recipe), so that the model
/// learns both branches of classifier-free guidance. `rngs` holds one stream per image.
pub fn drop_labels(labels: &[usize], rate: f64, rngs: &mut [Rng]) -> Vec<Condition> {
    let drop = |(label, rng): (&usize, &mut Rng)| {
        if rng.uniform() < rate { Condition::Null } else { Condition::Class(*label) }
    };
    labels.iter().zip(rngs).map(drop).collect()
}
