use std::path::PathBuf;

use burn_var::Scales;
use burn_var::models::aid::{Augment, HeadVariant, HingeReduction, InjectorConfig, InjectorResize};
use burn_var::models::common::LowRankConfig;
use burn_var::sampling::Sampler;
use serde::{Deserialize, Serialize};

use crate::engine::run::{DataConfig, RunConfig};
use crate::optim::{EmaConfig, LrSchedule, OptimConfig};
use crate::{Error, Result};

/// The configuration of a run of AID-VAR. Defaults are those of the papers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AidTrainConfig {
    /// Length, batch, seed, intervals.
    pub run: RunConfig,
    /// The real images.
    pub data: DataConfig,
    /// The tokenizer's file.
    pub tokenizer: PathBuf,
    /// The file of the transformer that is corrected.
    pub transformer: PathBuf,
    /// The file of the discriminator's encoder, a vision transformer, if its input is images.
    #[serde(default)]
    pub encoder: Option<PathBuf>,
    /// The injector.
    #[serde(default)]
    pub injector: InjectorSize,
    /// Trains this in place of an injector, against the same discriminator.
    #[serde(default)]
    pub lora: Option<LoraSize>,
    /// The discriminator.
    #[serde(default)]
    pub discriminator: DiscriminatorConfig,
    /// The injector's loss.
    #[serde(default)]
    pub loss: AidLossConfig,
    /// Guidance of the rollouts.
    #[serde(default)]
    pub guidance: RolloutConfig,
    /// AdamW of the injector.
    #[serde(default = "default_optimizer", deserialize_with = "optimizer")]
    pub optimizer: OptimConfig,
    /// Learning rate of the injector.
    #[serde(default = "default_learning_rate")]
    pub learning_rate: LrSchedule,
    /// Moving average of injector and heads, which is the result of the run; none in the papers.
    #[serde(default = "default_ema", deserialize_with = "ema")]
    pub ema: EmaConfig,
    /// Detection of a collapse.
    #[serde(default)]
    pub collapse: CollapseConfig,
}

impl AidTrainConfig {
    /// Hyperparameters by name, as TOML that [`read_toml_over`](crate::config::read_toml_over) takes: `paper` and
    /// `single-class` of the papers, `released` of the authors' script.
    pub const PRESETS: [(&str, &str); 3] = [
        ("paper", include_str!("presets/paper.toml")),
        ("released", include_str!("presets/released.toml")),
        ("single-class", include_str!("presets/single-class.toml")),
    ];
}

/// AdamW as AID-VAR uses it.
fn default_optimizer() -> OptimConfig {
    OptimConfig { weight_decay: 1e-5, clip_norm: Some(0.5), ..OptimConfig::default() }
}

fn optimizer<'de, D: serde::Deserializer<'de>>(section: D) -> std::result::Result<OptimConfig, D::Error> {
    crate::config::over(default_optimizer(), section)
}

fn default_learning_rate() -> LrSchedule {
    LrSchedule { peak: 1e-6, ..LrSchedule::default() }
}

fn default_ema() -> EmaConfig {
    EmaConfig { decay: 0.0, warmup: false }
}

fn ema<'de, D: serde::Deserializer<'de>>(section: D) -> std::result::Result<EmaConfig, D::Error> {
    crate::config::over(default_ema(), section)
}

/// The sizes of an injector that are free once the transformer is given.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InjectorSize {
    /// Encoder layers.
    pub num_layers: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Resize of the map.
    pub resize: InjectorResize,
    /// One vector for all tokens of a scale, an ablation.
    pub broadcast: bool,
    /// Share of values that training drops, 0.1 in the papers; 0 is off. No image that a user sees is made with it. The
    /// low-rank adaptation has none.
    pub dropout: f64,
}

impl Default for InjectorSize {
    fn default() -> Self {
        let dropout = InjectorConfig::DROPOUT;
        Self { num_layers: 2, num_heads: 8, resize: InjectorResize::default(), broadcast: false, dropout }
    }
}

/// The ranks of a low-rank adaptation; those of AID-VAR's code if left out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraSize {
    /// Adaptation of the attention projections.
    pub attention: LowRankConfig,
    /// Adaptation of both layers of the feed-forward.
    pub feed_forward: LowRankConfig,
}

impl Default for LoraSize {
    fn default() -> Self {
        Self { attention: LowRankConfig::ATTENTION, feed_forward: LowRankConfig::FEED_FORWARD }
    }
}

/// The input of the discriminator.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiscriminatorInput {
    /// Images, through a frozen encoder.
    #[default]
    Pictures,
    /// The quantizer's features before they are decoded, an ablation of the papers that collapses: without an encoder,
    /// and without augmentation.
    QuantizerFeatures,
}

/// The discriminator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiscriminatorConfig {
    /// Input of the discriminator. Called `judges` in older configurations.
    #[serde(alias = "judges")]
    pub input: DiscriminatorInput,
    /// The encoder's blocks whose output is judged; four at even distances if left out.
    pub blocks: Option<Vec<usize>>,
    /// Published architecture of the heads.
    pub variant: HeadVariant,
    /// Images whose statistics are taken together; the batch must be a multiple of its groups.
    pub virtual_batch: usize,
    /// Reduction of the logits of an image.
    pub hinge: HingeReduction,
    /// Weight of the R1 penalty at the heads' inputs, halved; 0 for none.
    pub r1_gamma: f64,
    /// Augmentation of the discriminator's input.
    pub augment: Augment,
    /// Updates of the discriminator per update of the injector.
    pub steps: u32,
    /// Warm-up steps that train only the discriminator: an injector that follows an untrained discriminator goes astray.
    /// None in the papers.
    pub head_start: u64,
    /// AdamW of the heads.
    #[serde(deserialize_with = "optimizer")]
    pub optimizer: OptimConfig,
    /// Learning rate of the heads.
    pub learning_rate: LrSchedule,
}

impl Default for DiscriminatorConfig {
    fn default() -> Self {
        Self {
            input: DiscriminatorInput::default(),
            blocks: None,
            variant: HeadVariant::default(),
            virtual_batch: 8,
            hinge: HingeReduction::default(),
            r1_gamma: 0.2,
            augment: Augment::default(),
            steps: 1,
            head_start: 0,
            optimizer: default_optimizer(),
            learning_rate: default_learning_rate(),
        }
    }
}

/// The logits that the reconstruction term compares with the real images' tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reconstruction {
    /// Logits after the real tokens of the scales before: what the papers call VAR's token-level loss.
    #[default]
    TeacherForced,
    /// Logits of the rollout, whose context is another image's: what the released code does.
    FreeRunning,
}

/// The codes that are decoded for the discriminator.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SoftDecode {
    /// The mean code of every token, as the papers say (equation 5).
    #[default]
    Mean,
    /// The sampled codes, with the gradient of the mean ones: the discriminator sees the images that a user would, and
    /// cannot tell them by their blur. Not in the papers.
    StraightThrough,
}

/// The injector's loss: `L_adv + lambda_rec L_rec` (equation 7).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AidLossConfig {
    /// Weight of the reconstruction term.
    pub lambda_rec: f64,
    /// The logits it compares.
    pub reconstruction: Reconstruction,
    /// The first scale that is judged; the very first has no guidance.
    pub first_scale: usize,
    /// Softmax temperature of the soft decode.
    pub temperature: f64,
    /// The codes that are decoded.
    pub decode: SoftDecode,
    /// Cuts gradients between scales: those of a scale's image and logits reach the injector at that scale only. It takes
    /// the memory of one scale instead of all, and one more generation; the gradient is no longer the whole one.
    pub truncate: bool,
    /// Rebuilds the graph of decoder and encoder for each scale when its gradient is taken, instead of keeping those of all
    /// scales: the same gradient, with the memory of one decoder, for one more decoding of every scale.
    pub checkpointing: bool,
}

impl Default for AidLossConfig {
    fn default() -> Self {
        Self {
            lambda_rec: 0.01,
            reconstruction: Reconstruction::default(),
            first_scale: 1,
            temperature: 1.0,
            decode: SoftDecode::default(),
            truncate: false,
            checkpointing: false,
        }
    }
}

/// Guidance of rollouts in training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutConfig {
    /// Weight of the injector's map, which is stored with the injector.
    pub weight: f64,
    /// The weight at the first step, from which it changes evenly over `ramp_steps`.
    pub ramp_from: Option<f64>,
    /// Steps of the ramp.
    pub ramp_steps: u64,
    /// Strength of classifier-free guidance at the last scale; 0 saves half of the time.
    pub cfg: f64,
    /// Sampling of tokens.
    pub sampler: Sampler,
    /// Largest number of classes in a sample grid.
    pub preview_classes: usize,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        let sampler = Sampler::default();
        Self { weight: 0.001, ramp_from: None, ramp_steps: 0, cfg: 1.5, sampler, preview_classes: 16 }
    }
}

impl RolloutConfig {
    /// The weight at zero-based `step`.
    pub fn weight_at(&self, step: u64) -> f64 {
        match self.ramp_from {
            Some(from) if step < self.ramp_steps => from + (self.weight - from) * step as f64 / self.ramp_steps as f64,
            _ => self.weight,
        }
    }
}

/// When a run ends as collapsed: the discriminator recognizes every image of every scale.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CollapseConfig {
    /// Share of images that it must recognize, at all scales.
    pub accuracy: f64,
    /// Measured steps in a row; 0 for never.
    pub patience: u32,
}

impl Default for CollapseConfig {
    fn default() -> Self {
        Self { accuracy: 1.0, patience: 20 }
    }
}

impl AidTrainConfig {
    /// Checks the settings for a scale schedule.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self, scales: &Scales) -> Result<()> {
        self.run.validate()?;
        self.optimizer.validate()?;
        self.learning_rate.validate()?;
        self.ema.validate()?;
        self.guidance.sampler.validate()?;
        self.discriminator.optimizer.validate().map_err(|error| error.in_section("discriminator"))?;
        self.discriminator.learning_rate.validate().map_err(|error| error.in_section("discriminator"))?;
        let finite = [
            ("loss.lambda_rec", self.loss.lambda_rec),
            ("discriminator.r1_gamma", self.discriminator.r1_gamma),
            ("guidance.cfg", self.guidance.cfg),
        ];
        if let Some((name, value)) = finite.iter().find(|(_, value)| !(value.is_finite() && *value >= 0.0)) {
            return Err(Error::config(*name, value, "0 or more"));
        }
        for (name, value) in
            [("guidance.weight", self.guidance.weight), ("guidance.ramp_from", self.guidance.ramp_from.unwrap_or(1.0))]
        {
            if !(value.is_finite() && value != 0.0) {
                return Err(Error::config(name, value, "a number other than 0, with which nothing is learned"));
            }
        }
        if !(self.loss.temperature.is_finite() && self.loss.temperature > 0.0) {
            return Err(Error::config("loss.temperature", self.loss.temperature, "a positive number"));
        }
        if self.loss.first_scale >= scales.len() {
            let expected = format!("below {}, the number of scales", scales.len());
            return Err(Error::config("loss.first_scale", self.loss.first_scale, expected));
        }
        match (self.discriminator.input, &self.encoder) {
            (DiscriminatorInput::Pictures, None) => {
                let expected = "the file of a vision transformer, from `burn-var train dino` for instance";
                return Err(Error::config("encoder", "nothing", expected));
            }
            (DiscriminatorInput::QuantizerFeatures, Some(_)) => {
                let expected = "nothing, since discriminator.input is quantizer-features";
                return Err(Error::config("encoder", "a file", expected));
            }
            _ => {}
        }
        if self.loss.truncate && self.loss.first_scale == 0 && self.lora.is_none() {
            let expected = "at least 1 with loss.truncate: nothing of the injector's enters the first scale";
            return Err(Error::config("loss.first_scale", 0, expected));
        }
        if !(0.0..1.0).contains(&self.injector.dropout) {
            return Err(Error::config("injector.dropout", self.injector.dropout, "a share in 0..1; 0 is off"));
        }
        let sizes = InjectorSize { dropout: InjectorConfig::DROPOUT, ..self.injector };
        if self.lora.is_some() && sizes != InjectorSize::default() {
            return Err(Error::config("injector", "sizes", "nothing beside [lora], which is trained in its place"));
        }
        if self.discriminator.steps == 0 {
            return Err(Error::config("discriminator.steps", 0, "at least 1"));
        }
        if self.discriminator.head_start >= self.run.steps {
            let expected = format!("less than run.steps = {}", self.run.steps);
            return Err(Error::config("discriminator.head_start", self.discriminator.head_start, expected));
        }
        self.validate_pieces(self.run.accumulate)
    }

    /// Checks that the batch, and each of its `pieces`, consists of whole groups of the heads' batch norm.
    pub(super) fn validate_pieces(&self, pieces: usize) -> Result<()> {
        let (batch, virtual_batch) = (self.run.batch_size, self.discriminator.virtual_batch);
        if virtual_batch == 0 {
            return Err(Error::config("discriminator.virtual_batch", 0, "at least 1"));
        }
        let groups = batch.div_ceil(virtual_batch);
        if !batch.is_multiple_of(groups.max(1)) {
            let expected = format!(
                "a multiple of the {groups} groups of up to discriminator.virtual_batch = {virtual_batch} images"
            );
            return Err(Error::config("run.batch_size", batch, expected));
        }
        if !groups.is_multiple_of(pieces) {
            let expected = format!(
                "a divisor of {groups}, the groups of images whose statistics the discriminator takes together \
                 (discriminator.virtual_batch = {virtual_batch}): no group may be cut"
            );
            return Err(Error::config("run.accumulate times the number of ranks", pieces, expected));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::read_toml_over;

    const FILES: &str = "tokenizer = \"a\"\ntransformer = \"b\"\nencoder = \"c\"\n[data]\npath = \"d\"\n";

    fn read(head: &str, tail: &str) -> Result<AidTrainConfig> {
        read_with(head, tail, &[])
    }

    fn read_with(head: &str, tail: &str, set: &[(String, toml::Value)]) -> Result<AidTrainConfig> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        std::fs::write(&path, format!("{head}{FILES}{tail}")).unwrap();
        read_toml_over(&path, &AidTrainConfig::PRESETS, set)
    }

    #[test]
    fn presets_are_valid_and_can_be_changed() {
        let scales = Scales::square(&[1, 2]).unwrap();
        for (name, _) in AidTrainConfig::PRESETS {
            let config = read(&format!("preset = {name:?}\n"), "").unwrap();
            config.validate(&scales).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let config = read("preset = \"paper\"\n", "[run]\nsteps = 7\n[discriminator]\nr1_gamma = 0.5\n").unwrap();
        assert_eq!((config.run.steps, config.run.batch_size), (7, 256), "one key of a section is changed");
        let discriminator = DiscriminatorConfig { r1_gamma: 0.5, ..DiscriminatorConfig::default() };
        assert_eq!(config.discriminator, discriminator, "what this crate leaves out is the paper's");
        assert_eq!(read("", "[run]\nsteps = 7\nbatch_size = 2\n").unwrap().run.steps, 7, "without a preset");
        let error = read("preset = \"best\"\n", "").unwrap_err().to_string();
        assert!(error.contains("\"best\"") && error.contains("single-class"), "{error}");
        let error = read("preset = \"paper\"\n", "[loss]\nlambda = 1\n").unwrap_err().to_string();
        assert!(error.contains("lambda"), "{error}");
    }

    #[test]
    fn values_that_are_set_go_before_the_file_and_its_preset() {
        let set = |key: &str, value: toml::Value| (key.to_owned(), value);
        let asked = [set("run.seed", 5.into()), set("guidance.sampler.top_p", 0.5.into()), set("run.steps", 9.into())];
        for head in ["preset = \"paper\"\n", ""] {
            let config = read_with(head, "[run]\nsteps = 7\nbatch_size = 2\n", &asked).unwrap();
            assert_eq!((config.run.steps, config.run.batch_size, config.run.seed), (9, 2, 5));
            assert_eq!((config.guidance.sampler.top_p, config.guidance.cfg), (0.5, 1.5), "the rest of a section stays");
        }
        let wrong = [set("run.sede", 5.into())];
        let error = read_with("", "[run]\nsteps = 7\nbatch_size = 2\n", &wrong).unwrap_err().to_string();
        assert!(error.contains("sede") && error.contains("run.toml"), "{error}");
    }
}
