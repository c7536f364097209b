//! Training of FlexVAR's transformer on a frozen tokenizer's tokens, over a scale schedule drawn for each step.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use burn_var::models::flexvar::{FirstScale, FlexVae, FlexVar, FlexVarConfig, SeenScales};
use burn_var::models::var::VarInit;
use burn_var::weights::{LoadOptions, Pretrained, StateDict};
use burn_var::{MapSize, Scales, Tokenizer};
use serde::{Deserialize, Serialize};

use super::masked_first::MaskedPrediction;
use super::transformer::{
    Objective, Schedules, Settings, TeacherForcing, TransformerMethod, default_class_dropout, default_optimizer,
    optimizer,
};
use super::var::{Preview, VarSize};
use crate::Result;
use crate::data::{Encoding, ImageShape, ImageSource, ScaleSampling, Split, Supervision, TokenCache, cached_tokens};
use crate::engine::progress::Progress;
use crate::engine::run::{DataConfig, RunConfig};
use crate::engine::{Placement, TrainConfig, train};
use crate::optim::{EmaConfig, LrSchedule, OptimConfig};

pub use super::masked_first::{MaskRatio, counted_tokens, masked_input, masked_loss};

/// The configuration of a FlexVAR transformer's training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlexVarTrainConfig {
    /// Length, batch, seed, intervals.
    pub run: RunConfig,
    /// The images.
    pub data: DataConfig,
    /// The tokenizer's file.
    pub tokenizer: PathBuf,
    /// The default scale schedule, of the model and of some steps; the tokenizer's if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch_nums: Option<Scales>,
    /// Pixels along each side of the images, a multiple of the tokenizer's downsampling; those of the default schedule if
    /// left out. The latent of larger ones is resized to each scale: the authors train 256 pixels on images of 512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// Side of the learned table of positions.
    #[serde(default = "default_positions")]
    pub positions: usize,
    /// Sizes of the transformer. Codes and classes come from tokenizer and images.
    pub model: VarSize,
    /// Prediction of the first scale: `"one-shot"`, or `{ masked = { own_positions = true } }` for the hybrid of SAR's
    /// pre-study, whose default schedule begins with a map for each step of generation: `[4, 4, 4, 4, 6, 8]` has four.
    #[serde(default)]
    pub first: FirstScale,
    /// Tokens that a scale sees besides its own: `"before"`, `"class-token"` or `"class-token-released"`.
    #[serde(default)]
    pub sees: SeenScales,
    /// Share of masked tokens of a masked first scale.
    #[serde(default)]
    pub mask_ratio: MaskRatio,
    /// Rules of the scale schedules.
    #[serde(default)]
    pub scales: ScaleSampling,
    /// The image that the tokens of a scale stand for: `"latent"`, as published, or `"image"`.
    #[serde(default)]
    pub supervision: Supervision,
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
    /// Settings of the sample grids, which have the default schedule.
    #[serde(default)]
    pub preview: Preview,
}

fn default_positions() -> usize {
    32
}

impl FlexVarTrainConfig {
    /// Checks the settings for a tokenizer.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) naming the field.
    pub fn validate(&self, tokenizer: &FlexVae) -> Result<()> {
        self.settings().validate()?;
        self.mask_ratio.validate()?;
        self.sizes(tokenizer, 1).validate()?;
        self.scales.validate(latent(&image_shape(tokenizer, self.image_size)?, tokenizer))
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

    fn sizes(&self, tokenizer: &FlexVae, num_classes: usize) -> FlexVarConfig {
        let VarSize { depth, embed_dim, num_heads, mlp_ratio, shared_aln, attn_l2_norm, drop_path_rate } = self.model;
        FlexVarConfig {
            depth,
            embed_dim,
            num_heads,
            mlp_ratio,
            norm_eps: 1e-6,
            shared_aln,
            attn_l2_norm,
            vocab_size: tokenizer.vocabulary().size,
            z_channels: tokenizer.z_channels(),
            num_classes,
            patch_nums: tokenizer.scales().clone(),
            positions: self.positions,
            drop_path_rate,
            first: self.first,
            sees: self.sees,
        }
    }
}

/// Returns the shape of the images to encode.
fn image_shape(tokenizer: &FlexVae, side: Option<usize>) -> Result<ImageShape> {
    let [channels, height, width] = tokenizer.image_shape(tokenizer.scales());
    let factor = tokenizer.config().vq.downsampling();
    match side {
        Some(side) if side == 0 || !side.is_multiple_of(factor) => {
            Err(crate::Error::config("image_size", side, format!("a multiple of {factor} pixels")))
        }
        Some(side) => ImageShape::new(side, side, channels),
        None => ImageShape::new(height, width, channels),
    }
}

/// Returns the size of the latent of images.
fn latent(shape: &ImageShape, tokenizer: &FlexVae) -> MapSize {
    let factor = tokenizer.config().vq.downsampling();
    MapSize { height: shape.height / factor, width: shape.width / factor }
}

/// Returns what a run encodes of each image: all maps that its schedules can have.
pub(super) fn encoding(
    tokenizer: &FlexVae,
    scales: &ScaleSampling,
    image_size: Option<usize>,
    supervision: Supervision,
) -> Result<Encoding> {
    let shape = image_shape(tokenizer, image_size)?;
    scales.validate(latent(&shape, tokenizer))?;
    Ok(Encoding { scales: scales.union(tokenizer.scales())?, shape, supervision })
}

/// The opened inputs of a run.
pub struct FlexVarInputs {
    tokenizer: FlexVae,
    images: Arc<dyn ImageSource>,
}

impl TrainConfig for FlexVarTrainConfig {
    type Inputs = FlexVarInputs;
    type Method = FlexVarMethod;

    fn run(&self) -> &RunConfig {
        &self.run
    }

    fn open(&self, device: &Device) -> Result<FlexVarInputs> {
        let dict = StateDict::open(&self.tokenizer)?;
        let sizes = FlexVae::config_of(&dict, self.patch_nums.as_ref())?;
        let tokenizer = FlexVae::load_with(&dict, &sizes, LoadOptions::default(), device)?;
        self.validate(&tokenizer)?;
        Ok(FlexVarInputs { tokenizer, images: self.data.open(Split::Train)? })
    }

    fn start(
        self,
        FlexVarInputs { tokenizer, images }: FlexVarInputs,
        folder: &Path,
        device: &Device,
        progress: &mut dyn Progress,
    ) -> Result<FlexVarMethod> {
        let encoding = encoding(&tokenizer, &self.scales, self.image_size, self.supervision)?;
        let tokens = cached_tokens(images, &self.data, &tokenizer, encoding, folder, device, progress)?;
        FlexVarMethod::new(self, tokenizer, tokens, folder, device)
    }
}

/// Teacher-forced training of a FlexVAR transformer by cross-entropy, the mean over all tokens; of a masked first scale, over
/// the masked ones.
pub type FlexVarMethod = TransformerMethod<FlexVae, FlexVar>;

impl FlexVarMethod {
    /// Creates the method of a run in `folder`, on `device` (without autodiff), at its first step. `tokens` must have all
    /// maps that the schedules can have, see [`ScaleSampling::union`].
    ///
    /// # Errors
    /// Settings and tokens that do not fit each other.
    pub fn new(
        config: FlexVarTrainConfig,
        tokenizer: FlexVae,
        tokens: TokenCache,
        folder: &Path,
        device: &Device,
    ) -> Result<Self> {
        config.validate(&tokenizer)?;
        let sizes = config.sizes(&tokenizer, tokens.spec().class_names.len());
        let model = sizes.init(config.init, config.run.seed, &device.clone().autodiff())?;
        let settings = config.settings();
        let (default, objective): (_, Box<dyn Objective<_, _>>) = match config.first {
            FirstScale::OneShot => (tokenizer.scales().clone(), Box::new(TeacherForcing)),
            FirstScale::Masked(_) => {
                (tokenizer.scales().without_repeats(), Box::new(MaskedPrediction { ratio: config.mask_ratio }))
            }
        };
        let schedules = Schedules { default, sampling: Some(config.scales) };
        Self::start(settings, schedules, objective, tokenizer, model, tokens, folder, device)
    }
}

/// Trains a FlexVAR transformer in `folder`, or resumes what is there, and returns its file; `None` if `progress` stopped
/// the run before the last step.
///
/// The images are encoded once, at all sides that a schedule can have.
///
/// # Errors
/// The errors of [`train`].
pub fn train_flexvar(
    config: FlexVarTrainConfig,
    folder: &Path,
    place: impl Into<Placement>,
    progress: &mut dyn Progress,
) -> Result<Option<PathBuf>> {
    Ok(train(config, folder, place, progress)?.map(|(file, _)| file))
}

#[cfg(test)]
mod tests {
    use burn_var::Scales;

    use super::*;
    use crate::config::read_toml;

    #[test]
    fn the_example_fits_a_latent_of_eight() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/fashion-mnist-flexvar/transformer.toml");
        let config: FlexVarTrainConfig = read_toml(path).unwrap();
        config.scales.validate(MapSize::square(8)).unwrap();
        let default = Scales::square(&[1, 2, 3, 4, 6, 8]).unwrap();
        assert_eq!(config.scales.union(&default).unwrap(), Scales::square(&[1, 2, 3, 4, 5, 6, 7, 8]).unwrap());
        for step in 0..200 {
            let scales = config.scales.draw(&default, config.run.seed, step).unwrap();
            assert_eq!(scales.finest(), MapSize::square(8), "{scales}");
            assert!(scales.tokens() <= 140, "{scales}");
        }
    }
}
