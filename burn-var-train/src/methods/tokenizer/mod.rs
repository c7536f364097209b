//! Training of the tokenizers of VAR and FlexVAR, which their authors never released, and of LlamaGen's.
//!
//! VAR's tokenizer adds up all scales and reconstructs one image. FlexVAR's decodes each scale by itself, so a step trains
//! the last scale and some of the others ([`TokenizerTrainConfig::extra_scales`]): their images are compared with the image
//! resized to the same size. The terms that need larger images leave the small ones out: LPIPS counts from 16 pixels, and
//! the discriminator sees the images of the last scale alone.

mod adversary;
mod family;
mod pass;
pub mod patch_gan;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use burn_var::Tokenizer;
use burn_var::image::{ValueRange, to_images};
use burn_var::models::flexvar::FlexVaeConfig;
use burn_var::models::llamagen::LlamaGenVqConfig;
use burn_var::models::var::VqVaeConfig;
use burn_var::rng::Rng;
use burn_var::weights::{Pretrained, SaveOptions};
use serde::{Deserialize, Deserializer, Serialize};

use self::adversary::{Adversary, Judgement};
use self::pass::{Pass, Sides, Terms};
use crate::data::{BatchLoader, ImageShape, ImageStream, Split, View};
use crate::engine::checkpoint::{Checkpoint, Part};
use crate::engine::progress::Progress;
use crate::engine::run::{DataConfig, Metrics, RunConfig};
use crate::engine::{
    Learner, Method, Network, NetworkGradients, Packet, Piece, Placement, Portable, Rates, Round, Rules, SectionNames,
    TrainConfig, TrainingData, mean_metrics, train,
};
use crate::grid::Grid;
use crate::losses::Criterion;
use crate::optim::{EmaConfig, LrSchedule, OptimConfig, no_decay_1d};
use crate::tensor::mean;
use crate::{Error, Result};

pub use self::adversary::GanConfig;
pub use self::family::{Reconstruction, TokenizerSizes, TrainedScale, TrainedTokenizer};
pub use crate::losses::TokenizerLoss;

/// The configuration of a tokenizer's training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound = "")]
pub struct TokenizerTrainConfig<C: TokenizerSizes = VqVaeConfig> {
    /// Length, batch, seed, intervals.
    pub run: RunConfig,
    /// The images.
    pub data: DataConfig,
    /// The tokenizer.
    pub model: C,
    /// Scales that a step trains besides the last, drawn from the tokenizer's schedule; for FlexVAR's tokenizer, 2 by
    /// default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra_scales: Option<usize>,
    /// AdamW.
    #[serde(default = "C::optimizer", deserialize_with = "optimizer::<_, C>")]
    pub optimizer: OptimConfig,
    /// Learning rate.
    #[serde(default)]
    pub learning_rate: LrSchedule,
    /// Moving average of the weights, which is the result of the run.
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

/// Reads AdamW's section; absent keys have the values of the family.
fn optimizer<'de, D, C>(section: D) -> std::result::Result<OptimConfig, D::Error>
where
    D: Deserializer<'de>,
    C: TokenizerSizes,
{
    crate::config::over(C::optimizer(), section)
}

/// Revival of dead codes: codes that are hardly chosen any more move onto residuals of the present batch, where the
/// encoder needs some.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Revival {
    /// Steps between revivals; 0 for none.
    pub every: u64,
    /// The last step that revives, as a share of the run: codes need time to settle after.
    pub until: f64,
    /// A code is dead when the moving average of its uses per step falls below this share of the mean over all codes.
    pub threshold: f64,
}

impl Default for Revival {
    fn default() -> Self {
        Self { every: 100, until: 0.7, threshold: 0.03 }
    }
}

/// Share of the old average of uses that a step keeps.
const USAGE_DECAY: f64 = 0.98;

impl<C: TokenizerSizes> TokenizerTrainConfig<C> {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        self.run.validate()?;
        self.model.validate()?;
        self.optimizer.validate()?;
        self.learning_rate.validate()?;
        self.ema.validate()?;
        let image = self.model.image_shape();
        self.loss.validate(image)?;
        self.gan.validate(self.run.steps, image)?;
        match self.extra_scales {
            Some(extra) if C::EXTRA_SCALES == 0 && extra > 0 => {
                Err(Error::config("extra_scales", extra, "absent: every step trains all scales of this tokenizer"))
            }
            _ => Ok(()),
        }
    }
}

impl<C: TokenizerSizes> TokenizerTrainConfig<C> {
    /// Returns the scales, of a schedule of `scales`, that a step trains besides the last: drawn without replacement.
    fn drawn_scales(&self, step: u64, scales: usize) -> Vec<usize> {
        let mut others: Vec<usize> = (0..scales - 1).collect();
        let count = self.extra_scales.unwrap_or(C::EXTRA_SCALES).min(others.len());
        let mut rng = Rng::new(self.run.seed, "scales", step);
        (0..count).map(|_| others.swap_remove(rng.below(others.len()))).collect()
    }
}

impl<C: TokenizerSizes> TrainConfig for TokenizerTrainConfig<C> {
    /// Loaders of the training and of the test images.
    type Inputs = [BatchLoader; 2];
    type Method = TokenizerMethod<C>;

    fn run(&self) -> &RunConfig {
        &self.run
    }

    fn open(&self, _device: &Device) -> Result<[BatchLoader; 2]> {
        self.validate()?;
        let [channels, height, width] = self.model.image_shape();
        let shape = ImageShape::new(height, width, channels)?;
        let train = self.data.open(Split::Train)?;
        Ok([train, self.data.open(Split::Test)?].map(|source| BatchLoader::new(source, shape)))
    }

    fn start(
        self,
        [train, test]: [BatchLoader; 2],
        folder: &Path,
        device: &Device,
        _progress: &mut dyn Progress,
    ) -> Result<TokenizerMethod<C>> {
        let stream = ImageStream::new(train, &self.run, self.data.mirror, device)?;
        let indices: Vec<usize> = (0..test.source().len().min(SHOWN)).collect();
        let shown = test.load(&indices, View::Fixed { mirrored: false }, device)?.images;
        let autodiff = device.clone().autodiff();
        let model = self.model.init(self.run.seed, &autodiff)?;
        let rules = Rules::new(&self.run, &self.optimizer, &self.learning_rate, &self.ema, no_decay_1d);
        let learner = Learner::new(model, rules, SectionNames::SINGLE);
        let criterion = Criterion::new(self.loss.clone(), &autodiff)?;
        let RunConfig { seed, steps, .. } = self.run;
        let image = self.model.image_shape();
        let adversary = match self.gan.weight > 0.0 {
            true => Some(Adversary::new(self.gan.clone(), image, seed, steps, &autodiff)?),
            false => None,
        };
        let usage = vec![0.0; learner.model.vocabulary().size];
        let folder = folder.to_path_buf();
        Ok(TokenizerMethod {
            config: self,
            folder,
            learner,
            criterion,
            adversary,
            gan_weight: None,
            usage,
            stream,
            shown,
        })
    }
}

/// Training of a tokenizer by reconstruction, with an optional discriminator.
pub struct TokenizerMethod<C: TokenizerSizes = VqVaeConfig> {
    config: TokenizerTrainConfig<C>,
    folder: PathBuf,
    learner: Learner<C::Model>,
    criterion: Criterion,
    /// Present if the adversarial term has a weight.
    adversary: Option<Adversary>,
    /// The adaptive weight of the adversarial term in the step at work.
    gan_weight: Option<Tensor<1>>,
    /// Moving average of the uses of each code per step, over all scales.
    usage: Vec<f64>,
    stream: ImageStream,
    /// Test images whose reconstructions are shown, `[batch, channels, height, width]`.
    shown: Tensor<4>,
}

/// A piece of a step's images.
pub struct TokenizerBatch {
    images: Tensor<4>,
    /// The graph of the first round, for the second.
    kept: Option<(Pass, Sides)>,
}

/// Values of a piece besides its gradients.
pub enum TokenizerRecord {
    /// The round that finds the adaptive weight: gradients of both sides at the decoder's last convolution.
    Weight(Box<[Tensor<4>; 2]>),
    /// The round that trains.
    Loss(Box<LossRecord>),
}

impl Portable for TokenizerRecord {
    fn pack(self, to: &mut Packet) -> Result<()> {
        let (weight, loss) = match self {
            Self::Weight(gradients) => (Some(gradients.to_vec()), None),
            Self::Loss(record) => (None, Some(*record)),
        };
        let loss = loss.map(|LossRecord { terms, judgement, scales }| {
            let judgement = judgement.map(|Judgement { loss, real, fake }| (loss, (real, fake)));
            let scales: Vec<_> = scales.into_iter().map(|TrainedScale { k, ids, rows }| (k, (ids, rows))).collect();
            (terms.0, (judgement, scales))
        });
        (weight, loss).pack(to)
    }

    fn unpack(from: &mut Packet, device: &Device) -> Result<Self> {
        type Judged = (Tensor<1>, (Tensor<4>, Tensor<4>));
        type Scale = (usize, (Tensor<2, burn::tensor::Int>, Tensor<2>));
        type Loss = (Vec<(String, Tensor<1>)>, (Option<Judged>, Vec<Scale>));
        let (weight, loss): (Option<Vec<Tensor<4>>>, Option<Loss>) = Portable::unpack(from, device)?;
        if let Some((terms, (judgement, scales))) = loss {
            let judgement = judgement.map(|(loss, (real, fake))| Judgement { loss, real, fake });
            let scales = scales.into_iter().map(|(k, (ids, rows))| TrainedScale { k, ids, rows }).collect();
            return Ok(Self::Loss(Box::new(LossRecord { terms: Terms(terms), judgement, scales })));
        }
        let gradients = weight.and_then(|gradients| gradients.try_into().ok());
        gradients.map(|gradients| Self::Weight(Box::new(gradients))).ok_or_else(|| Error::ranks("a record is empty"))
    }
}

/// Values of a piece in the round that trains.
pub struct LossRecord {
    terms: Terms,
    judgement: Option<Judgement>,
    /// The trained scales, the same in all pieces.
    scales: Vec<TrainedScale>,
}

impl<C: TokenizerSizes> TokenizerMethod<C> {
    /// Creates the method of a run in `folder`, on `device` (without autodiff), at its first step.
    ///
    /// # Errors
    /// Settings and images that do not fit each other.
    pub fn new(config: TokenizerTrainConfig<C>, folder: &Path, device: &Device) -> Result<Self> {
        let loaders = config.open(device)?;
        config.start(loaders, folder, device, &mut ())
    }

    /// The result of the run: the moving average of the weights.
    pub fn average(&self) -> &C::Model {
        self.learner.average()
    }

    /// The discriminator, if the adversarial term counts at a step.
    fn adversary(&self, step: u64) -> Option<&Adversary> {
        self.adversary.as_ref().filter(|adversary| adversary.is_active(step))
    }

    /// Returns true if a round finds the adaptive weight, which needs the gradients of all pieces, and trains nothing.
    fn finds_weight(&self, round: &Round) -> bool {
        round.number + 1 < self.rounds(round.step)
    }

    /// Returns true if codes are revived after a step.
    fn revives(&self, step: u64) -> bool {
        let Revival { every, until, .. } = self.config.revival;
        let done = step + 1;
        every > 0 && done.is_multiple_of(every) && (done as f64) < until * self.config.run.steps as f64
    }

    /// Counts the uses of each code at each trained scale: the scale's index, and the uses by code.
    fn count(&self, records: &[LossRecord]) -> Result<Vec<(usize, Vec<u32>)>> {
        let trained = records.first().map_or(&[][..], |record| &record.scales);
        let mut counts: Vec<_> = trained.iter().map(|scale| (scale.k, vec![0; self.usage.len()])).collect();
        for record in records {
            for ((_, counts), scale) in counts.iter_mut().zip(&record.scales) {
                let ids = scale.ids.try_to_vec_as::<i64>().map_err(burn_var::Error::device("read token ids"))?;
                ids.into_iter().for_each(|id| counts[id as usize] += 1);
            }
        }
        Ok(counts)
    }

    /// Moves dead codes onto residuals and returns their number.
    fn revive(&mut self, step: u64, records: &[LossRecord]) -> Result<usize> {
        let mean = self.usage.iter().sum::<f64>() / self.usage.len() as f64;
        let threshold = self.config.revival.threshold * mean;
        let dead: Vec<usize> = (0..self.usage.len()).filter(|&code| self.usage[code] < threshold).collect();
        if dead.is_empty() {
            return Ok(0);
        }
        // Scale by scale and in each image by image, however the batch is cut.
        let scales = 0..records[0].scales.len();
        let all = scales.flat_map(|i| records.iter().map(move |record| record.scales[i].rows.clone()));
        let all = Tensor::cat(all.collect(), 0);
        let channels = all.dims()[1];
        let all = all.try_into_vec_as::<f32>().map_err(burn_var::Error::device("read residuals"))?;
        let mut rng = Rng::new(self.config.run.seed, "revive", step);
        let mut chosen: Vec<&[f32]> = Vec::with_capacity(dead.len());
        for _ in &dead {
            let row = rng.below(all.len() / channels);
            chosen.push(&all[row * channels..(row + 1) * channels]);
        }
        self.learner.edit(|model| replace_codes(model, &dead, &chosen))?;
        dead.iter().for_each(|&code| self.usage[code] = mean);
        Ok(dead.len())
    }
}

/// Number of test images in the sample grid.
const SHOWN: usize = 16;

/// Overwrites rows of the codebook.
fn replace_codes(model: &mut impl TrainedTokenizer, codes: &[usize], rows: &[&[f32]]) -> Result<()> {
    let weight = model.codes_mut();
    let table = weight.val();
    let shape = table.dims();
    let device = table.device();
    let mut values = table.try_into_vec_as::<f32>().map_err(burn_var::Error::device("read the codebook"))?;
    for (&code, row) in codes.iter().zip(rows) {
        values[code * shape[1]..(code + 1) * shape[1]].copy_from_slice(row);
    }
    let trained = weight.is_require_grad();
    let table = Tensor::from_data(TensorData::new(values, shape), &device);
    *weight = Param::initialized(weight.id, table).set_require_grad(trained);
    Ok(())
}

impl<C: TokenizerSizes> Method for TokenizerMethod<C> {
    type Batch = TokenizerBatch;
    type Record = TokenizerRecord;

    fn data(&self) -> &dyn TrainingData {
        &self.stream
    }

    fn networks(&self) -> Vec<&dyn Network> {
        let mut networks: Vec<&dyn Network> = vec![&self.learner];
        networks.extend(self.adversary.as_ref().map(|adversary| &adversary.learner as &dyn Network));
        networks
    }

    fn networks_mut(&mut self) -> Vec<&mut dyn Network> {
        let mut networks: Vec<&mut dyn Network> = vec![&mut self.learner];
        networks.extend(self.adversary.as_mut().map(|adversary| &mut adversary.learner as &mut dyn Network));
        networks
    }

    fn batch(&mut self, piece: &Piece) -> Result<TokenizerBatch> {
        Ok(TokenizerBatch { images: self.stream.batch(piece)?.images, kept: None })
    }

    /// The adaptive weight comes from the gradients of the whole batch, so it has a round of its own.
    fn rounds(&self, step: u64) -> usize {
        if self.adversary(step).is_some_and(Adversary::is_adaptive) { 2 } else { 1 }
    }

    fn backward(
        &self,
        round: &Round,
        piece: &Piece,
        batch: &mut TokenizerBatch,
    ) -> Result<(NetworkGradients, TokenizerRecord)> {
        let model = &self.learner.model;
        let adversary = self.adversary(round.step);
        let (pass, sides) = match batch.kept.take() {
            Some((pass, sides)) => (pass, Some(sides)),
            None => {
                let extra = self.config.drawn_scales(round.step, model.scales().len());
                let pass = Pass::new(model, batch.images.clone(), &extra)?;
                let sides = adversary.map(|adversary| pass.sides(&self.criterion, adversary)).transpose()?;
                (pass, sides)
            }
        };
        let sides = match sides {
            Some(sides) if self.finds_weight(round) => {
                let gradients = pass.at_last_convolution(model.last_convolution(), &sides);
                // Several pieces are there to save the memory of the graph, which is then made again.
                batch.kept = piece.is_whole().then_some((pass, sides));
                return Ok((Vec::new(), TokenizerRecord::Weight(Box::new(gradients))));
            }
            sides => sides,
        };
        let mut gradients = Vec::new();
        let (tokenizer_gradients, terms) = match (adversary, sides) {
            (Some(adversary), Some(sides)) => {
                let constant = || adversary.constant_weight(&batch.images.device());
                let weight = self.gan_weight.clone().unwrap_or_else(constant);
                pass.backward_against(&self.criterion, sides, weight)?
            }
            _ => pass.backward(&self.criterion)?,
        };
        gradients.push((0, GradientsParams::from_grads(tokenizer_gradients, model)));
        let mut judgement = None;
        if let Some(adversary) = adversary {
            let (discriminator_gradients, judged) = adversary.backward(pass.images());
            gradients.push((1, discriminator_gradients));
            judgement = Some(judged);
        }
        let record = LossRecord { terms, judgement, scales: pass.made.scales };
        Ok((gradients, TokenizerRecord::Loss(Box::new(record))))
    }

    fn finish(&mut self, round: &Round, records: Vec<TokenizerRecord>, rates: &[Rates]) -> Result<Metrics> {
        let (mut losses, mut others, mut owns) = (Vec::new(), Vec::new(), Vec::new());
        for record in records {
            match record {
                TokenizerRecord::Loss(record) => losses.push(*record),
                TokenizerRecord::Weight(sides) => {
                    let [other, own] = *sides;
                    others.push(other);
                    owns.push(own);
                }
            }
        }
        if self.finds_weight(round) {
            let sides = mean(others).zip(mean(owns));
            self.gan_weight = self
                .adversary
                .as_ref()
                .zip(sides)
                .map(|(adversary, (other, own))| adversary.adaptive_weight([other, own]));
            return Ok(Metrics::new());
        }
        self.gan_weight = None;

        let counts = self.count(&losses)?;
        for (code, usage) in self.usage.iter_mut().enumerate() {
            let used: u32 = counts.iter().map(|(_, scale)| scale[code]).sum();
            *usage = *usage * USAGE_DECAY + f64::from(used) * (1.0 - USAGE_DECAY);
        }
        let revived = if self.revives(round.step) { Some(self.revive(round.step, &losses)?) } else { None };
        let mut metrics = Metrics::new();
        if round.measure {
            metrics.extend(loss_metrics(&losses)?);
            metrics.extend(rates.first().map(Rates::metrics).transpose()?.into_iter().flatten());
            for (k, scale) in &counts {
                let used = scale.iter().filter(|&&count| count > 0).count();
                metrics.push((format!("usage_{k}"), used as f64 / scale.len() as f64));
            }
            let mean = self.usage.iter().sum::<f64>() / self.usage.len() as f64;
            let alive = self.usage.iter().filter(|&&usage| usage >= self.config.revival.threshold * mean).count();
            metrics.push(("alive".into(), alive as f64 / self.usage.len() as f64));
        }
        metrics.extend(revived.map(|revived| ("revived".into(), revived as f64)));
        Ok(metrics)
    }

    fn explain(&self, round: &Round, records: &[TokenizerRecord], error: Error) -> Error {
        let terms = records.iter().filter_map(|record| match record {
            TokenizerRecord::Loss(record) => Some(&record.terms),
            TokenizerRecord::Weight(_) => None,
        });
        Terms::explain(&terms.collect::<Vec<_>>(), round.step, error)
    }

    fn parts(&self) -> Vec<Part<'_>> {
        let usage = self.usage.iter().flat_map(|usage| usage.to_le_bytes()).collect();
        vec![Part::bytes("usage", usage)]
    }

    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let bytes = checkpoint.bytes("usage")?;
        let usage: Vec<f64> = bytes.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        if usage.len() != self.usage.len() {
            let reason = format!("counts {} codes, the model has {}", usage.len(), self.usage.len());
            return Err(Error::format(checkpoint.path(), reason));
        }
        self.usage = usage;
        Ok(())
    }

    fn samples(&mut self, step: u64) -> Result<Option<PathBuf>> {
        let model = self.average();
        let tokens = model.encode(self.shown.clone(), model.scales())?;
        // The originals, then each image as it grows scale by scale; the tokens of a raster show nothing by themselves.
        let mut canvases = model.canvases(&tokens);
        if model.scales().raster_size().is_some() {
            canvases.drain(..canvases.len() - 1);
        }
        let mut rows = vec![self.shown.clone()];
        rows.extend(canvases.into_iter().map(|canvas| model.preview(canvas, model.scales())));
        let path = self.folder.join("samples").join(format!("step-{step:08}.png"));
        let columns = self.shown.dims()[0];
        Grid::new(columns).write(&path, &to_images(Tensor::cat(rows, 0), ValueRange::Signed)?)?;
        Ok(Some(path))
    }

    fn export(&self) -> Result<PathBuf> {
        let path = self.folder.join("tokenizer.safetensors");
        self.average().save(&path, &SaveOptions::default())?;
        Ok(path)
    }

    fn charts(&self) -> Vec<(&'static str, Vec<String>)> {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let scales = self.learner.model.scales();
        let counted = if scales.raster_size().is_some() { 1 } else { scales.len() };
        let usage = (0..counted).map(|k| format!("usage_{k}")).collect();
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

/// Reads the terms of the loss, and the discriminator's numbers, as means over the pieces.
fn loss_metrics(records: &[LossRecord]) -> Result<Metrics> {
    let terms = records.iter().map(|record| record.terms.metrics()).collect::<Result<Vec<_>>>()?;
    let judgements = records.iter().filter_map(|record| record.judgement.as_ref());
    let judgements = judgements.map(Judgement::metrics).collect::<Result<Vec<_>>>()?;
    let mut metrics = Metrics::new();
    for (name, value) in mean_metrics(terms) {
        // Images span 2 units.
        let psnr = (name == "l2").then(|| ("psnr".to_owned(), 10.0 * (4.0 / value).log10()));
        metrics.push((name, value));
        metrics.extend(psnr);
    }
    metrics.extend(mean_metrics(judgements));
    Ok(metrics)
}

/// Trains a tokenizer in `folder`, or resumes what is there, and returns its file; `None` if `progress` stopped the run
/// before the last step.
///
/// # Errors
/// The errors of [`train`].
pub fn train_tokenizer(
    config: TokenizerTrainConfig,
    folder: &Path,
    place: impl Into<Placement>,
    progress: &mut dyn Progress,
) -> Result<Option<PathBuf>> {
    Ok(train(config, folder, place, progress)?.map(|(file, _)| file))
}

/// Trains FlexVAR's tokenizer as [`train_tokenizer`] does VAR's.
///
/// # Errors
/// The errors of [`train`].
pub fn train_flexvae(
    config: TokenizerTrainConfig<FlexVaeConfig>,
    folder: &Path,
    place: impl Into<Placement>,
    progress: &mut dyn Progress,
) -> Result<Option<PathBuf>> {
    Ok(train(config, folder, place, progress)?.map(|(file, _)| file))
}

/// Trains LlamaGen's tokenizer as [`train_tokenizer`] does VAR's.
///
/// # Errors
/// The errors of [`train`].
pub fn train_llamagen_vq(
    config: TokenizerTrainConfig<LlamaGenVqConfig>,
    folder: &Path,
    place: impl Into<Placement>,
    progress: &mut dyn Progress,
) -> Result<Option<PathBuf>> {
    Ok(train(config, folder, place, progress)?.map(|(file, _)| file))
}
