//! The VAR transformer (`models/var.py`, `models/basic_var.py`).
#![allow(non_snake_case, reason = "fields bear the checkpoints' names")]

use burn::module::{Module, Param};
use burn::nn::{Embedding, Linear};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::lora::{BlockLora, adapted};
use super::{Attention, BlockModulation, Context, HeadModulation, Label, NextScale, Session};
use crate::error::require_positive;
use crate::init::{Start, initialise};
use crate::ops::KvCache;
use crate::rng::Rng;
use crate::{Error, Result, Scales, nn, ops};

/// The sizes of a [`Var`]. Fields are named as in VAR's code.
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
    /// One adaptive norm projection for all blocks (the 512-pixel model), instead of one a block.
    #[serde(default)]
    pub shared_aln: bool,
    /// Queries and keys of length one, with a learned sharpness a head (all published models).
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
    /// Share of residual branches dropped in training at the last block; the first drops none. 0.1 * depth / 24 in the
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

/// The free constants of the authors' initialisation.
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
            return Err(Error::config("drop_path_rate", self.drop_path_rate, "a share in 0..1"));
        }
        Ok(())
    }

    /// Hidden width of the feed-forward.
    pub fn hidden(&self) -> usize {
        (self.embed_dim as f64 * self.mlp_ratio).round() as usize
    }

    /// A transformer with the authors' first weights, drawn from `seed`.
    ///
    /// # Errors
    /// As [`VarConfig::validate`].
    pub fn init(&self, start: VarInit, seed: u64, device: &Device) -> Result<Var> {
        let width = self.embed_dim;
        let std = (1.0 / (3.0 * width as f64)).sqrt();
        let branch = std / (2.0 * self.depth as f64).sqrt();
        let packed = |std: f64| Start::NormalRuns(vec![(2 * width, std * start.alng), (4 * width, std * start.aln)]);
        Ok(initialise(self.init_zeros(device)?, seed, |slot| match slot.path {
            path if path.ends_with("scale_mul_1H11") => Start::Constant(4f64.ln()),
            path if path.ends_with("ada_gss") => packed((1.0 / width as f64).sqrt()),
            path if path.ends_with("bias") => Start::Keep,
            "head.weight" => Start::Normal(std * start.head),
            "head_nm.ada_lin.weight" => Start::Normal(std * start.aln),
            "shared_ada_lin.weight" => Start::Normal(std),
            path if path.ends_with("attn.proj.weight") || path.ends_with("ffn.fc2.weight") => Start::Normal(branch),
            path if path.ends_with("ada_lin.weight") => packed(std),
            _ => Start::Normal(std),
        }))
    }

    /// A transformer whose weights take no memory until they are loaded.
    ///
    /// # Errors
    /// As [`VarConfig::validate`].
    pub fn init_zeros(&self, device: &Device) -> Result<Var> {
        self.validate()?;
        let width = self.embed_dim;
        Ok(Var {
            word_embed: nn::linear(self.z_channels, width, true, device),
            class_emb: nn::embedding(self.num_classes + 1, width, device),
            pos_start: nn::zeros([1, self.patch_nums.size(0).area(), width], device),
            pos_1LC: nn::zeros([1, self.patch_nums.tokens(), width], device),
            lvl_embed: nn::embedding(self.patch_nums.len(), width, device),
            shared_ada_lin: self.shared_aln.then(|| nn::linear(width, 6 * width, true, device)),
            blocks: (0..self.depth).map(|i| Block::new(self, i, device)).collect(),
            head_nm: HeadNorm { ada_lin: nn::linear(width, 2 * width, true, device) },
            head: nn::linear(width, self.vocab_size, true, device),
            config: self.clone(),
        })
    }
}

/// Two linear layers with GELU (tanh form) between.
#[derive(Module, Debug)]
pub(super) struct FeedForward {
    pub(super) fc1: Linear,
    pub(super) fc2: Linear,
}

/// Attention and feed-forward, each behind an adaptive norm and a gate.
#[derive(Module, Debug)]
pub(super) struct Block {
    pub(super) attn: Attention,
    pub(super) ffn: FeedForward,
    /// Adaptive norm of its own ...
    ada_lin: Option<Linear>,
    /// ... or an offset to the shared one, `[1, 1, 6, width]`.
    ada_gss: Option<Param<Tensor<4>>>,
    drop_path: f64,
    epsilon: f64,
}

impl Block {
    fn new(config: &VarConfig, index: usize, device: &Device) -> Self {
        let width = config.embed_dim;
        Self {
            attn: Attention::new(config, device),
            ffn: FeedForward {
                fc1: nn::linear(width, config.hidden(), true, device),
                fc2: nn::linear(config.hidden(), width, true, device),
            },
            ada_lin: (!config.shared_aln).then(|| nn::linear(width, 6 * width, true, device)),
            ada_gss: config.shared_aln.then(|| nn::zeros([1, 1, 6, width], device)),
            drop_path: match config.depth {
                1 => 0.0,
                depth => config.drop_path_rate * index as f64 / (depth - 1) as f64,
            },
            epsilon: config.norm_eps,
        }
    }

    /// `active` is SiLU of the class embedding, `[batch, width]`; `shared` the shared projection of it.
    fn modulation(&self, active: &Tensor<2>, shared: Option<&Tensor<2>>) -> BlockModulation {
        let own = self.ada_lin.as_ref().map(|ada_lin| nn::apply(ada_lin, active.clone()));
        let offset = self.ada_gss.as_ref().map(|ada_gss| ada_gss.val().flatten::<2>(0, 3).reshape([1, -1]));
        let packed = match (own, shared, offset) {
            (None, Some(shared), Some(offset)) => shared.clone() + offset,
            (Some(own), _, _) => own,
            // Which of the two a block has follows from the configuration alone.
            (None, _, _) => unreachable!("a block has an adaptive norm of its own or shares one"),
        };
        BlockModulation::from_packed(packed)
    }

    fn forward(
        &self,
        x: Tensor<3>,
        by: &BlockModulation,
        context: Context<'_>,
        lora: Option<&BlockLora>,
        drop: &mut Option<&mut [Rng]>,
    ) -> Tensor<3> {
        let h = ops::layer_norm_modulate(x.clone(), by.scale1.clone(), by.shift1.clone(), self.epsilon);
        let x = ops::gated_residual(x, self.attn.forward(h, context, lora), self.kept(by.gamma1.clone(), drop));
        let h = ops::layer_norm_modulate(x.clone(), by.scale2.clone(), by.shift2.clone(), self.epsilon);
        let h = ops::gelu_tanh(adapted(&self.ffn.fc1, lora.map(|lora| &lora.fc1), h));
        let h = adapted(&self.ffn.fc2, lora.map(|lora| &lora.fc2), h);
        ops::gated_residual(x, h, self.kept(by.gamma2.clone(), drop))
    }

    /// Drop path: closes the gates of some images' branches and opens the others wider by as much. The factor of image
    /// `i` comes from stream `i`.
    fn kept(&self, gate: Tensor<3>, drop: &mut Option<&mut [Rng]>) -> Tensor<3> {
        let Some(rngs) = drop.as_mut().filter(|_| self.drop_path > 0.0) else { return gate };
        let keep = 1.0 - self.drop_path;
        let factor = |rng: &mut Rng| if rng.uniform() < keep { (1.0 / keep) as f32 } else { 0.0 };
        let factors: Vec<f32> = rngs.iter_mut().map(factor).collect();
        let batch = factors.len();
        gate.clone() * Tensor::from_data(TensorData::new(factors, [batch, 1, 1]), &gate.device())
    }
}

/// The adaptive norm before the head.
#[derive(Module, Debug)]
struct HeadNorm {
    ada_lin: Linear,
}

/// The VAR transformer. Field names are the checkpoints'.
#[derive(Module, Debug)]
pub struct Var {
    word_embed: Linear,
    class_emb: Embedding,
    pos_start: Param<Tensor<3>>,
    pos_1LC: Param<Tensor<3>>,
    lvl_embed: Embedding,
    shared_ada_lin: Option<Linear>,
    pub(super) blocks: Vec<Block>,
    head_nm: HeadNorm,
    head: Linear,
    #[module(skip)]
    config: VarConfig,
}

impl Var {
    /// The sizes it was made with.
    pub fn config(&self) -> &VarConfig {
        &self.config
    }

    /// Code vectors as the transformer embeds them, without positions: `[batch, tokens, z_channels]` to `[batch, tokens,
    /// width]`.
    pub fn embed_codes(&self, codes: Tensor<3>) -> Tensor<3> {
        nn::apply(&self.word_embed, codes)
    }

    /// The embedding of code vectors, `[.., z_channels]` to `[.., width]`.
    pub(crate) fn word_embed(&self) -> &Linear {
        &self.word_embed
    }

    /// Teacher-forced logits of all scales at once, `[batch, L, vocab_size]`.
    ///
    /// `input` is [`crate::Tokenizer::teacher_input`], `[batch, L - first, z_channels]`. With `drop`, drop path is on;
    /// it takes one random stream per image. Labels are dropped by the caller, see
    /// [`drop_labels`](crate::transformer::drop_labels).
    ///
    /// # Errors
    /// [`Error::Label`]; [`Error::Shape`] if the input or the number of streams does not fit the labels.
    pub fn forward(&self, labels: &[Label], input: Tensor<3>, mut drop: Option<&mut [Rng]>) -> Result<Tensor<3>> {
        if let Some(rngs) = &drop
            && rngs.len() != labels.len()
        {
            return Err(Error::shape("random streams of drop path", format!("[{}]", labels.len()), [rngs.len()]));
        }
        let session = self.begin(labels)?;
        let scales = &self.config.patch_nums;
        let first = scales.size(0).area();
        let expected = [labels.len(), scales.tokens() - first, self.config.z_channels];
        if input.dims() != expected {
            return Err(Error::shape("teacher input", format!("{expected:?}"), input.dims()));
        }
        let start = self.start(&session);
        let x = if scales.len() == 1 { start } else { Tensor::cat(vec![start, nn::apply(&self.word_embed, input)], 1) };
        let mut x = x + session.positions.clone();
        let mask = block_causal_mask(scales, &x.device());
        for (block, by) in self.blocks.iter().zip(&session.blocks) {
            x = block.forward(x, by, Context::Masked(&mask), None, &mut drop);
        }
        Ok(nn::apply(&self.head, session.head.norm(x, self.config.norm_eps)))
    }

    /// The first scale's tokens: class embedding plus start embedding, `[batch, tokens, width]`.
    fn start(&self, session: &Session) -> Tensor<3> {
        session.condition.clone().unsqueeze_dim(1) + self.pos_start.val()
    }
}

impl NextScale for Var {
    fn scales(&self) -> &Scales {
        &self.config.patch_nums
    }

    fn num_classes(&self) -> usize {
        self.config.num_classes
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn begin(&self, labels: &[Label]) -> Result<Session> {
        let classes = self.config.num_classes;
        let mut ids = Vec::with_capacity(labels.len());
        for label in labels {
            match *label {
                Some(label) if label >= classes => return Err(Error::Label { label, classes }),
                label => ids.push(label.unwrap_or(classes) as i64),
            }
        }
        if ids.is_empty() {
            return Err(Error::shape("labels", "at least one picture", [0]));
        }
        let device = self.pos_start.val().device();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, labels.len()]), &device);
        let condition = self.class_emb.forward(ids).squeeze_dim::<2>(0); // [batch, width]
        let levels: Vec<i64> = self.config.patch_nums.levels().into_iter().map(|level| level as i64).collect();
        let count = levels.len();
        let levels = Tensor::<2, Int>::from_data(TensorData::new(levels, [1, count]), &device);
        let active = silu(condition.clone());
        let shared = self.shared_ada_lin.as_ref().map(|shared| nn::apply(shared, active.clone()));
        Ok(Session {
            positions: self.lvl_embed.forward(levels) + self.pos_1LC.val(),
            blocks: self.blocks.iter().map(|block| block.modulation(&active, shared.as_ref())).collect(),
            head: HeadModulation::from_packed(nn::apply(&self.head_nm.ada_lin, active)),
            caches: vec![KvCache::new(self.config.patch_nums.tokens()); self.blocks.len()],
            condition,
            lora: None,
        })
    }

    fn embed(&self, session: &Session, k: usize, input: Tensor<4>) -> Tensor<3> {
        let range = self.config.patch_nums.range(k);
        let positions = session.positions.clone().narrow(1, range.start, range.len());
        let tokens = if k == 0 {
            self.start(session)
        } else {
            nn::apply(&self.word_embed, input.flatten::<3>(2, 3).swap_dims(1, 2)) // [batch, tokens, width]
        };
        tokens + positions
    }

    fn step(&self, session: &mut Session, hidden: Tensor<3>) -> Tensor<3> {
        let Session { blocks, caches, head, lora, .. } = session;
        let mut x = hidden;
        for (i, ((block, by), cache)) in self.blocks.iter().zip(blocks.iter()).zip(caches.iter_mut()).enumerate() {
            let lora = lora.as_ref().and_then(|lora| lora.block(i));
            x = block.forward(x, by, Context::Cached(cache), lora, &mut None);
        }
        nn::apply(&self.head, head.norm(x, self.config.norm_eps))
    }
}

/// 0 where a token's scale is the key's or finer, minus infinity elsewhere: `[1, 1, L, L]`.
fn block_causal_mask(scales: &Scales, device: &Device) -> Tensor<4> {
    let levels = scales.levels();
    let count = levels.len();
    let visible = |query: &usize, key: &usize| if query >= key { 0.0 } else { f32::NEG_INFINITY };
    let mask: Vec<f32> = levels.iter().flat_map(|query| levels.iter().map(move |key| visible(query, key))).collect();
    Tensor::from_data(TensorData::new(mask, [1, 1, count, count]), device)
}

/// Class dropout: each label becomes the null class with probability `rate` (0.1 in the published recipe), so that the
/// model learns both branches of classifier-free guidance. The draw for image `i` comes from stream `i`.
pub fn drop_labels(labels: &[usize], rate: f64, rngs: &mut [Rng]) -> Vec<Label> {
    labels.iter().zip(rngs).map(|(&label, rng)| (rng.uniform() >= rate).then_some(label)).collect()
}
