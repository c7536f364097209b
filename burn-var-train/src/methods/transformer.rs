//! Teacher-forced training of a next-scale transformer on cached tokens: the part that all families share.

use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor};
use burn_var::generation::TeacherInput;
use burn_var::guidance::{Cfg, Guidance};
use burn_var::image::{ValueRange, to_images};
use burn_var::models::var::drop_labels;
use burn_var::ops;
use burn_var::sampling::Sampler;
use burn_var::weights::{GenerationConfig, Pretrained, SaveOptions};
use burn_var::{BatchRequest, Condition, Scales, TeacherForced, TokenPyramid, Tokenizer, generate};
use serde::{Deserialize, Deserializer, Serialize};

use crate::data::{ScaleSampling, TokenBatch, TokenCache, TokenStream};
use crate::engine::run::{Metrics, RunConfig};
use crate::engine::{
    Learner, Method, Network, NetworkGradients, Piece, Rates, Round, Rules, SectionNames, TrainingData, round_metrics,
};
use crate::grid::Grid;
use crate::optim::{EmaConfig, LrSchedule, OptimConfig, no_decay_var};
use crate::{Error, Result};

/// AdamW as VAR uses it.
pub(super) fn default_optimizer() -> OptimConfig {
    OptimConfig { beta_2: 0.95, weight_decay: 0.05, clip_norm: Some(2.0), ..OptimConfig::default() }
}

/// Reads AdamW's section; absent keys have VAR's values.
pub(super) fn optimizer<'de, D: Deserializer<'de>>(section: D) -> std::result::Result<OptimConfig, D::Error> {
    crate::config::over(default_optimizer(), section)
}

/// Returns the share of dropped labels in VAR's recipe.
pub(super) fn default_class_dropout() -> f64 {
    0.1
}

/// Settings of the sample grids.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Preview {
    /// Strength of classifier-free guidance, over the schedule that the family is used with: for VAR and FlexVAR the
    /// strength at the last scale, for LlamaGen at every token.
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

/// The settings that the runs of all families have.
pub(super) struct Settings {
    pub(super) run: RunConfig,
    pub(super) optimizer: OptimConfig,
    pub(super) learning_rate: LrSchedule,
    pub(super) ema: EmaConfig,
    pub(super) label_smoothing: f64,
    pub(super) class_dropout: f64,
    pub(super) preview: Preview,
}

impl Settings {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub(super) fn validate(&self) -> Result<()> {
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
        Ok(())
    }
}

/// Tokens of a piece over the scale schedule of its step.
#[derive(Debug, Clone)]
pub struct ScheduledBatch {
    /// The schedule.
    pub scales: Scales,
    /// One row of tokens per image, coarsest scale first, and the classes.
    pub tokens: TokenBatch,
}

/// Teacher-forced training of a transformer by cross-entropy, over a fixed scale schedule or one drawn for each step.
pub struct TransformerMethod<T, M> {
    settings: Settings,
    /// Rules of the schedules; `None` for a fixed one.
    sampling: Option<ScaleSampling>,
    folder: PathBuf,
    device: Device,
    tokenizer: T,
    pub(super) learner: Learner<M>,
    stream: TokenStream,
}

impl<T: Tokenizer, M: Module> TransformerMethod<T, M> {
    /// Starts to train `model`, which lies on the autodiff device of `device`.
    pub(super) fn start(
        settings: Settings,
        sampling: Option<ScaleSampling>,
        tokenizer: T,
        model: M,
        tokens: TokenCache,
        folder: &Path,
        device: &Device,
    ) -> Result<Self> {
        let Settings { run, optimizer, learning_rate, ema, .. } = &settings;
        let rules = Rules::new(run, optimizer, learning_rate, ema, no_decay_var);
        let learner = Learner::new(model, rules, SectionNames::SINGLE);
        let stream = TokenStream::new(tokens, run)?;
        let (folder, device) = (folder.to_path_buf(), device.clone());
        Ok(Self { settings, sampling, folder, device, tokenizer, learner, stream })
    }

    /// The result of the run: the moving average of the weights.
    pub fn average(&self) -> &M {
        self.learner.average()
    }

    /// The transformer as it is trained.
    pub fn model(&self) -> &M {
        &self.learner.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &T {
        &self.tokenizer
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns the true tokens and the conditions of a piece, some of which are dropped.
    pub(super) fn truth(&self, piece: &Piece, batch: &ScheduledBatch) -> Result<(TokenPyramid, Vec<Condition>)> {
        let tokens = TokenPyramid::from_rows(batch.scales.clone(), &batch.tokens.tokens, &self.device)?;
        let noise = &mut piece.noise("class dropout");
        Ok((tokens, drop_labels(&batch.tokens.labels, self.settings.class_dropout, noise)))
    }

    /// Returns the gradients of a loss.
    pub(super) fn gradients(&self, loss: &Tensor<1>) -> NetworkGradients {
        vec![(0, GradientsParams::from_grads(loss.backward(), &self.learner.model))]
    }

    /// Returns loss and accuracy, of all tokens and of each scale, or of each row of a raster.
    pub(super) fn per_scale(&self, logits: &Tensor<3>, targets: &Tensor<2, Int>, scales: &Scales) -> Result<Metrics> {
        let read = |values: Tensor<2>| -> Result<Vec<f64>> {
            Ok(values.try_into_vec_as::<f64>().map_err(burn_var::Error::device("read losses"))?)
        };
        let targets = targets.clone();
        let nll = read(ops::cross_entropy(logits.clone(), targets.clone(), 0.0).mean_dim(0))?; // per position
        let hits = logits.clone().argmax(2).squeeze_dim::<2>(2).equal(targets).float();
        let hits = read(hits.mean_dim(0))?;
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let mut metrics = vec![("loss".into(), mean(&nll)), ("accuracy".into(), mean(&hits))];
        for (stage, of) in scales.stages().into_iter().enumerate() {
            let (name, range) =
                (self.stage_name(scales, stage), scales.range(of.start).start..scales.range(of.end - 1).end);
            metrics.push((format!("loss_{name}"), mean(&nll[range.clone()])));
            metrics.push((format!("accuracy_{name}"), mean(&hits[range])));
        }
        Ok(metrics)
    }

    /// Returns the name of a stage in metrics: its index, or the size of the scale if schedules change.
    fn stage_name(&self, scales: &Scales, stage: usize) -> String {
        match &self.sampling {
            Some(_) => scales.size(stage).to_string(),
            None => stage.to_string(),
        }
    }
}

/// Picks the maps of a schedule from rows that have those of `stored`.
fn pick(rows: Vec<Vec<u32>>, stored: &Scales, scales: &Scales) -> Result<Vec<Vec<u32>>> {
    if stored == scales {
        return Ok(rows);
    }
    let range = |size| -> Result<Range<usize>> {
        let k = stored.sizes().iter().position(|stored| stored == size);
        let k = k.ok_or_else(|| Error::config("scale schedule", scales, format!("maps of `{stored}`")))?;
        Ok(stored.range(k))
    };
    let ranges = scales.sizes().iter().map(range).collect::<Result<Vec<_>>>()?;
    let of = |row: Vec<u32>| ranges.iter().flat_map(|range| &row[range.clone()]).copied().collect();
    Ok(rows.into_iter().map(of).collect())
}

impl<T: Tokenizer, M: TeacherForced + Pretrained> Method for TransformerMethod<T, M> {
    type Batch = ScheduledBatch;
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

    fn batch(&mut self, piece: &Piece) -> Result<ScheduledBatch> {
        let default = self.tokenizer.scales();
        let scales = match &self.sampling {
            Some(sampling) => sampling.draw(default, piece.seed, piece.step)?,
            None => default.clone(),
        };
        let TokenBatch { tokens, labels } = self.stream.batch(piece)?;
        let tokens = pick(tokens, &self.stream.spec().scales, &scales)?;
        Ok(ScheduledBatch { scales, tokens: TokenBatch { tokens, labels } })
    }

    fn backward(
        &self,
        round: &Round,
        piece: &Piece,
        batch: &mut ScheduledBatch,
    ) -> Result<(NetworkGradients, Metrics)> {
        let (tokens, conditions) = self.truth(piece, batch)?;
        let input = TeacherInput::of(&self.tokenizer, &tokens).on_graph();
        let noise = &mut piece.noise("drop path");
        let logits = self.learner.model.teacher_forced(&conditions, input, tokens.scales(), Some(noise))?;
        let targets = tokens.sequence();
        let loss = ops::cross_entropy(logits.clone(), targets.clone(), self.settings.label_smoothing).mean();
        let metrics = match round.measure {
            true => self.per_scale(&logits.inner(), &targets, tokens.scales())?,
            false => Vec::new(),
        };
        Ok((self.gradients(&loss), metrics))
    }

    fn finish(&mut self, round: &Round, records: Vec<Metrics>, rates: &[Rates]) -> Result<Metrics> {
        Ok(round_metrics(round, records, rates))
    }

    fn samples(&mut self, step: u64) -> Result<Option<PathBuf>> {
        let preview = &self.settings.preview;
        let classes = preview.classes.min(self.stream.spec().class_names.len());
        let labels: Vec<usize> = (0..classes).flat_map(|class| std::iter::repeat_n(class, preview.per_class)).collect();
        let mut request = BatchRequest::classes(&labels, self.settings.run.seed);
        request.sampler = preview.sampler;
        let guidance: Vec<Box<dyn Guidance>> = vec![Box::new(Cfg::new(M::cfg(preview.cfg)))];
        let generated =
            generate(&self.tokenizer, self.average(), guidance, request, &mut |_| ControlFlow::Continue(()))?;
        let path = self.folder.join("samples").join(format!("step-{step:08}.png"));
        let images = to_images(self.tokenizer.decode(generated.canvas), ValueRange::Signed)?;
        Grid::new(preview.per_class).write(&path, &images)?;
        Ok(Some(path))
    }

    fn export(&self) -> Result<PathBuf> {
        let path = self.folder.join("transformer.safetensors");
        let usage = GenerationConfig {
            class_names: self.stream.spec().class_names.clone(),
            cfg: M::cfg(self.settings.preview.cfg),
            sampler: self.settings.preview.sampler,
        };
        let mut options = SaveOptions::default();
        usage.insert(&mut options.metadata)?;
        self.average().save(&path, &options)?;
        Ok(path)
    }

    fn charts(&self) -> Vec<(&'static str, Vec<String>)> {
        let stored = &self.stream.spec().scales;
        let each = |name: &str| -> Vec<String> {
            let stages = 0..stored.stages().len();
            let stages = stages.map(|stage| format!("{name}_{}", self.stage_name(stored, stage)));
            stages.chain([name.to_owned()]).collect()
        };
        vec![("loss", each("loss")), ("accuracy", each("accuracy"))]
    }
}
