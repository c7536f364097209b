//! The configuration of VA-pi.

use std::path::PathBuf;

use burn_var::Scales;
use burn_var::models::common::LoraConfig;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::{GrpoConfig, RewardConfig};
use crate::aid::LoraSize;
use crate::engine::run::{DataConfig, RunConfig};
use crate::methods::transformer::Preview;
use crate::optim::{EmaConfig, LrSchedule, OptimConfig};
use crate::{Error, Result};

/// The configuration of a run of VA-pi. What is left out is as in the authors' class-conditional script.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaPiTrainConfig {
    /// Length, batch, seed, intervals.
    pub run: RunConfig,
    /// The images. The middle of each is used, and they are encoded as they come: there is no token cache.
    pub data: DataConfig,
    /// The tokenizer's file.
    pub tokenizer: PathBuf,
    /// The transformer to start from, of LlamaGen, VAR or FlexVAR.
    pub init: PathBuf,
    /// The scale schedule, for LlamaGen and FlexVAR, which decides the size of the images; the transformer's if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch_nums: Option<Scales>,
    /// The method: `preset = "released-c2i"` or `"paper"`, and settings that differ from it.
    #[serde(default, deserialize_with = "va_pi")]
    pub va_pi: VaPiConfig,
    /// Trains a low-rank adaptation, which is merged into the weights that the run writes, in place of all weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraSize>,
    /// AdamW.
    #[serde(default = "default_optimizer", deserialize_with = "optimizer")]
    pub optimizer: OptimConfig,
    /// Learning rate: 1e-6, constant and without a warm-up by default.
    #[serde(default = "default_learning_rate", deserialize_with = "learning_rate")]
    pub learning_rate: LrSchedule,
    /// Moving average of the weights, which is the result of the run; none by default. It is a copy of the weights.
    #[serde(default = "default_ema", deserialize_with = "ema")]
    pub ema: EmaConfig,
    /// Settings of the sample grids.
    #[serde(default)]
    pub preview: Preview,
}

fn default_optimizer() -> OptimConfig {
    OptimConfig { beta_2: 0.999, weight_decay: 1e-4, clip_norm: Some(1.0), ..OptimConfig::default() }
}

fn optimizer<'de, D: Deserializer<'de>>(section: D) -> std::result::Result<OptimConfig, D::Error> {
    crate::config::over(default_optimizer(), section)
}

fn default_learning_rate() -> LrSchedule {
    LrSchedule { peak: 1e-6, ..LrSchedule::default() }
}

fn learning_rate<'de, D: Deserializer<'de>>(section: D) -> std::result::Result<LrSchedule, D::Error> {
    crate::config::over(default_learning_rate(), section)
}

fn default_ema() -> EmaConfig {
    EmaConfig { decay: 0.0, ..EmaConfig::default() }
}

fn ema<'de, D: Deserializer<'de>>(section: D) -> std::result::Result<EmaConfig, D::Error> {
    crate::config::over(default_ema(), section)
}

/// Reads the settings of the method over those of a preset.
fn va_pi<'de, D: Deserializer<'de>>(section: D) -> std::result::Result<VaPiConfig, D::Error> {
    let mut given = toml::Table::deserialize(section)?;
    let preset = match given.remove("preset") {
        None => VaPiConfig::released_c2i(),
        Some(name) => name.as_str().and_then(VaPiConfig::preset).ok_or_else(|| {
            D::Error::custom(format!("there is no preset {name}, but {}", VaPiConfig::PRESETS.join(", ")))
        })?,
    };
    crate::config::over(preset, toml::Value::Table(given)).map_err(D::Error::custom)
}

impl VaPiTrainConfig {
    /// Checks the settings that need no model. The schedule of a model and the shape of its images
    /// (`[channels, height, width]`) are checked by [`VaPiConfig::validate`].
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        self.run.validate()?;
        self.optimizer.validate()?;
        self.learning_rate.validate()?;
        self.ema.validate()?;
        if let Some(LoraSize { attention, feed_forward }) = self.lora {
            // The other sizes are the model's.
            let sizes = LoraConfig { depth: 1, embed_dim: 1, hidden_dim: 1, attention, feed_forward };
            sizes.validate()?;
        }
        self.preview.validate()
    }
}

/// Estimator of the gradient of the reward.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Estimator {
    /// Group-relative policy optimization.
    #[default]
    Grpo,
    /// The baseline of the paper: one hard sample whose gradient is that of a Gumbel-softmax, through the decoder.
    StraightThrough(StraightThrough),
}

/// Settings of the straight-through estimator.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StraightThrough {
    /// Temperature of the Gumbel-softmax.
    pub tau: f64,
    /// Code vectors that are decoded.
    pub codes: Codes,
}

impl Default for StraightThrough {
    fn default() -> Self {
        Self { tau: 1.0, codes: Codes::Used }
    }
}

/// Code vectors of a codebook.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Codes {
    /// The code vectors that decoding uses: of unit length in the tokenizers of LlamaGen and FlexVAR.
    #[default]
    Used,
    /// The code vectors that the checkpoint stores, as in the released code: decoding never sees them.
    Stored,
}

/// The tokens that a reward is credited to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Credit {
    /// All tokens of a sample share its reward.
    Shared,
    /// Each scale has the reward of a sample whose later scales are true.
    PrefixSwap,
    /// Each scale has the reward of a sample whose other scales are true.
    OnlyScale,
    /// Each scale has the difference that its true tokens would make.
    LeaveOneScale,
    /// The tokens of the last scale alone.
    LastScale,
    /// Each scale has the pixel error of its own image to the true one, resized to it. Other terms are left out: an image of
    /// the first scale is too small for them.
    PerScaleDecode,
}

impl Credit {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::PrefixSwap => "prefix-swap",
            Self::OnlyScale => "only-scale",
            Self::LeaveOneScale => "leave-one-scale",
            Self::LastScale => "last-scale",
            Self::PerScaleDecode => "per-scale-decode",
        }
    }
}

/// Mean of the policy term over the tokens of a sample.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyMean {
    /// Over all tokens: the last scales weigh most.
    #[default]
    Tokens,
    /// Over the means of the scales.
    Scales,
}

/// Settings of the method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VaPiConfig {
    /// Estimator: `"grpo"`, or `{ straight-through = { tau = 1.0 } }`.
    pub estimator: Estimator,
    /// Samples per image, G.
    pub group: usize,
    /// Updates per rollout: each has the whole batch, and new probabilities of the same samples.
    pub updates: usize,
    /// Filter of the draw, 0 for none. The ratio is then of probabilities among the tokens that it keeps.
    pub top_k: usize,
    /// Filter of the draw by LlamaGen's rule, 1 for none.
    pub top_p: f64,
    /// Contextual noise: the share of the tokens before a prediction that are replaced by random ones.
    pub noise: f64,
    /// Share of the tokens of each sample that are left out of the policy term.
    pub token_dropout: f64,
    /// Tokens that a reward is credited to; shared for LlamaGen and VAR and the last scale for FlexVAR if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credit: Option<Credit>,
    /// Mean over tokens: `"tokens"` or `"scales"`.
    pub mean: PolicyMean,
    /// Computes the cross-entropy in a pass of its own, with the dropout and drop path of the model.
    pub dropout: bool,
    /// Share of labels replaced by the null class in the pass of the cross-entropy, which is then one of its own. The policy
    /// term sees all labels.
    pub class_dropout: f64,
    /// Samples that are decoded and judged at once.
    pub decode_batch: usize,
    /// Policy term and cross-entropy.
    pub loss: GrpoConfig,
    /// Reward.
    pub reward: RewardConfig,
}

impl Default for VaPiConfig {
    fn default() -> Self {
        Self::released_c2i()
    }
}

impl VaPiConfig {
    /// Names of the presets.
    pub const PRESETS: [&'static str; 2] = ["released-c2i", "paper"];

    /// Returns the settings of the authors' class-conditional script: no contextual noise, no penalty. Unlike there, no
    /// dropout falls on the policy term.
    pub fn released_c2i() -> Self {
        Self {
            estimator: Estimator::Grpo,
            group: 8,
            updates: 1,
            top_k: 0,
            top_p: 1.0,
            noise: 0.0,
            token_dropout: 0.0,
            credit: None,
            mean: PolicyMean::Tokens,
            dropout: false,
            class_dropout: 0.0,
            decode_batch: 16,
            loss: GrpoConfig::default(),
            reward: RewardConfig::default(),
        }
    }

    /// Returns the method of the paper, with contextual noise. The share of 0.5 is the best of the authors' ablation, which
    /// is text-conditional.
    pub fn paper() -> Self {
        Self { noise: 0.5, ..Self::released_c2i() }
    }

    /// Returns a preset.
    pub fn preset(name: &str) -> Option<Self> {
        match name {
            "released-c2i" => Some(Self::released_c2i()),
            "paper" => Some(Self::paper()),
            _ => None,
        }
    }

    /// Returns true if cross-entropy is computed in a pass of its own.
    pub(super) fn has_second_pass(&self) -> bool {
        self.loss.cross_entropy > 0.0 && (self.dropout || self.class_dropout > 0.0)
    }

    /// Returns true if the draw is filtered.
    pub(super) fn is_filtered(&self) -> bool {
        self.top_k > 0 || (self.top_p > 0.0 && self.top_p < 1.0)
    }

    /// Checks the settings for images `[channels, height, width]`, and a model that can credit rewards to tokens in the ways
    /// of `credits`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self, image: [usize; 3], credits: &[Credit]) -> Result<()> {
        let fields = || -> Result<()> {
            self.loss.validate().map_err(|error| error.in_section("loss"))?;
            self.reward.validate(image).map_err(|error| error.in_section("reward"))?;
            if self.group < 2 {
                return Err(Error::config(
                    "group",
                    self.group,
                    "at least 2: a reward is compared with those of its group",
                ));
            }
            for (name, count) in [("updates", self.updates), ("decode_batch", self.decode_batch)] {
                if count == 0 {
                    return Err(Error::config(name, count, "at least 1"));
                }
            }
            let shares = [("top_p", self.top_p), ("noise", self.noise), ("class_dropout", self.class_dropout)];
            for (name, share) in shares {
                if !(0.0..=1.0).contains(&share) {
                    return Err(Error::config(name, share, "a share in 0..=1"));
                }
            }
            if !(0.0..1.0).contains(&self.token_dropout) {
                return Err(Error::config("token_dropout", self.token_dropout, "a share in 0..1"));
            }
            if let Some(credit) = self.credit.filter(|credit| !credits.contains(credit)) {
                let names: Vec<&str> = credits.iter().map(|credit| credit.name()).collect();
                return Err(Error::config("credit", credit.name(), format!("{}, for this model", names.join(", "))));
            }
            if self.credit == Some(Credit::PerScaleDecode) && self.reward.pixels == 0.0 {
                return Err(Error::config("reward.pixels", 0, "a positive weight: per-scale-decode compares pixels"));
            }
            if let Estimator::StraightThrough(StraightThrough { tau, .. }) = self.estimator {
                if !(tau.is_finite() && tau > 0.0) {
                    return Err(Error::config("estimator.straight-through.tau", tau, "a positive number"));
                }
                if self.loss.kl > 0.0 {
                    return Err(Error::config("loss.kl", self.loss.kl, "0 with the straight-through estimator"));
                }
            }
            if self.class_dropout > 0.0 && self.loss.cross_entropy == 0.0 {
                let expected = "0 without cross-entropy: only its pass drops labels";
                return Err(Error::config("class_dropout", self.class_dropout, expected));
            }
            Ok(())
        };
        fields().map_err(|error| error.in_section("va_pi"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{PixelError, RewardTarget};
    use super::*;

    fn read(sections: &str) -> std::result::Result<VaPiTrainConfig, toml::de::Error> {
        let files = "tokenizer = \"a\"\ninit = \"b\"\n[run]\nsteps = 1\nbatch_size = 2\n[data]\npath = \"c\"\n";
        toml::from_str(&format!("{files}{sections}"))
    }

    #[test]
    fn absent_keys_are_the_authors() {
        let config = read("").unwrap();
        assert_eq!(config.va_pi, VaPiConfig::released_c2i());
        let VaPiConfig { group, noise, loss, reward, .. } = config.va_pi;
        assert_eq!((group, noise, loss.clip, loss.advantage_clip), (8, 0.0, 0.2, 5.0));
        assert_eq!((loss.kl, loss.temperature, loss.cross_entropy), (0.0, 1.0, 0.1));
        assert_eq!((reward.error, reward.pixels, reward.lpips), (PixelError::L2, 1.0, 1.0));
        let OptimConfig { beta_1, beta_2, weight_decay, clip_norm, .. } = config.optimizer;
        assert_eq!((beta_1, beta_2, weight_decay, clip_norm), (0.9, 0.999, 1e-4, Some(1.0)));
        let rate = config.learning_rate;
        assert_eq!((rate.peak, rate.at(0, 100), rate.at(99, 100)), (1e-6, 1e-6, 1e-6));
        assert_eq!(config.ema.decay, 0.0);
    }

    #[test]
    fn settings_replace_those_of_a_preset() {
        let paper = read(
            "[va_pi]\npreset = \"paper\"\ngroup = 4\ncredit = \"prefix-swap\"\n\
             estimator = { straight-through = { tau = 0.5 } }\n\
             [va_pi.loss]\nkl = 0.01\n[va_pi.reward]\nlpips = 0.0\ntarget = \"reconstruction\"\n[lora]\n\
             attention = { rank = 2, alpha = 2.0 }\n",
        )
        .unwrap();
        let VaPiConfig { group, noise, credit, loss, reward, estimator, .. } = &paper.va_pi;
        assert_eq!((*group, *noise, *credit), (4, 0.5, Some(Credit::PrefixSwap)));
        assert_eq!((loss.kl, loss.cross_entropy), (0.01, 0.1), "the rest of a section as in the preset");
        assert_eq!((reward.lpips, reward.pixels, reward.target), (0.0, 1.0, RewardTarget::Reconstruction));
        assert_eq!(*estimator, Estimator::StraightThrough(StraightThrough { tau: 0.5, codes: Codes::Used }));
        let text = toml::to_string_pretty(&paper).unwrap();
        assert_eq!(toml::from_str::<VaPiTrainConfig>(&text).unwrap(), paper, "the resolved file reads back");
        let error = read("[va_pi]\npreset = \"papers\"").unwrap_err().to_string();
        assert!(error.contains("papers") && error.contains("released-c2i, paper"), "{error}");
        for (key, section) in [("grup", "[va_pi]\ngrup = 2"), ("kll", "[va_pi.loss]\nkll = 2.0")] {
            assert!(read(section).unwrap_err().to_string().contains(key), "{section}");
        }
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let plain =
            VaPiConfig { reward: RewardConfig { lpips: 0.0, ..RewardConfig::default() }, ..VaPiConfig::released_c2i() };
        let credits = [Credit::Shared, Credit::PerScaleDecode];
        plain.validate([1, 32, 32], &credits).unwrap();
        let reward = |reward: RewardConfig| VaPiConfig { reward, ..plain.clone() };
        let loss = |loss: GrpoConfig| VaPiConfig { loss, ..plain.clone() };
        let through = |tau| Estimator::StraightThrough(StraightThrough { tau, ..StraightThrough::default() });
        let kl = GrpoConfig { kl: 0.1, ..GrpoConfig::default() };
        for (config, parts) in [
            (VaPiConfig { group: 1, ..plain.clone() }, ["va_pi.group", "at least 2"]),
            (VaPiConfig { updates: 0, ..plain.clone() }, ["va_pi.updates", "at least 1"]),
            (VaPiConfig { decode_batch: 0, ..plain.clone() }, ["va_pi.decode_batch", "at least 1"]),
            (VaPiConfig { top_p: 1.5, ..plain.clone() }, ["va_pi.top_p", "0..=1"]),
            (VaPiConfig { noise: -0.1, ..plain.clone() }, ["va_pi.noise", "0..=1"]),
            (VaPiConfig { token_dropout: 1.0, ..plain.clone() }, ["va_pi.token_dropout", "0..1"]),
            (
                VaPiConfig { credit: Some(Credit::OnlyScale), ..plain.clone() },
                ["only-scale", "shared, per-scale-decode"],
            ),
            (VaPiConfig { estimator: through(0.0), ..plain.clone() }, ["straight-through.tau", "positive"]),
            (VaPiConfig { estimator: through(1.0), loss: kl, ..plain.clone() }, ["va_pi.loss.kl", "straight-through"]),
            (loss(GrpoConfig { clip: -1.0, ..GrpoConfig::default() }), ["va_pi.loss.clip", "at least 0"]),
            (
                VaPiConfig { class_dropout: 0.1, ..loss(GrpoConfig { cross_entropy: 0.0, ..GrpoConfig::default() }) },
                ["va_pi.class_dropout", "without cross-entropy"],
            ),
            (reward(RewardConfig::default()), ["va_pi.reward.lpips_vgg", "vgg16-397923af.pth"]),
            (
                reward(RewardConfig { pixels: 0.0, lpips: 0.0, ..RewardConfig::default() }),
                ["va_pi.reward.pixels", "all are 0"],
            ),
            (
                reward(RewardConfig { lpips: 0.0, features: 1.0, ..RewardConfig::default() }),
                ["va_pi.reward.classifier", "classifier"],
            ),
        ] {
            let error = config.validate([1, 32, 32], &credits).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
        let lpips = reward(RewardConfig { lpips_vgg: Some("vgg".into()), ..RewardConfig::default() });
        lpips.validate([3, 16, 16], &credits).unwrap();
        let error = lpips.validate([3, 8, 8], &credits).unwrap_err().to_string();
        assert!(error.contains("va_pi.reward.lpips") && error.contains("at least 16x16"), "{error}");
    }
}
