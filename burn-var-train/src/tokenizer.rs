//! Training of VAR's multi-scale tokenizer, which its authors never released.

mod adversary;
mod losses;

use std::path::{Path, PathBuf};

use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor, TensorData};
use burn_var::Tokenizer;
use burn_var::pretrained::save_vqvae;
use burn_var::rng::Rng;
use burn_var::tokenizer::{VqVae, VqVaeConfig};
use serde::{Deserialize, Deserializer, Serialize};

use self::adversary::{Adversary, Judgement};
use self::losses::{Criterion, Pass};
use crate::checkpoint::{Checkpoint, Part};
use crate::config::settle;
use crate::data::{BatchLoader, PictureShape, Split, View};
use crate::grid::{Grid, Range, pictures};
use crate::learner::{Learner, Rules};
use crate::optim::{EmaConfig, LrSchedule, OptimConfig, no_decay_1d};
use crate::progress::Progress;
use crate::run::{DataConfig, Metrics, RunConfig, Trainer, run};
use crate::stream::Stream;
use crate::{Error, Result};

pub use self::adversary::GanConfig;
pub use self::losses::TokenizerLoss;

/// A tokenizer's training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerConfig {
    /// Length, batch, seed, intervals.
    pub run: RunConfig,
    /// The pictures.
    pub data: DataConfig,
    /// The tokenizer.
    pub model: VqVaeConfig,
    /// AdamW.
    #[serde(default = "default_optimizer", deserialize_with = "optimizer")]
    pub optimizer: OptimConfig,
    /// Learning rate.
    #[serde(default)]
    pub learning_rate: LrSchedule,
    /// Moving average of the weights, which is what is kept in the end.
    #[serde(default)]
    pub ema: EmaConfig,
    /// Weights of the loss terms.
    #[serde(default)]
    pub loss: TokenizerLoss,
    /// The adversarial term.
    #[serde(default)]
    pub gan: GanConfig,
    /// Revival of dead codes.
    #[serde(default)]
    pub revival: Revival,
}

/// AdamW as VQ-GAN uses it.
fn default_optimizer() -> OptimConfig {
    OptimConfig { beta_1: 0.5, beta_2: 0.9, weight_decay: 0.0, clip_norm: Some(1.0), ..OptimConfig::default() }
}

fn optimizer<'de, D: Deserializer<'de>>(section: D) -> std::result::Result<OptimConfig, D::Error> {
    crate::config::over(default_optimizer(), section)
}

/// Codes that nothing chooses any more are moved to where the encoder needs some: onto residuals of the present batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Revival {
    /// Steps between revivals; 0 is never.
    pub every: u64,
    /// The last step that revives, as a share of the run: codes need time to settle after.
    pub until: f64,
    /// A code is dead when its moving average of uses a step falls below this share of the mean over all codes.
    pub threshold: f64,
}

impl Default for Revival {
    fn default() -> Self {
        Self { every: 100, until: 0.7, threshold: 0.03 }
    }
}

/// How fast the average of uses forgets.
const USAGE_DECAY: f64 = 0.98;

impl TokenizerConfig {
    /// Refuses what no run can mean.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        self.run.validate()?;
        self.model.validate()?;
        self.optimizer.validate()?;
        self.learning_rate.validate()?;
        self.ema.validate()?;
        let picture = self.model.picture_shape();
        self.loss.validate(picture)?;
        self.gan.validate(self.run.steps, picture)
    }
}

/// A tokenizer in training.
pub struct TokenizerTrainer {
    config: TokenizerConfig,
    folder: PathBuf,
    learner: Learner<VqVae>,
    criterion: Criterion,
    /// There if the adversarial term ever counts.
    adversary: Option<Adversary>,
    /// Moving average of how often each code is used a step, over all scales.
    usage: Vec<f64>,
    stream: Stream,
    /// Test pictures to show reconstructions of, `[batch, channels, height, width]`.
    shown: Tensor<4>,
}

impl TokenizerTrainer {
    /// A run in `folder` on `device` (without autodiff), at its first step.
    ///
    /// # Errors
    /// A configuration or data that no run can be made of.
    pub fn new(config: TokenizerConfig, folder: &Path, device: &Device) -> Result<Self> {
        config.validate()?;
        let picture = config.model.picture_shape();
        let [channels, height, width] = picture;
        let shape = PictureShape::new(height, width, channels)?;
        let train = BatchLoader::new(config.data.open(Split::Train)?, shape);
        let stream = Stream::new(train, &config.run, config.data.mirror, device)?;
        let test = BatchLoader::new(config.data.open(Split::Test)?, shape);
        let indices: Vec<usize> = (0..test.source().len().min(SHOWN)).collect();
        let shown = test.load(&indices, View::Fixed { mirrored: false }, device)?.images;
        let autodiff = device.clone().autodiff();
        let model = config.model.init(config.run.seed, &autodiff)?;
        let rules = Rules {
            optimizer: config.optimizer.clone(),
            learning_rate: config.learning_rate.clone(),
            ema: config.ema.clone(),
            no_decay: no_decay_1d,
            steps: config.run.steps,
        };
        let learner = Learner::new(model, rules);
        let criterion = Criterion::new(config.loss.clone(), &autodiff)?;
        let adversary = (config.gan.weight > 0.0)
            .then(|| Adversary::new(config.gan.clone(), picture, config.run.seed, &autodiff))
            .transpose()?;
        let usage = vec![0.0; config.model.vocab_size];
        let folder = folder.to_path_buf();
        Ok(Self { config, folder, learner, criterion, adversary, usage, stream, shown })
    }

    /// The tokenizer that the run is for: the moving average of the weights.
    pub fn average(&self) -> &VqVae {
        &self.learner.average
    }

    /// Counts which codes were used, per scale: `[scale][code]`.
    fn count(&self, tokens: &[Tensor<2, Int>]) -> Result<Vec<Vec<u32>>> {
        let read = |ids: &Tensor<2, Int>| {
            let ids = ids.try_to_vec_as::<i64>().map_err(burn_var::Error::device("read token ids"))?;
            Ok(ids.into_iter().fold(vec![0; self.usage.len()], |mut counts, id| {
                counts[id as usize] += 1;
                counts
            }))
        };
        tokens.iter().map(read).collect()
    }

    /// Moves dead codes onto residuals; returns how many.
    fn revive(&mut self, step: u64, residuals: &[Tensor<2>]) -> Result<usize> {
        let mean = self.usage.iter().sum::<f64>() / self.usage.len() as f64;
        let threshold = self.config.revival.threshold * mean;
        let dead: Vec<usize> = (0..self.usage.len()).filter(|&code| self.usage[code] < threshold).collect();
        if dead.is_empty() {
            return Ok(0);
        }
        let all = Tensor::cat(residuals.to_vec(), 0);
        let channels = all.dims()[1];
        let all = all.try_into_vec_as::<f32>().map_err(burn_var::Error::device("read residuals"))?;
        let mut rng = Rng::new(self.config.run.seed, "revive", step);
        let chosen: Vec<&[f32]> = dead
            .iter()
            .map(|_| {
                let row = rng.below(all.len() / channels);
                &all[row * channels..(row + 1) * channels]
            })
            .collect();
        replace_codes(&mut self.learner.model, &dead, &chosen)?;
        replace_codes(&mut self.learner.average, &dead, &chosen)?;
        dead.iter().for_each(|&code| self.usage[code] = mean);
        Ok(dead.len())
    }
}

/// How many test pictures the sample grid shows.
const SHOWN: usize = 16;

/// Overwrites rows of the codebook.
fn replace_codes(model: &mut VqVae, codes: &[usize], rows: &[&[f32]]) -> Result<()> {
    let weight = &mut model.quantize.embedding.weight;
    let table = weight.val();
    let shape = table.dims();
    let device = table.device();
    let mut values = table.try_into_vec_as::<f32>().map_err(burn_var::Error::device("read the codebook"))?;
    for (&code, row) in codes.iter().zip(rows) {
        values[code * shape[1]..(code + 1) * shape[1]].copy_from_slice(row);
    }
    let trained = weight.is_require_grad();
    let table = Tensor::from_data(TensorData::new(values, shape), &device);
    *weight = burn::module::Param::initialized(weight.id, table).set_require_grad(trained);
    Ok(())
}

impl Trainer for TokenizerTrainer {
    fn step(&mut self, step: u64, measure: bool) -> Result<Metrics> {
        let model = &self.learner.model;
        let pass = Pass::new(model, self.stream.batch(step)?.images)?;
        let mut adversary = self.adversary.as_mut().filter(|adversary| adversary.is_active(step));
        let (grads, terms) = self.criterion.backward(&pass, adversary.as_deref(), model.decoder.conv_out())?;
        let grads = GradientsParams::from_grads(grads, model);
        let rates = self.learner.update(step, grads).map_err(|error| terms.blame(step, error))?;

        let steps = self.config.run.steps;
        let judgement =
            adversary.as_mut().map(|adversary| adversary.learn([step, steps], pass.pictures())).transpose()?;
        let quantized = pass.quantized;
        let counts = self.count(&quantized.tokens)?;
        for (code, usage) in self.usage.iter_mut().enumerate() {
            let used: u32 = counts.iter().map(|scale| scale[code]).sum();
            *usage = *usage * USAGE_DECAY + f64::from(used) * (1.0 - USAGE_DECAY);
        }
        let revival = self.config.revival.clone();
        let mut revived = None;
        if revival.every > 0
            && (step + 1).is_multiple_of(revival.every)
            && ((step + 1) as f64) < revival.until * steps as f64
        {
            revived = Some(self.revive(step, &quantized.residuals)?);
        }
        let mut metrics = Metrics::new();
        if measure {
            metrics.extend(terms.metrics()?);
            metrics.extend(judgement.map(|judgement| judgement.metrics()).transpose()?.into_iter().flatten());
            metrics.extend(rates);
            for (k, scale) in counts.iter().enumerate() {
                let used = scale.iter().filter(|&&count| count > 0).count();
                metrics.push((format!("usage_{k}"), used as f64 / scale.len() as f64));
            }
            let mean = self.usage.iter().sum::<f64>() / self.usage.len() as f64;
            let alive = self.usage.iter().filter(|&&usage| usage >= revival.threshold * mean).count();
            metrics.push(("alive".into(), alive as f64 / self.usage.len() as f64));
        }
        if let Some(revived) = revived {
            metrics.push(("revived".into(), revived as f64));
        }
        Ok(metrics)
    }

    fn parts(&self) -> Vec<Part<'_>> {
        let usage = self.usage.iter().flat_map(|usage| usage.to_le_bytes()).collect();
        let mut parts = self.learner.parts();
        parts.push(Part::bytes("usage", usage));
        parts.extend(self.adversary.iter().flat_map(Adversary::parts));
        parts
    }

    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.learner.restore(checkpoint)?;
        if let Some(adversary) = &mut self.adversary {
            adversary.restore(checkpoint)?;
        }
        let bytes = checkpoint.bytes("usage")?;
        let usage: Vec<f64> = bytes.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        if usage.len() != self.usage.len() {
            return Err(Error::format(
                checkpoint.path(),
                format!("counts {} codes, the model has {}", usage.len(), self.usage.len()),
            ));
        }
        self.usage = usage;
        Ok(())
    }

    fn data(&self) -> String {
        self.stream.data()
    }

    fn data_like(&self, recorded: &str) -> Result<String> {
        self.stream.data_like(recorded)
    }

    fn samples(&mut self, step: u64) -> Result<Option<PathBuf>> {
        let model = self.average();
        let tokens = model.tokenize(self.shown.clone())?;
        // The originals, then each picture as it grows scale by scale.
        let mut rows = vec![self.shown.clone()];
        rows.extend(model.canvases(&tokens).into_iter().map(|canvas| model.decode(canvas)));
        let path = self.folder.join("samples").join(format!("step-{step:08}.png"));
        let columns = self.shown.dims()[0];
        Grid::new(columns).write(&path, &pictures(Tensor::cat(rows, 0), Range::Signed)?)?;
        Ok(Some(path))
    }

    fn export(&self) -> Result<PathBuf> {
        let path = self.folder.join("tokenizer.safetensors");
        save_vqvae(self.average(), &path, false)?;
        Ok(path)
    }

    fn charts(&self) -> Vec<(&'static str, Vec<String>)> {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let usage = (0..self.config.model.patch_nums.len()).map(|k| format!("usage_{k}")).collect();
        let mut terms = own(&["loss", "l2", "vq"]);
        for (name, weight) in [("l1", self.config.loss.l1), ("perceptual", self.config.loss.perceptual)] {
            terms.extend((weight > 0.0).then(|| name.to_owned()));
        }
        let mut charts = vec![("loss", terms), ("psnr", own(&["psnr"])), ("usage", usage)];
        if self.adversary.is_some() {
            charts.push(("discriminator", own(&Judgement::NAMES)));
        }
        charts
    }
}

/// Trains a tokenizer in `folder`, or goes on with what is there, and returns the file it is kept in; none if
/// `progress` ended the run before the last step.
///
/// # Errors
/// Whatever makes the run impossible or breaks it off; the same call goes on from the last checkpoint.
pub fn train_tokenizer(
    config: TokenizerConfig,
    folder: &Path,
    device: &Device,
    progress: &mut dyn Progress,
) -> Result<Option<PathBuf>> {
    // A wrong path must not be kept as the configuration that the run was started with.
    let mut trainer = TokenizerTrainer::new(config.clone(), folder, device)?;
    settle(folder, &config, &RunConfig::MAY_CHANGE)?;
    let run_config = config.run;
    run(&mut trainer, &run_config, folder, progress)
}
