//! Training of LlamaGen's class-conditional transformer on a frozen tokenizer's tokens.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use burn_var::models::llamagen::{LlamaGen, LlamaGenConfig, LlamaGenPreset, LlamaGenVq};
use burn_var::weights::{LoadOptions, Pretrained, StateDict};
use burn_var::{Scales, Tokenizer};
use serde::{Deserialize, Deserializer, Serialize};

use super::transformer::{Preview, Schedules, Settings, TeacherForcing, TransformerMethod, default_class_dropout};
use crate::Result;
use crate::data::{Encoding, ImageSource, Split, TokenCache, cached_tokens};
use crate::engine::progress::Progress;
use crate::engine::run::{DataConfig, RunConfig};
use crate::engine::{Placement, TrainConfig, train};
use crate::optim::{EmaConfig, LrSchedule, OptimConfig};

/// The configuration of a LlamaGen transformer's training run. What is left out is as in the authors' recipe for ImageNet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlamaGenTrainConfig {
    /// Length, batch, seed, intervals.
    pub run: RunConfig,
    /// The images.
    pub data: DataConfig,
    /// The tokenizer's file.
    pub tokenizer: PathBuf,
    /// The raster of the tokens, which decides the size of the images; the tokenizer's if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch_nums: Option<Scales>,
    /// Sizes of the transformer. Codes and classes come from tokenizer and images.
    pub model: LlamaGenSize,
    /// AdamW. Decays tensors of two axes or more.
    #[serde(default = "default_optimizer", deserialize_with = "optimizer")]
    pub optimizer: OptimConfig,
    /// Learning rate, constant by default.
    #[serde(default)]
    pub learning_rate: LrSchedule,
    /// Moving average of the weights, which is the result of the run; off by default, as the authors' is.
    #[serde(default = "default_ema", deserialize_with = "ema")]
    pub ema: EmaConfig,
    /// Share of the target that is spread over all codes.
    #[serde(default)]
    pub label_smoothing: f64,
    /// Share of labels replaced by the null class.
    #[serde(default = "default_class_dropout")]
    pub class_dropout: f64,
    /// Settings of the sample grids.
    #[serde(default = "default_preview", deserialize_with = "preview")]
    pub preview: Preview,
}

/// The sizes of a transformer that are free once tokenizer and images are given. See [`LlamaGenConfig`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlamaGenSize {
    /// Width.
    pub dim: usize,
    /// Number of layers.
    pub n_layer: usize,
    /// Heads of queries.
    pub n_head: usize,
    /// Heads of keys and values; `n_head` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_kv_head: Option<usize>,
    /// Hidden width of the feed-forward; the authors' for the width if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ffn_hidden: Option<usize>,
    /// Dropout of token embeddings.
    #[serde(default = "default_dropout")]
    pub token_dropout_p: f64,
    /// Dropout of what attention adds.
    #[serde(default = "default_dropout")]
    pub resid_dropout_p: f64,
    /// Dropout of what the feed-forward adds.
    #[serde(default = "default_dropout")]
    pub ffn_dropout_p: f64,
    /// Share of residual branches dropped at the last layer. The authors use it in place of the two above.
    #[serde(default)]
    pub drop_path_rate: f64,
}

fn default_dropout() -> f64 {
    0.1
}

fn default_optimizer() -> OptimConfig {
    OptimConfig { beta_2: 0.95, weight_decay: 0.05, clip_norm: Some(1.0), ..OptimConfig::default() }
}

fn optimizer<'de, D: Deserializer<'de>>(section: D) -> std::result::Result<OptimConfig, D::Error> {
    crate::config::over(default_optimizer(), section)
}

fn default_ema() -> EmaConfig {
    EmaConfig { decay: 0.0, ..EmaConfig::default() }
}

fn ema<'de, D: Deserializer<'de>>(section: D) -> std::result::Result<EmaConfig, D::Error> {
    crate::config::over(default_ema(), section)
}

fn default_preview() -> Preview {
    Preview { cfg: 1.0, sampler: LlamaGenPreset::sampler(), ..Preview::default() }
}

fn preview<'de, D: Deserializer<'de>>(section: D) -> std::result::Result<Preview, D::Error> {
    crate::config::over(default_preview(), section)
}

impl LlamaGenTrainConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) naming the field.
    pub fn validate(&self) -> Result<()> {
        self.settings().validate()
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

    fn sizes(&self, tokenizer: &LlamaGenVq, num_classes: usize) -> LlamaGenConfig {
        let LlamaGenSize { dim, n_layer, n_head, .. } = self.model;
        let authors = LlamaGenConfig::new(dim, n_layer, n_head, tokenizer.scales().clone());
        LlamaGenConfig {
            n_kv_head: self.model.n_kv_head,
            ffn_hidden: self.model.ffn_hidden.unwrap_or(authors.ffn_hidden),
            vocab_size: tokenizer.vocabulary().size,
            num_classes,
            token_dropout_p: self.model.token_dropout_p,
            resid_dropout_p: self.model.resid_dropout_p,
            ffn_dropout_p: self.model.ffn_dropout_p,
            drop_path_rate: self.model.drop_path_rate,
            ..authors
        }
    }
}

/// The opened inputs of a run.
pub struct LlamaGenInputs {
    tokenizer: LlamaGenVq,
    images: Arc<dyn ImageSource>,
}

impl TrainConfig for LlamaGenTrainConfig {
    type Inputs = LlamaGenInputs;
    type Method = LlamaGenMethod;

    fn run(&self) -> &RunConfig {
        &self.run
    }

    fn open(&self, device: &Device) -> Result<LlamaGenInputs> {
        self.validate()?;
        let dict = StateDict::open(&self.tokenizer)?;
        let sizes = LlamaGenVq::config_of(&dict, self.patch_nums.as_ref())?;
        let tokenizer = LlamaGenVq::load_with(&dict, &sizes, LoadOptions::default(), device)?;
        // Before the images are encoded.
        self.sizes(&tokenizer, 1).validate()?;
        Ok(LlamaGenInputs { tokenizer, images: self.data.open(Split::Train)? })
    }

    fn start(
        self,
        LlamaGenInputs { tokenizer, images }: LlamaGenInputs,
        folder: &Path,
        device: &Device,
        progress: &mut dyn Progress,
    ) -> Result<LlamaGenMethod> {
        let encoding = Encoding::default_of(&tokenizer)?;
        let tokens = cached_tokens(images, &self.data, &tokenizer, encoding, folder, device, progress)?;
        LlamaGenMethod::new(self, tokenizer, tokens, folder, device)
    }
}

/// Teacher-forced training of a LlamaGen transformer by cross-entropy.
pub type LlamaGenMethod = TransformerMethod<LlamaGenVq, LlamaGen>;

impl LlamaGenMethod {
    /// Creates the method of a run in `folder`, on `device` (without autodiff), at its first step.
    ///
    /// # Errors
    /// Settings and tokens that do not fit each other.
    pub fn new(
        config: LlamaGenTrainConfig,
        tokenizer: LlamaGenVq,
        tokens: TokenCache,
        folder: &Path,
        device: &Device,
    ) -> Result<Self> {
        config.validate()?;
        let sizes = config.sizes(&tokenizer, tokens.spec().class_names.len());
        let model = sizes.init(config.run.seed, &device.clone().autodiff())?;
        let schedules = Schedules { default: tokenizer.scales().clone(), sampling: None };
        let objective = Box::new(TeacherForcing);
        Self::start(config.settings(), schedules, objective, tokenizer, model, tokens, folder, device)
    }
}

/// Trains a LlamaGen transformer in `folder`, or resumes what is there, and returns its file; `None` if `progress` stopped
/// the run before the last step.
///
/// The images are encoded once: their tokens are kept in a cache that runs share, see [`DataConfig::cache`].
///
/// # Errors
/// The errors of [`train`].
pub fn train_llamagen(
    config: LlamaGenTrainConfig,
    folder: &Path,
    place: impl Into<Placement>,
    progress: &mut dyn Progress,
) -> Result<Option<PathBuf>> {
    Ok(train(config, folder, place, progress)?.map(|(file, _)| file))
}

#[cfg(test)]
mod tests {
    use burn_var::sampling::TopPRule;

    use super::*;
    use crate::config::read_toml;
    use crate::tokenizer::TokenizerTrainConfig;

    #[test]
    fn absent_keys_are_the_authors() {
        let text = "tokenizer = \"t\"\n[run]\nsteps = 1\nbatch_size = 1\n[data]\npath = \"d\"\n\
                    [model]\ndim = 768\nn_layer = 12\nn_head = 12\n[preview]\nper_class = 2\n[optimizer]\nepsilon = 1e-7\n";
        let config: LlamaGenTrainConfig = toml::from_str(text).unwrap();
        let OptimConfig { beta_1, beta_2, weight_decay, clip_norm, .. } = config.optimizer;
        assert_eq!((beta_1, beta_2, weight_decay, clip_norm), (0.9, 0.95, 0.05, Some(1.0)));
        assert_eq!((config.class_dropout, config.ema.decay, config.learning_rate.peak), (0.1, 0.0, 1e-4));
        assert_eq!((config.preview.sampler.top_k, config.preview.sampler.top_p_rule), (0, TopPRule::Descending));
        let model = config.model;
        assert_eq!([model.token_dropout_p, model.resid_dropout_p, model.ffn_dropout_p], [0.1; 3]);
    }

    #[test]
    fn the_examples_fit_each_other() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/fashion-mnist-llamagen/");
        let config: LlamaGenTrainConfig = read_toml(format!("{folder}transformer.toml")).unwrap();
        config.validate().unwrap();
        let tokenizer: TokenizerTrainConfig<burn_var::models::llamagen::LlamaGenVqConfig> =
            read_toml(format!("{folder}tokenizer.toml")).unwrap();
        tokenizer.validate().unwrap();
        assert_eq!(tokenizer.model.image_shape(), [1, 32, 32]);
        let tokenizer = tokenizer.model.init_zeros(&Device::default()).unwrap();
        config.sizes(&tokenizer, 10).validate().unwrap();
    }
}
