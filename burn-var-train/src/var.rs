//! Training of the next-scale transformer on a frozen tokenizer's tokens.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Device, Int, Tensor};
use burn_var::guidance::{Cfg, Guidance, Schedule};
use burn_var::ops;
use burn_var::pretrained::{StateDict, Usage, load_vqvae, save_var, vqvae_config};
use burn_var::rng::Rng;
use burn_var::sampler::Sampler;
use burn_var::tokenizer::VqVae;
use burn_var::transformer::{Var, VarConfig, VarInit, drop_labels};
use burn_var::{Request, Scales, TokenPyramid, Tokenizer, generate};
use serde::{Deserialize, Deserializer, Serialize};

use crate::checkpoint::{Checkpoint, Part};
use crate::config::settle;
use crate::data::{
    BatchLoader, BatchOrder, Fingerprint, PictureShape, PictureSource, Split, TokenBatch, TokenCache, TokenCacheSpec,
    TokenCacheWriter, VariantChoice, View,
};
use crate::grid::{Grid, Range, pictures};
use crate::learner::{Learner, Rules};
use crate::optim::{EmaConfig, LrSchedule, OptimConfig, no_decay_var};
use crate::progress::Progress;
use crate::run::{DataConfig, Metrics, RunConfig, Trainer, run};
use crate::{Error, Result};

/// A transformer's training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VarTrainConfig {
    /// Length, batch, seed, intervals.
    pub run: RunConfig,
    /// The pictures.
    pub data: DataConfig,
    /// The tokenizer's file.
    pub tokenizer: PathBuf,
    /// The transformer. Ladder, codes and classes come from the tokenizer and the pictures.
    pub model: VarSize,
    /// Constants of the first weights.
    #[serde(default)]
    pub init: VarInit,
    /// AdamW.
    #[serde(default = "default_optimizer", deserialize_with = "optimizer")]
    pub optimizer: OptimConfig,
    /// Learning rate.
    #[serde(default)]
    pub learning_rate: LrSchedule,
    /// Moving average of the weights, which is what is kept in the end.
    #[serde(default)]
    pub ema: EmaConfig,
    /// Share of the target that is spread over all codes.
    #[serde(default)]
    pub label_smoothing: f64,
    /// Share of labels replaced by the null class.
    #[serde(default = "default_class_dropout")]
    pub class_dropout: f64,
    /// Micro-batches a step: the batch is computed in so many pieces, with the same result.
    #[serde(default = "default_accumulate")]
    pub accumulate: usize,
    /// How the pictures of the sample grids are drawn.
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

fn default_accumulate() -> usize {
    1
}

/// The sizes of a transformer that are free once tokenizer and pictures are given. See [`VarConfig`].
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
    /// L2-normalised attention.
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
    /// The whole configuration.
    pub fn for_tokenizer(&self, tokenizer: &impl Tokenizer, num_classes: usize) -> VarConfig {
        VarConfig {
            depth: self.depth,
            embed_dim: self.embed_dim,
            num_heads: self.num_heads,
            mlp_ratio: self.mlp_ratio,
            norm_eps: 1e-6,
            shared_aln: self.shared_aln,
            attn_l2_norm: self.attn_l2_norm,
            vocab_size: tokenizer.vocab_size(),
            z_channels: tokenizer.z_channels(),
            num_classes,
            patch_nums: tokenizer.scales().clone(),
            drop_path_rate: self.drop_path_rate,
        }
    }
}

/// How the pictures of the sample grids are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Preview {
    /// Strength of classifier-free guidance at the last scale.
    pub cfg: f64,
    /// How tokens are drawn.
    pub sampler: Sampler,
    /// Pictures a class.
    pub per_class: usize,
    /// The most classes that are shown.
    pub classes: usize,
}

impl Default for Preview {
    fn default() -> Self {
        Self { cfg: 1.5, sampler: Sampler::default(), per_class: 8, classes: 10 }
    }
}

impl VarTrainConfig {
    /// Refuses what no run can mean.
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
        if self.accumulate == 0 || !self.run.batch_size.is_multiple_of(self.accumulate) {
            let expected = format!("a divisor of batch_size {}", self.run.batch_size);
            return Err(Error::config("accumulate", self.accumulate, expected));
        }
        Ok(())
    }
}

/// A transformer in training.
pub struct VarTrainer {
    config: VarTrainConfig,
    folder: PathBuf,
    device: Device,
    tokenizer: VqVae,
    learner: Learner<Var>,
    tokens: TokenCache,
    order: BatchOrder,
}

impl VarTrainer {
    /// A run in `folder` on `device` (without autodiff), at its first step.
    ///
    /// # Errors
    /// A configuration or data that no run can be made of.
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
        let rules = Rules {
            optimizer: config.optimizer.clone(),
            learning_rate: config.learning_rate.clone(),
            ema: config.ema.clone(),
            no_decay: no_decay_var,
            steps: config.run.steps,
        };
        let learner = Learner::new(model, rules);
        let order = BatchOrder::new(tokens.len(), config.run.batch_size, config.run.seed)?;
        let (folder, device) = (folder.to_path_buf(), device.clone());
        Ok(Self { config, folder, device, tokenizer, learner, tokens, order })
    }

    /// The transformer that the run is for: the moving average of the weights.
    pub fn average(&self) -> &Var {
        &self.learner.average
    }

    /// The tokenizer's file, configuration and classes belong to it.
    pub fn tokenizer(&self) -> &VqVae {
        &self.tokenizer
    }

    /// Forward and backward of one micro-batch; its share of the loss, and its numbers.
    fn backward(&self, batch: &TokenBatch, rng: &mut Rng, measure: bool) -> Result<(GradientsParams, Metrics)> {
        let TokenBatch { tokens: rows, labels } = batch;
        let tokens = TokenPyramid::from_rows(self.tokenizer.scales().clone(), rows, &self.device)?;
        let input = Tensor::from_inner(self.tokenizer.teacher_input(&tokens));
        let labels = drop_labels(labels, self.config.class_dropout, rng);
        let logits = self.learner.model.forward(&labels, input, Some(rng))?;
        let targets = tokens.sequence();
        let loss = ops::cross_entropy(logits.clone(), targets.clone(), self.config.label_smoothing).mean();
        let metrics = if measure { per_scale(&logits.inner(), &targets, self.tokenizer.scales())? } else { Vec::new() };
        let share = 1.0 / self.config.accumulate as f64;
        Ok((GradientsParams::from_grads((loss * share).backward(), &self.learner.model), metrics))
    }
}

/// Loss and accuracy, of all tokens and of each scale.
fn per_scale(logits: &Tensor<3>, targets: &Tensor<2, Int>, scales: &Scales) -> Result<Metrics> {
    let read = |values: Tensor<2>| -> Result<Vec<f64>> {
        Ok(values.try_into_vec_as::<f64>().map_err(burn_var::Error::device("read losses"))?)
    };
    let targets = targets.clone();
    let nll = read(ops::cross_entropy(logits.clone(), targets.clone(), 0.0).mean_dim(0))?; // one a position
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

impl Trainer for VarTrainer {
    fn step(&mut self, step: u64, measure: bool) -> Result<Metrics> {
        let indices = self.order.batch(step as usize);
        let choice = VariantChoice::Random { seed: self.config.run.seed, epoch: self.order.epoch(step as usize) };
        let mut rng = Rng::new(self.config.run.seed, "var dropout", step);
        let mut sum = GradientsAccumulator::new();
        let mut metrics = Metrics::new();
        for part in indices.chunks(self.config.run.batch_size / self.config.accumulate) {
            let batch = self.tokens.batch(part, choice)?;
            let (grads, part) = self.backward(&batch, &mut rng, measure)?;
            sum.accumulate(&self.learner.model, grads);
            // Every part has the same names in the same order.
            match metrics.is_empty() {
                true => metrics = part,
                false => metrics.iter_mut().zip(part).for_each(|(sum, (_, value))| sum.1 += value),
            }
        }
        metrics.iter_mut().for_each(|(_, value)| *value /= self.config.accumulate as f64);
        let rates = self.learner.update(step, sum.grads())?;
        if measure {
            metrics.extend(rates);
        }
        Ok(metrics)
    }

    fn parts(&self) -> Vec<Part<'_>> {
        self.learner.parts()
    }

    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.learner.restore(checkpoint)
    }

    fn data(&self) -> String {
        let TokenCacheSpec { data, tokenizer, .. } = self.tokens.spec();
        format!("{data} {tokenizer}")
    }

    fn samples(&mut self, step: u64) -> Result<Option<PathBuf>> {
        let preview = &self.config.preview;
        let classes = preview.classes.min(self.tokens.spec().class_names.len());
        let labels: Vec<usize> = (0..classes).flat_map(|class| std::iter::repeat_n(class, preview.per_class)).collect();
        let mut request = Request::new(&labels, self.config.run.seed);
        request.sampler = preview.sampler;
        let mut guidance: Vec<Box<dyn Guidance>> = vec![Box::new(Cfg::ramp(preview.cfg))];
        let made = generate(&self.tokenizer, self.average(), &mut guidance, &request, &mut |_| {
            std::ops::ControlFlow::Continue(())
        })?;
        let path = self.folder.join("samples").join(format!("step-{step:08}.png"));
        let images = pictures(self.tokenizer.decode(made.canvas), Range::Signed)?;
        Grid::new(preview.per_class).write(&path, &images)?;
        Ok(Some(path))
    }

    fn export(&self) -> Result<PathBuf> {
        let path = self.folder.join("transformer.safetensors");
        let usage = Usage {
            class_names: self.tokens.spec().class_names.clone(),
            cfg: Schedule::Ramp(self.config.preview.cfg),
            sampler: self.config.preview.sampler,
        };
        save_var(self.average(), &usage, &path, false)?;
        Ok(path)
    }

    fn charts(&self) -> Vec<(&'static str, Vec<String>)> {
        let each = |name: &str| -> Vec<String> {
            (0..self.tokenizer.scales().len()).map(|k| format!("{name}_{k}")).chain([name.to_owned()]).collect()
        };
        vec![("loss", each("loss")), ("accuracy", each("accuracy"))]
    }
}

/// Trains a transformer in `folder`, or goes on with what is there, and returns the file it is kept in; none if
/// `progress` ended the run before the last step.
///
/// The pictures' tokens are kept in `tokens.safetensors` beside it, so they are encoded once.
///
/// # Errors
/// Whatever makes the run impossible or breaks it off; the same call goes on from the last checkpoint.
pub fn train_var(
    config: VarTrainConfig,
    folder: &Path,
    device: &Device,
    progress: &mut dyn Progress,
) -> Result<Option<PathBuf>> {
    config.validate()?;
    let dict = StateDict::open(&config.tokenizer)?;
    let tokenizer = load_vqvae(&dict, &vqvae_config(&dict, None)?, device)?;
    let source = config.data.open(Split::Train)?;
    // Only now: a wrong path is not to be kept as the run's configuration.
    settle(folder, &config, &RunConfig::MAY_CHANGE)?;
    let tokens =
        cached_tokens(source, config.data.mirror, &tokenizer, &folder.join("tokens.safetensors"), device, progress)?;
    let run_config = config.run.clone();
    let mut trainer = VarTrainer::new(config, tokenizer, tokens, folder, device)?;
    run(&mut trainer, &run_config, folder, progress)
}

/// How many pictures are encoded at a time.
const ENCODE_BATCH: usize = 64;

/// The tokens of all training pictures, and of their mirror images if the run mirrors.
pub(crate) fn cached_tokens(
    source: Arc<dyn PictureSource>,
    mirror: bool,
    tokenizer: &VqVae,
    path: &Path,
    device: &Device,
    progress: &mut dyn Progress,
) -> Result<TokenCache> {
    let [channels, height, width] = tokenizer.picture_shape();
    let shape = PictureShape::new(height, width, channels)?;
    let sizes = serde_json::to_vec(tokenizer.config())
        .map_err(|e| Error::config("tokenizer", e, "sizes that JSON can hold"))?;
    let fingerprint = match path.exists() {
        // An earlier version may have made the cache: its fingerprints are compared in their own form.
        true => Fingerprint::like(&TokenCache::open(path)?.spec().tokenizer),
        false => Fingerprint::new(),
    };
    let fingerprint = fingerprint.field(&sizes).module(tokenizer)?.finish();
    let variants: Vec<View> = [false, true]
        .into_iter()
        .filter(|&mirrored| !mirrored || mirror)
        .map(|mirrored| View::Fixed { mirrored })
        .collect();
    let (scales, vocab) = (tokenizer.scales().clone(), tokenizer.vocab_size());
    let spec = TokenCacheSpec::new(&*source, shape, variants.clone(), scales, vocab, fingerprint)?;
    if path.exists() {
        return TokenCache::open_matching(path, &spec);
    }
    progress.note(&format!("encodes {} pictures once, into {}", source.len(), path.display()));
    let mut writer = TokenCacheWriter::create(path, spec)?;
    let loader = BatchLoader::new(source, shape);
    let indices: Vec<usize> = (0..loader.source().len()).collect();
    for part in indices.chunks(ENCODE_BATCH) {
        let mut rows = vec![Vec::with_capacity(variants.len()); part.len()];
        for &view in &variants {
            let tokens = tokenizer.tokenize(loader.load(part, view, device)?.images)?.to_rows()?;
            rows.iter_mut().zip(tokens).for_each(|(rows, row)| rows.push(row));
        }
        for (index, rows) in part.iter().zip(&rows) {
            writer.push(loader.source().label(*index), rows)?;
        }
    }
    writer.finish()
}
