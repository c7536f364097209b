//! Low-rank adaptation (Hu et al. 2021): what AID-VAR's appendix D compares its injector with.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::{Label, NextScale, Session, Var, VarConfig};
use crate::error::require_positive;
use crate::init::{Start, initialise};
use crate::{Error, Result, Scales, nn, ops};

/// One low-rank change of a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LowRankConfig {
    /// Columns of the first factor.
    pub rank: usize,
    /// The change is `alpha / rank` times the product of its factors.
    pub alpha: f64,
}

impl LowRankConfig {
    /// What AID-VAR's code has in attention.
    pub const ATTENTION: Self = Self { rank: 64, alpha: 16.0 };
    /// What AID-VAR's code has in the feed-forward.
    pub const FEED_FORWARD: Self = Self { rank: 32, alpha: 8.0 };
}

/// The sizes of a [`Lora`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Blocks of the transformer.
    pub depth: usize,
    /// Its width.
    pub embed_dim: usize,
    /// Hidden width of its feed-forward.
    pub hidden_dim: usize,
    /// Of the projections to queries, keys and values, and of the mixed values.
    pub attention: LowRankConfig,
    /// Of both layers of the feed-forward.
    pub feed_forward: LowRankConfig,
}

impl LoraConfig {
    /// For a transformer, with the ranks of AID-VAR's code.
    pub fn released(transformer: &VarConfig) -> Self {
        Self {
            depth: transformer.depth,
            embed_dim: transformer.embed_dim,
            hidden_dim: transformer.hidden(),
            attention: LowRankConfig::ATTENTION,
            feed_forward: LowRankConfig::FEED_FORWARD,
        }
    }

    /// Refuses what no adaptation can have.
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

    /// An adaptation that changes nothing yet: first factors uniform within `1 / sqrt(inputs)` (PyTorch's
    /// `kaiming_uniform_` with `a = sqrt(5)`), drawn from `seed`, second factors zero.
    ///
    /// # Errors
    /// As [`LoraConfig::validate`].
    pub fn init(&self, seed: u64, device: &Device) -> Result<Lora> {
        let lora = self.init_zeros(device)?;
        Ok(initialise(lora, seed, |slot| match slot.path.ends_with(".down") {
            true => Start::Uniform(1.0 / (slot.shape[0] as f64).sqrt()),
            false => Start::Constant(0.0),
        }))
    }

    /// All zeros, to be filled from a file.
    ///
    /// # Errors
    /// As [`LoraConfig::validate`].
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

/// The product of two narrow matrices, which is added to the weight of a linear layer.
#[derive(Module, Debug)]
pub(super) struct LowRank {
    /// `[inputs, rank]`.
    down: Param<Tensor<2>>,
    /// `[rank, outputs]`.
    up: Param<Tensor<2>>,
    scale: f64,
}

impl LowRank {
    fn new([inputs, outputs]: [usize; 2], config: LowRankConfig, device: &Device) -> Self {
        Self {
            down: nn::zeros([inputs, config.rank], device),
            up: nn::zeros([config.rank, outputs], device),
            scale: config.alpha / config.rank as f64,
        }
    }

    fn merged(&self, mut linear: Linear) -> Linear {
        let change = self.down.val().matmul(self.up.val()) * self.scale;
        linear.weight = linear.weight.map(|weight| {
            let change = change.clone().cast(weight.dtype());
            weight + change
        });
        linear
    }
}

/// A linear layer, with what is added to it.
pub(super) fn adapted(linear: &Linear, change: Option<&LowRank>, x: Tensor<3>) -> Tensor<3> {
    let Some(LowRank { down, up, scale }) = change else { return nn::apply(linear, x) };
    let change = ops::linear(ops::linear(x.clone(), down.val(), None), up.val(), None) * *scale;
    nn::apply(linear, x) + change
}

/// The changes of one block.
#[derive(Module, Debug)]
pub(super) struct BlockLora {
    pub(super) mat_qkv: LowRank,
    pub(super) proj: LowRank,
    pub(super) fc1: LowRank,
    pub(super) fc2: LowRank,
}

/// A low-rank change of all blocks of a [`Var`].
#[derive(Module, Debug)]
pub struct Lora {
    blocks: Vec<BlockLora>,
    #[module(skip)]
    config: LoraConfig,
}

impl Lora {
    /// The sizes it was made with.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    pub(super) fn block(&self, index: usize) -> Option<&BlockLora> {
        self.blocks.get(index)
    }

    fn check(&self, transformer: &Var) -> Result<()> {
        let config = transformer.config();
        let LoraConfig { depth, embed_dim, hidden_dim, .. } = self.config;
        let found = [depth, embed_dim, hidden_dim];
        let expected = [config.depth, config.embed_dim, config.hidden()];
        match found == expected {
            true => Ok(()),
            false => {
                let expected = format!("{expected:?}, the transformer's");
                Err(Error::config("depth, width and hidden width of the LoRA", format!("{found:?}"), expected))
            }
        }
    }

    /// The transformer with this change, which stays apart from its weights.
    ///
    /// # Errors
    /// [`Error::Config`] if it was made for a transformer of other sizes.
    pub fn adapt<'a>(&'a self, transformer: &'a Var) -> Result<Adapted<'a>> {
        self.check(transformer)?;
        Ok(Adapted { transformer, lora: self })
    }

    /// A transformer whose weights have this change in them, as fast as it was.
    ///
    /// # Errors
    /// As [`Lora::adapt`].
    pub fn merge(&self, mut transformer: Var) -> Result<Var> {
        self.check(&transformer)?;
        for (block, change) in transformer.blocks.iter_mut().zip(&self.blocks) {
            block.attn.mat_qkv = change.mat_qkv.merged(block.attn.mat_qkv.clone());
            block.attn.proj = change.proj.merged(block.attn.proj.clone());
            block.ffn.fc1 = change.fc1.merged(block.ffn.fc1.clone());
            block.ffn.fc2 = change.fc2.merged(block.ffn.fc2.clone());
        }
        Ok(transformer)
    }
}

/// A transformer with a [`Lora`], as [`Lora::adapt`] makes it.
#[derive(Debug, Clone, Copy)]
pub struct Adapted<'a> {
    transformer: &'a Var,
    lora: &'a Lora,
}

impl NextScale for Adapted<'_> {
    fn scales(&self) -> &Scales {
        self.transformer.scales()
    }

    fn num_classes(&self) -> usize {
        self.transformer.num_classes()
    }

    fn vocab_size(&self) -> usize {
        self.transformer.vocab_size()
    }

    fn begin(&self, labels: &[Label]) -> Result<Session> {
        Ok(Session { lora: Some(self.lora.clone()), ..self.transformer.begin(labels)? })
    }

    fn embed(&self, session: &Session, k: usize, input: Tensor<4>) -> Tensor<3> {
        self.transformer.embed(session, k, input)
    }

    fn step(&self, session: &mut Session, hidden: Tensor<3>) -> Tensor<3> {
        self.transformer.step(session, hidden)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    fn transformer() -> Var {
        let config: VarConfig = serde_json::from_value(serde_json::json!({
            "depth": 2, "embed_dim": 12, "num_heads": 2, "vocab_size": 7, "z_channels": 4, "num_classes": 3,
            "patch_nums": [1, 2],
        }))
        .unwrap();
        // All of one size: with the authors' first weights a block changes next to nothing.
        initialise(config.init_zeros(&Device::default()).unwrap(), 1, |_| Start::Normal(0.3))
    }

    /// Logits of the first scale.
    fn logits(transformer: &impl NextScale) -> Vec<f32> {
        let mut session = transformer.begin(&[Some(0), Some(2), None]).unwrap();
        let input = Tensor::zeros([3, 4, 1, 1], &Device::default());
        let hidden = transformer.embed(&session, 0, input);
        transformer.step(&mut session, hidden).try_into_vec_as::<f32>().unwrap()
    }

    #[test]
    fn begins_as_nothing_and_merges_into_the_same() {
        let transformer = transformer();
        let config = LoraConfig {
            attention: LowRankConfig { rank: 3, alpha: 6.0 },
            feed_forward: LowRankConfig { rank: 2, alpha: 1.0 },
            ..LoraConfig::released(transformer.config())
        };
        let fresh = config.init(4, &Device::default()).unwrap();
        assert_eq!(logits(&fresh.adapt(&transformer).unwrap()), logits(&transformer), "second factors are zero");
        let trained = initialise(fresh, 9, |_| Start::Normal(0.3));
        let apart = logits(&trained.adapt(&transformer).unwrap());
        let merged = logits(&trained.merge(transformer.clone()).unwrap());
        let plain = logits(&transformer);
        let worst = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst(&apart, &merged) < 1e-5 * worst(&apart, &plain).max(1.0), "{apart:?}\n{merged:?}");
        assert!(worst(&apart, &plain) > 1e-3, "the change is seen");
        let other = LoraConfig { depth: 3, ..config }.init(4, &Device::default()).unwrap();
        assert!(other.adapt(&transformer).unwrap_err().to_string().contains("[3, 12, 48]"));
    }
}
