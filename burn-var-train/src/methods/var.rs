//! Training of VAR's transformer on a frozen tokenizer's tokens.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use burn_var::Tokenizer;
use burn_var::models::var::{Var, VarConfig, VarInit, VqVae};
use burn_var::weights::{Pretrained, StateDict};
use serde::{Deserialize, Serialize};

use super::transformer::{
    Schedules, Settings, TeacherForcing, TransformerMethod, default_class_dropout, default_optimizer, optimizer,
};
use crate::config::Upgrade;
use crate::data::{Encoding, ImageSource, Split, TokenCache, cached_tokens};
use crate::engine::progress::Progress;
use crate::engine::run::{DataConfig, RunConfig};
use crate::engine::{Placement, TrainConfig, train};
use crate::optim::{EmaConfig, LrSchedule, OptimConfig};
use crate::{Error, Result};

pub use super::transformer::Preview;

/// The configuration of a transformer's training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VarTrainConfig {
    /// Length, batch, seed, intervals.
    pub run: RunConfig,
    /// The images.
    pub data: DataConfig,
    /// The tokenizer's file.
    pub tokenizer: PathBuf,
    /// Sizes of the transformer. Scale schedule, codes and classes come from tokenizer and images.
    pub model: VarSize,
    /// Constants of the initial weights.
    #[serde(default)]
    pub init: VarInit,
    /// AdamW.
    #[serde(default = "default_optimizer", deserialize_with = "optimizer")]
    pub optimizer: OptimConfig,
    /// Learning rate.
    #[serde(default)]
    pub learning_rate: LrSchedule,
    /// Moving average of the weights, which is the result of the run.
    #[serde(default)]
    pub ema: EmaConfig,
    /// Share of the target that is spread over all codes.
    #[serde(default)]
    pub label_smoothing: f64,
    /// Share of labels replaced by the null class.
    #[serde(default = "default_class_dropout")]
    pub class_dropout: f64,
    /// The old place of [`RunConfig::accumulate`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accumulate: Option<usize>,
    /// Settings of the sample grids.
    #[serde(default)]
    pub preview: Preview,
}

/// The sizes of a transformer that are free once tokenizer and images are given. See [`VarConfig`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VarSize {
    /// Number of blocks.
    pub depth: usize,
    /// Width.
    pub embed_dim: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Hidden width of the feed-forward, as a multiple of the width.
    #[serde(default = "default_mlp_ratio")]
    pub mlp_ratio: f64,
    /// One adaptive norm projection for all blocks.
    #[serde(default)]
    pub shared_aln: bool,
    /// L2-normalized attention.
    #[serde(default = "default_attn_l2_norm")]
    pub attn_l2_norm: bool,
    /// Share of residual branches dropped at the last block.
    #[serde(default)]
    pub drop_path_rate: f64,
}

fn default_mlp_ratio() -> f64 {
    4.0
}

fn default_attn_l2_norm() -> bool {
    true
}

impl VarSize {
    /// Returns the whole configuration.
    pub fn for_tokenizer(&self, tokenizer: &impl Tokenizer, num_classes: usize) -> VarConfig {
        VarConfig {
            depth: self.depth,
            embed_dim: self.embed_dim,
            num_heads: self.num_heads,
            mlp_ratio: self.mlp_ratio,
            norm_eps: 1e-6,
            shared_aln: self.shared_aln,
            attn_l2_norm: self.attn_l2_norm,
            vocab_size: tokenizer.vocabulary().size,
            z_channels: tokenizer.z_channels(),
            num_classes,
            patch_nums: tokenizer.scales().clone(),
            drop_path_rate: self.drop_path_rate,
        }
    }
}

impl VarTrainConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        self.settings().validate()?;
        if let Some(accumulate) = self.accumulate {
            let expected = "absent: its place is `accumulate` of [run]";
            return Err(Error::config("accumulate", accumulate, expected));
        }
        Ok(())
    }

    fn settings(&self) -> Settings {
        Settings {
            run: self.run.clone(),
            optimizer: self.optimizer.clone(),
            learning_rate: self.learning_rate.clone(),
            ema: self.ema.clone(),
            label_smoothing: self.label_smoothing,
            class_dropout: self.class_dropout,
            preview: self.preview.clone(),
        }
    }
}

/// The opened inputs of a run.
pub struct VarInputs {
    tokenizer: VqVae,
    images: Arc<dyn ImageSource>,
}

impl TrainConfig for VarTrainConfig {
    type Inputs = VarInputs;
    type Method = VarMethod;

    const UPGRADES: &'static [Upgrade] = &[Upgrade::Moved { from: "accumulate", to: "run.accumulate" }];

    fn run(&self) -> &RunConfig {
        &self.run
    }

    fn normalize(mut self) -> Self {
        if let Some(accumulate) = self.accumulate.filter(|_| self.run.accumulate == 1) {
            self.run.accumulate = accumulate;
        }
        // Both places may say the same. Where they differ, `validate` names the old one.
        self.accumulate = self.accumulate.filter(|&accumulate| accumulate != self.run.accumulate);
        self
    }

    fn open(&self, device: &Device) -> Result<VarInputs> {
        self.validate()?;
        let dict = StateDict::open(&self.tokenizer)?;
        let tokenizer = VqVae::load(&dict, device)?;
        Ok(VarInputs { tokenizer, images: self.data.open(Split::Train)? })
    }

    fn start(
        self,
        VarInputs { tokenizer, images }: VarInputs,
        folder: &Path,
        device: &Device,
        progress: &mut dyn Progress,
    ) -> Result<VarMethod> {
        let encoding = Encoding::default_of(&tokenizer)?;
        let tokens = cached_tokens(images, &self.data, &tokenizer, encoding, folder, device, progress)?;
        VarMethod::new(self, tokenizer, tokens, folder, device)
    }
}

/// Teacher-forced training of a VAR transformer by cross-entropy.
pub type VarMethod = TransformerMethod<VqVae, Var>;

impl VarMethod {
    /// Creates the method of a run in `folder`, on `device` (without autodiff), at its first step.
    ///
    /// # Errors
    /// Settings and tokens that do not fit each other.
    pub fn new(
        config: VarTrainConfig,
        tokenizer: VqVae,
        tokens: TokenCache,
        folder: &Path,
        device: &Device,
    ) -> Result<Self> {
        config.validate()?;
        let sizes = config.model.for_tokenizer(&tokenizer, tokens.spec().class_names.len());
        let model = sizes.init(config.init, config.run.seed, &device.clone().autodiff())?;
        let schedules = Schedules { default: tokenizer.scales().clone(), sampling: None };
        let objective = Box::new(TeacherForcing);
        Self::start(config.settings(), schedules, objective, tokenizer, model, tokens, folder, device)
    }
}

/// Trains a transformer in `folder`, or resumes what is there, and returns its file; `None` if `progress` stopped the run
/// before the last step.
///
/// The images are encoded once: their tokens are kept in a cache that runs share, see [`DataConfig::cache`].
///
/// # Errors
/// The errors of [`train`].
pub fn train_var(
    config: VarTrainConfig,
    folder: &Path,
    place: impl Into<Placement>,
    progress: &mut dyn Progress,
) -> Result<Option<PathBuf>> {
    Ok(train(config, folder, place, progress)?.map(|(file, _)| file))
}
