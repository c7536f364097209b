//! Training of the next-scale transformer on a frozen tokenizer's tokens.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor};
use burn_var::guidance::{Cfg, Guidance, Schedule};
use burn_var::image::{ValueRange, to_images};
use burn_var::models::var::VqVae;
use burn_var::models::var::{Var, VarConfig, VarInit, drop_labels};
use burn_var::ops;
use burn_var::sampling::Sampler;
use burn_var::weights::{GenerationConfig, Pretrained, SaveOptions, StateDict};
use burn_var::{BatchRequest, Scales, TeacherForced, TokenPyramid, Tokenizer, generate};
use serde::{Deserialize, Deserializer, Serialize};

use crate::config::Upgrade;
use crate::data::{ImageSource, Split, TokenBatch, TokenCache, TokenStream, cached_tokens};
use crate::engine::progress::Progress;
use crate::engine::run::{DataConfig, Metrics, RunConfig};
use crate::engine::{
    Learner, Method, Network, NetworkGradients, Piece, Rates, Round, Rules, SectionNames, TrainConfig, TrainingData,
    round_metrics, train,
};
use crate::grid::Grid;
use crate::optim::{EmaConfig, LrSchedule, OptimConfig, no_decay_var};
use crate::{Error, Result};

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

/// AdamW as VAR uses it.
fn default_optimizer() -> OptimConfig {
    OptimConfig { beta_2: 0.95, weight_decay: 0.05, clip_norm: Some(2.0), ..OptimConfig::default() }
}

fn optimizer<'de, D: Deserializer<'de>>(section: D) -> std::result::Result<OptimConfig, D::Error> {
    crate::config::over(default_optimizer(), section)
}

fn default_class_dropout() -> f64 {
    0.1
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

/// Settings of the sample grids.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Preview {
    /// Strength of classifier-free guidance at the last scale.
    pub cfg: f64,
    /// Sampling of tokens.
    pub sampler: Sampler,
    /// Images per class.
    pub per_class: usize,
    /// Largest number of classes that are shown.
    pub classes: usize,
}

impl Default for Preview {
    fn default() -> Self {
        Self { cfg: 1.5, sampler: Sampler::default(), per_class: 8, classes: 10 }
    }
}

impl VarTrainConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        self.run.validate()?;
        self.optimizer.validate()?;
        self.learning_rate.validate()?;
        self.ema.validate()?;
        self.preview.sampler.validate()?;
        for (name, share) in [("label_smoothing", self.label_smoothing), ("class_dropout", self.class_dropout)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::config(name, share, "a share in 0..=1"));
            }
        }
        for (name, count) in [("preview.per_class", self.preview.per_class), ("preview.classes", self.preview.classes)]
        {
            if count == 0 {
                return Err(Error::config(name, count, "at least 1"));
            }
        }
        if let Some(accumulate) = self.accumulate {
            let expected = "absent: its place is `accumulate` of [run]";
            return Err(Error::config("accumulate", accumulate, expected));
        }
        Ok(())
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
        let tokens = cached_tokens(images, &self.data, &tokenizer, folder, device, progress)?;
        VarMethod::new(self, tokenizer, tokens, folder, device)
    }
}

/// Teacher-forced training of a transformer by cross-entropy.
pub struct VarMethod {
    config: VarTrainConfig,
    folder: PathBuf,
    device: Device,
    tokenizer: VqVae,
    learner: Learner<Var>,
    stream: TokenStream,
}

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
        let rules = Rules::new(&config.run, &config.optimizer, &config.learning_rate, &config.ema, no_decay_var);
        let learner = Learner::new(model, rules, SectionNames::SINGLE);
        let stream = TokenStream::new(tokens, &config.run)?;
        let (folder, device) = (folder.to_path_buf(), device.clone());
        Ok(Self { config, folder, device, tokenizer, learner, stream })
    }

    /// The result of the run: the moving average of the weights.
    pub fn average(&self) -> &Var {
        self.learner.average()
    }

    /// The transformer as it is trained.
    pub fn model(&self) -> &Var {
        &self.learner.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &VqVae {
        &self.tokenizer
    }
}

/// Returns loss and accuracy, of all tokens and of each scale.
fn per_scale(logits: &Tensor<3>, targets: &Tensor<2, Int>, scales: &Scales) -> Result<Metrics> {
    let read = |values: Tensor<2>| -> Result<Vec<f64>> {
        Ok(values.try_into_vec_as::<f64>().map_err(burn_var::Error::device("read losses"))?)
    };
    let targets = targets.clone();
    let nll = read(ops::cross_entropy(logits.clone(), targets.clone(), 0.0).mean_dim(0))?; // per position
    let hits = logits.clone().argmax(2).squeeze_dim::<2>(2).equal(targets).float();
    let hits = read(hits.mean_dim(0))?;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let mut metrics = vec![("loss".into(), mean(&nll)), ("accuracy".into(), mean(&hits))];
    for k in 0..scales.len() {
        metrics.push((format!("loss_{k}"), mean(&nll[scales.range(k)])));
        metrics.push((format!("accuracy_{k}"), mean(&hits[scales.range(k)])));
    }
    Ok(metrics)
}

impl Method for VarMethod {
    type Batch = TokenBatch;
    type Record = Metrics;

    fn data(&self) -> &dyn TrainingData {
        &self.stream
    }

    fn networks(&self) -> Vec<&dyn Network> {
        vec![&self.learner]
    }

    fn networks_mut(&mut self) -> Vec<&mut dyn Network> {
        vec![&mut self.learner]
    }

    fn batch(&mut self, piece: &Piece) -> Result<TokenBatch> {
        self.stream.batch(piece)
    }

    fn backward(&self, round: &Round, piece: &Piece, batch: &mut TokenBatch) -> Result<(NetworkGradients, Metrics)> {
        let TokenBatch { tokens: rows, labels } = batch;
        let tokens = TokenPyramid::from_rows(self.tokenizer.scales().clone(), rows, &self.device)?;
        let input = Tensor::from_inner(self.tokenizer.teacher_input(&tokens));
        let labels = drop_labels(labels, self.config.class_dropout, &mut piece.noise("class dropout"));
        let scales = self.tokenizer.scales();
        let noise = &mut piece.noise("drop path");
        let logits = self.learner.model.teacher_forced(&labels, input, scales, Some(noise))?;
        let targets = tokens.sequence();
        let loss = ops::cross_entropy(logits.clone(), targets.clone(), self.config.label_smoothing).mean();
        let metrics = match round.measure {
            true => per_scale(&logits.inner(), &targets, self.tokenizer.scales())?,
            false => Vec::new(),
        };
        let gradients = GradientsParams::from_grads(loss.backward(), &self.learner.model);
        Ok((vec![(0, gradients)], metrics))
    }

    fn finish(&mut self, round: &Round, records: Vec<Metrics>, rates: &[Rates]) -> Result<Metrics> {
        Ok(round_metrics(round, records, rates))
    }

    fn samples(&mut self, step: u64) -> Result<Option<PathBuf>> {
        let preview = &self.config.preview;
        let classes = preview.classes.min(self.stream.spec().class_names.len());
        let labels: Vec<usize> = (0..classes).flat_map(|class| std::iter::repeat_n(class, preview.per_class)).collect();
        let mut request = BatchRequest::classes(&labels, self.config.run.seed);
        request.sampler = preview.sampler;
        let guidance: Vec<Box<dyn Guidance>> = vec![Box::new(Cfg::ramp(preview.cfg))];
        let generated =
            generate(&self.tokenizer, self.average(), guidance, request, &mut |_| std::ops::ControlFlow::Continue(()))?;
        let path = self.folder.join("samples").join(format!("step-{step:08}.png"));
        let images = to_images(self.tokenizer.decode(generated.canvas), ValueRange::Signed)?;
        Grid::new(preview.per_class).write(&path, &images)?;
        Ok(Some(path))
    }

    fn export(&self) -> Result<PathBuf> {
        let path = self.folder.join("transformer.safetensors");
        let usage = GenerationConfig {
            class_names: self.stream.spec().class_names.clone(),
            cfg: Schedule::Ramp(self.config.preview.cfg),
            sampler: self.config.preview.sampler,
        };
        let mut options = SaveOptions::default();
        usage.insert(&mut options.metadata)?;
        self.average().save(&path, &options)?;
        Ok(path)
    }

    fn charts(&self) -> Vec<(&'static str, Vec<String>)> {
        let each = |name: &str| -> Vec<String> {
            (0..self.tokenizer.scales().len()).map(|k| format!("{name}_{k}")).chain([name.to_owned()]).collect()
        };
        vec![("loss", each("loss")), ("accuracy", each("accuracy"))]
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
    device: &Device,
    progress: &mut dyn Progress,
) -> Result<Option<PathBuf>> {
    Ok(train(config, folder, device, progress)?.map(|(file, _)| file))
}
