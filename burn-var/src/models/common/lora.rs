//! Low-rank adaptation (Hu et al. 2021), the baseline of AID-VAR's appendix D.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Bool, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::block::Block;
use crate::error::require_positive;
use crate::generation::{Condition, NextScale, ScaleInput, ScaleTokens, TeacherForced, TeacherInput, Vocabulary};
use crate::init::{Init, initialize};
use crate::ops::Branch;
use crate::rng::Rng;
use crate::scales::ScaleAt;
use crate::weights::Pretrained;
use crate::{Error, Result, Scales, nn, ops};

/// Sizes of the low-rank update of a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LowRankConfig {
    /// Columns of the first factor.
    pub rank: usize,
    /// Scale of the update: the product of its factors times `alpha / rank`.
    pub alpha: f64,
}

impl LowRankConfig {
    /// Attention setting of AID-VAR's code.
    pub const ATTENTION: Self = Self { rank: 64, alpha: 16.0 };
    /// Feed-forward setting of AID-VAR's code.
    pub const FEED_FORWARD: Self = Self { rank: 32, alpha: 8.0 };
}

/// Sizes of a [`Lora`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Number of blocks of the transformer.
    pub depth: usize,
    /// Width of the transformer.
    pub embed_dim: usize,
    /// Hidden width of the feed-forward.
    pub hidden_dim: usize,
    /// Adaptation of the attention projections.
    pub attention: LowRankConfig,
    /// Adaptation of both layers of the feed-forward.
    pub feed_forward: LowRankConfig,
}

impl LoraConfig {
    /// Returns the sizes for a transformer, with the ranks of AID-VAR's code.
    pub fn released(transformer: &impl LoraTarget) -> Self {
        let [depth, embed_dim, hidden_dim] = sizes_of(transformer);
        Self {
            depth,
            embed_dim,
            hidden_dim,
            attention: LowRankConfig::ATTENTION,
            feed_forward: LowRankConfig::FEED_FORWARD,
        }
    }

    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        require_positive(&[
            ("depth", self.depth),
            ("embed_dim", self.embed_dim),
            ("hidden_dim", self.hidden_dim),
            ("attention.rank", self.attention.rank),
            ("feed_forward.rank", self.feed_forward.rank),
        ])?;
        for (name, alpha) in
            [("attention.alpha", self.attention.alpha), ("feed_forward.alpha", self.feed_forward.alpha)]
        {
            if !(alpha.is_finite() && alpha != 0.0) {
                return Err(Error::config(name, alpha, "a number other than 0"));
            }
        }
        Ok(())
    }

    /// Creates an adaptation that does not change the model yet: first factors uniform within `1 / sqrt(inputs)`
    /// (PyTorch's `kaiming_uniform_` with `a = sqrt(5)`), drawn from `seed`, second factors zero.
    ///
    /// # Errors
    /// The errors of [`LoraConfig::validate`].
    pub fn init(&self, seed: u64, device: &Device) -> Result<Lora> {
        Ok(without_effect(self.init_zeros(device)?, seed))
    }

    /// Creates an adaptation whose weights are zero, to be loaded.
    ///
    /// # Errors
    /// The errors of [`LoraConfig::validate`].
    pub fn init_zeros(&self, device: &Device) -> Result<Lora> {
        self.validate()?;
        let (width, hidden) = (self.embed_dim, self.hidden_dim);
        let block = || BlockLora {
            mat_qkv: LowRank::new([width, 3 * width], self.attention, device),
            proj: LowRank::new([width, width], self.attention, device),
            fc1: LowRank::new([width, hidden], self.feed_forward, device),
            fc2: LowRank::new([hidden, width], self.feed_forward, device),
        };
        Ok(Lora { blocks: (0..self.depth).map(|_| block()).collect(), config: self.clone() })
    }
}

/// Draws the first factors of low-rank updates from `seed` and sets the second ones to zero, see [`LoraConfig::init`].
pub(crate) fn without_effect<M: Module>(updates: M, seed: u64) -> M {
    initialize(updates, seed, |param| match param.path.ends_with(".down") {
        true => Init::Uniform(1.0 / (param.shape[0] as f64).sqrt()),
        false => Init::Constant(0.0),
    })
}

/// Product of two narrow matrices, added to the weight of a linear layer.
#[derive(Module, Debug)]
pub(crate) struct LowRank {
    /// `[inputs, rank]`.
    down: Param<Tensor<2>>,
    /// `[rank, outputs]`.
    up: Param<Tensor<2>>,
    scale: f64,
}

impl LowRank {
    pub(crate) fn new([inputs, outputs]: [usize; 2], config: LowRankConfig, device: &Device) -> Self {
        Self {
            down: nn::zeros([inputs, config.rank], device),
            up: nn::zeros([config.rank, outputs], device),
            scale: config.alpha / config.rank as f64,
        }
    }

    /// Returns the linear layer with this update in its weight.
    pub(crate) fn merged(&self, mut linear: Linear) -> Linear {
        let change = ops::exact_matmul(self.down.val(), self.up.val()) * self.scale;
        linear.weight = linear.weight.map(|weight| {
            let change = change.clone().cast(weight.dtype());
            weight + change
        });
        linear
    }
}

/// Applies a linear layer with its low-rank update.
pub(crate) fn adapted(linear: &Linear, change: Option<&LowRank>, x: Tensor<3>) -> Tensor<3> {
    let Some(LowRank { down, up, scale }) = change else { return nn::apply(linear, x) };
    let change = ops::linear(ops::linear(x.clone(), down.val(), None), up.val(), None) * *scale;
    nn::apply(linear, x) + change
}

/// Applies a linear layer with its low-rank update, for a kernel that adds the bias if the device has one.
pub(super) fn branch(linear: &Linear, change: Option<&LowRank>, x: Tensor<3>) -> Branch {
    let bias = linear.bias.as_ref().filter(|_| ops::adds_bias(&x));
    let Some(bias) = bias else { return Branch { value: adapted(linear, change, x), bias: None } };
    let without = Linear { bias: None, ..linear.clone() };
    Branch { value: adapted(&without, change, x), bias: Some(bias.val()) }
}

/// Updates of one block.
#[derive(Module, Debug)]
pub(super) struct BlockLora {
    pub(super) mat_qkv: LowRank,
    pub(super) proj: LowRank,
    pub(super) fc1: LowRank,
    pub(super) fc2: LowRank,
}

/// Low-rank updates of all blocks of a transformer.
#[derive(Module, Debug)]
pub struct Lora {
    blocks: Vec<BlockLora>,
    #[module(skip)]
    config: LoraConfig,
}

impl Lora {
    /// Returns the sizes.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    pub(super) fn block(&self, index: usize) -> Option<&BlockLora> {
        self.blocks.get(index)
    }

    fn check(&self, transformer: &impl LoraTarget) -> Result<()> {
        let LoraConfig { depth, embed_dim, hidden_dim, .. } = self.config;
        let found = [depth, embed_dim, hidden_dim];
        let expected = sizes_of(transformer);
        match found == expected {
            true => Ok(()),
            false => {
                let expected = format!("{expected:?}, the transformer's");
                Err(Error::config("depth, width and hidden width of the LoRA", format!("{found:?}"), expected))
            }
        }
    }

    /// Returns the transformer with this adaptation beside its weights.
    ///
    /// # Errors
    /// [`Error::Config`] if the adaptation is for a transformer of other sizes.
    pub fn adapt<'a, M: LoraTarget>(&'a self, transformer: &'a M) -> Result<WithLora<'a, M>> {
        self.check(transformer)?;
        Ok(WithLora { transformer, lora: self })
    }

    /// Merges this adaptation into the weights of a transformer, so that inference costs nothing extra.
    ///
    /// # Errors
    /// The errors of [`Lora::adapt`].
    pub fn merge<M: LoraTarget>(&self, mut transformer: M) -> Result<M> {
        self.check(&transformer)?;
        for (block, change) in transformer.blocks_mut().iter_mut().zip(&self.blocks) {
            block.attn.mat_qkv = change.mat_qkv.merged(block.attn.mat_qkv.clone());
            block.attn.proj = change.proj.merged(block.attn.proj.clone());
            block.ffn.fc1 = change.fc1.merged(block.ffn.fc1.clone());
            block.ffn.fc2 = change.fc2.merged(block.ffn.fc2.clone());
        }
        Ok(transformer)
    }
}

/// Transformer of shared blocks that a [`Lora`] can adapt.
pub trait LoraTarget: NextScale {
    /// Returns the blocks.
    fn blocks(&self) -> &[Block];

    /// Returns the blocks, mutably.
    fn blocks_mut(&mut self) -> &mut [Block];

    /// Adds an adaptation to the blocks of a batch.
    fn adapt(state: &mut Self::State, lora: Lora);

    /// Computes the logits of all scales at once, as [`TeacherForced::teacher_forced`], from the state of a batch that has
    /// just been started.
    ///
    /// # Errors
    /// The errors of [`TeacherForced::teacher_forced`].
    fn teacher_forced_from(
        &self,
        state: &Self::State,
        input: TeacherInput,
        scales: &Scales,
        noise: Option<&mut [Rng]>,
    ) -> Result<Tensor<3>>;
}

/// Transformer with low-rank updates of its own kind, for methods that train those in place of the weights.
pub trait Adaptable: TeacherForced + Pretrained {
    /// Updates of all layers.
    type Lora: Module;

    /// Creates updates without effect so far, drawn from `seed`, on the device of the model.
    ///
    /// # Errors
    /// [`Error::Config`] naming a rank or scale that is out of range.
    fn low_rank(&self, attention: LowRankConfig, feed_forward: LowRankConfig, seed: u64) -> Result<Self::Lora>;

    /// Computes teacher-forced logits with the updates beside the weights.
    ///
    /// # Errors
    /// The errors of [`TeacherForced::teacher_forced`].
    fn teacher_forced_with(
        &self,
        lora: &Self::Lora,
        conditions: &[Condition],
        input: TeacherInput,
        scales: &Scales,
        noise: Option<&mut [Rng]>,
    ) -> Result<Tensor<3>>;

    /// Merges the updates into the weights.
    ///
    /// # Errors
    /// [`Error::Config`] for updates of another model.
    fn merged(self, lora: &Self::Lora) -> Result<Self>;
}

impl<M: LoraTarget + TeacherForced + Pretrained> Adaptable for M {
    type Lora = Lora;

    fn low_rank(&self, attention: LowRankConfig, feed_forward: LowRankConfig, seed: u64) -> Result<Lora> {
        let device = self.devices().into_iter().next().unwrap_or_default();
        LoraConfig { attention, feed_forward, ..LoraConfig::released(self) }.init(seed, &device)
    }

    fn teacher_forced_with(
        &self,
        lora: &Lora,
        conditions: &[Condition],
        input: TeacherInput,
        scales: &Scales,
        noise: Option<&mut [Rng]>,
    ) -> Result<Tensor<3>> {
        lora.adapt(self)?.teacher_forced(conditions, input, scales, noise)
    }

    fn merged(self, lora: &Lora) -> Result<Self> {
        lora.merge(self)
    }
}

/// Returns depth, width and hidden width of the feed-forward.
fn sizes_of(transformer: &impl LoraTarget) -> [usize; 3] {
    let blocks = transformer.blocks();
    let [width, hidden] = blocks.first().map_or([0; 2], Block::widths);
    [blocks.len(), width, hidden]
}

/// Transformer with a [`Lora`], created by [`Lora::adapt`].
#[derive(Debug, Clone, Copy)]
pub struct WithLora<'a, M> {
    transformer: &'a M,
    lora: &'a Lora,
}

impl<M: LoraTarget> NextScale for WithLora<'_, M> {
    type State = M::State;

    fn scales(&self) -> &Scales {
        self.transformer.scales()
    }

    fn vocabulary(&self) -> Vocabulary {
        self.transformer.vocabulary()
    }

    fn num_classes(&self) -> usize {
        self.transformer.num_classes()
    }

    fn code_embedding(&self) -> Option<&Linear> {
        self.transformer.code_embedding()
    }

    fn check_scales(&self, scales: &Scales) -> Result<()> {
        self.transformer.check_scales(scales)
    }

    fn start(&self, conditions: &[Condition], scales: &Scales) -> Result<Self::State> {
        let mut state = self.transformer.start(conditions, scales)?;
        M::adapt(&mut state, self.lora.clone());
        Ok(state)
    }

    fn embed(&self, state: &Self::State, at: ScaleAt<'_>, input: ScaleInput<'_>) -> Tensor<3> {
        self.transformer.embed(state, at, input)
    }

    fn step(&self, state: &mut Self::State, at: ScaleAt<'_>, hidden: Tensor<3>) -> Tensor<3> {
        self.transformer.step(state, at, hidden)
    }

    fn kept(&self, state: &mut Self::State, at: ScaleAt<'_>, rngs: &mut [Rng]) -> Result<Option<Tensor<2, Bool>>> {
        self.transformer.kept(state, at, rngs)
    }

    fn refine(
        &self,
        state: &mut Self::State,
        at: ScaleAt<'_>,
        tokens: ScaleTokens<'_>,
        rngs: &mut [Rng],
    ) -> Result<Tensor<3>> {
        self.transformer.refine(state, at, tokens, rngs)
    }
}

impl<M: LoraTarget> TeacherForced for WithLora<'_, M> {
    fn teacher_forced(
        &self,
        conditions: &[Condition],
        input: impl Into<TeacherInput>,
        scales: &Scales,
        noise: Option<&mut [Rng]>,
    ) -> Result<Tensor<3>> {
        self.transformer.teacher_forced_from(&self.start(conditions, scales)?, input.into(), scales, noise)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::var::{Var, VarConfig};

    fn transformer() -> Var {
        let config: VarConfig = serde_json::from_value(serde_json::json!({
            "depth": 2, "embed_dim": 12, "num_heads": 2, "vocab_size": 7, "z_channels": 4, "num_classes": 3,
            "patch_nums": [1, 2],
        }))
        .unwrap();
        // All weights of similar size: with the authors' initial weights a block changes next to nothing.
        initialize(config.init_zeros(&Device::default()).unwrap(), 1, |_| Init::Normal(0.3))
    }

    /// Logits of the first scale.
    fn logits(transformer: &impl NextScale) -> Vec<f32> {
        let (conditions, at) = ([Some(0), Some(2), None].map(Condition::from), transformer.scales().at(0));
        let mut state = transformer.start(&conditions, transformer.scales()).unwrap();
        let map = Tensor::zeros([3, 4, 1, 1], &Device::default());
        let hidden = transformer.embed(&state, at, ScaleInput { map, ids: None });
        transformer.step(&mut state, at, hidden).try_into_vec_as::<f32>().unwrap()
    }

    #[test]
    fn starts_without_effect_and_merges_exactly() {
        let transformer = transformer();
        let config = LoraConfig {
            attention: LowRankConfig { rank: 3, alpha: 6.0 },
            feed_forward: LowRankConfig { rank: 2, alpha: 1.0 },
            ..LoraConfig::released(&transformer)
        };
        let fresh = config.init(4, &Device::default()).unwrap();
        assert_eq!(logits(&fresh.adapt(&transformer).unwrap()), logits(&transformer), "second factors are zero");
        let trained = initialize(fresh, 9, |_| Init::Normal(0.3));
        let apart = logits(&trained.adapt(&transformer).unwrap());
        let merged = logits(&trained.merge(transformer.clone()).unwrap());
        let plain = logits(&transformer);
        let worst = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst(&apart, &merged) < 1e-5 * worst(&apart, &plain).max(1.0), "{apart:?}\n{merged:?}");
        assert!(worst(&apart, &plain) > 1e-3, "the update changes the logits");
        let other = LoraConfig { depth: 3, ..config }.init(4, &Device::default()).unwrap();
        assert!(other.adapt(&transformer).unwrap_err().to_string().contains("[3, 12, 48]"));
    }
}
