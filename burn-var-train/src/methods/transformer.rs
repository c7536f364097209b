//! Training of a next-scale transformer on cached tokens: the part that all families and objectives share.

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

impl Preview {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub(super) fn validate(&self) -> Result<()> {
        self.sampler.validate()?;
        for (name, count) in [("preview.per_class", self.per_class), ("preview.classes", self.classes)] {
            if count == 0 {
                return Err(Error::config(name, count, "at least 1"));
            }
        }
        Ok(())
    }

    /// Generates images of up to `classes` classes and writes them as a grid in the folder of a run. Returns its file.
    pub(super) fn write<T: Tokenizer, M: TeacherForced>(
        &self,
        tokenizer: &T,
        model: &M,
        classes: usize,
        seed: u64,
        folder: &Path,
        step: u64,
    ) -> Result<PathBuf> {
        let classes = self.classes.min(classes);
        let labels: Vec<usize> = (0..classes).flat_map(|class| std::iter::repeat_n(class, self.per_class)).collect();
        let mut request = BatchRequest::classes(&labels, seed);
        request.sampler = self.sampler;
        let guidance: Vec<Box<dyn Guidance>> = vec![Box::new(Cfg::new(M::cfg(self.cfg)))];
        let generated = generate(tokenizer, model, guidance, request, &mut |_| ControlFlow::Continue(()))?;
        let path = folder.join("samples").join(format!("step-{step:08}.png"));
        let images = to_images(tokenizer.decode(generated.canvas), ValueRange::Signed)?;
        Grid::new(self.per_class).write(&path, &images)?;
        Ok(path)
    }

    /// Writes a model with these settings of generation in the folder of a run. Returns its file.
    pub(super) fn export<M: TeacherForced + Pretrained>(
        &self,
        model: &M,
        class_names: &[String],
        folder: &Path,
    ) -> Result<PathBuf> {
        let path = folder.join("transformer.safetensors");
        let usage =
            GenerationConfig { class_names: class_names.to_vec(), cfg: M::cfg(self.cfg), sampler: self.sampler };
        let mut options = SaveOptions::default();
        usage.insert(&mut options.metadata)?;
        model.save(&path, &options)?;
        Ok(path)
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
        self.preview.validate()?;
        for (name, share) in [("label_smoothing", self.label_smoothing), ("class_dropout", self.class_dropout)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::config(name, share, "a share in 0..=1"));
            }
        }
        Ok(())
    }
}

/// The scale schedules of a run's steps.
pub(super) struct Schedules {
    /// The schedule of all steps, or of some if others are drawn.
    pub(super) default: Scales,
    /// Rules of the schedules; `None` for a fixed one.
    pub(super) sampling: Option<ScaleSampling>,
}

/// The loss of a training step.
pub(super) trait Objective<T, M> {
    /// Computes the loss of a piece.
    fn loss(&self, pass: &Pass<'_, T, M>) -> Result<ObjectiveLoss>;

    /// Returns the charts of the metrics that only this objective has.
    fn charts(&self) -> Vec<(&'static str, Vec<String>)> {
        Vec::new()
    }
}

/// The models and the true tokens of a piece.
pub(super) struct Pass<'a, T, M> {
    /// Lies off the autodiff graph.
    pub(super) tokenizer: &'a T,
    /// Lies on the autodiff graph.
    pub(super) model: &'a M,
    pub(super) piece: &'a Piece,
    pub(super) tokens: &'a TokenPyramid,
    /// Some are dropped.
    pub(super) conditions: &'a [Condition],
    /// Share of the target that is spread over all codes.
    pub(super) label_smoothing: f64,
    /// True if metrics are wanted.
    pub(super) measure: bool,
}

/// The loss of a piece, and what its metrics are computed of.
pub(super) struct ObjectiveLoss {
    pub(super) loss: Tensor<1>,
    /// Logits, `[batch, L, vocabulary]`, on the autodiff graph.
    logits: Tensor<3>,
    /// Tokens to predict, `[batch, L]`.
    targets: Tensor<2, Int>,
    /// 1 for the tokens that count in the metrics and 0 for the others, `[batch, L]`; all count if `None`.
    pub(super) counted: Option<Tensor<2>>,
    /// Metrics of the objective's own.
    pub(super) metrics: Metrics,
}

impl ObjectiveLoss {
    pub(super) fn new(loss: Tensor<1>, logits: Tensor<3>, targets: Tensor<2, Int>) -> Self {
        Self { loss, logits, targets, counted: None, metrics: Metrics::new() }
    }
}

/// Cross-entropy of all tokens, teacher-forced.
pub(super) struct TeacherForcing;

impl<T: Tokenizer, M: TeacherForced> Objective<T, M> for TeacherForcing {
    fn loss(&self, pass: &Pass<'_, T, M>) -> Result<ObjectiveLoss> {
        let input = TeacherInput::of(pass.tokenizer, pass.tokens).on_graph();
        let noise = &mut pass.piece.noise("drop path");
        let logits = pass.model.teacher_forced(pass.conditions, input, pass.tokens.scales(), Some(noise))?;
        let targets = pass.tokens.sequence();
        let loss = ops::cross_entropy(logits.clone(), targets.clone(), pass.label_smoothing).mean();
        Ok(ObjectiveLoss::new(loss, logits, targets))
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

/// Training of a transformer by an objective, over a fixed scale schedule or one drawn for each step.
pub struct TransformerMethod<T, M> {
    settings: Settings,
    schedules: Schedules,
    objective: Box<dyn Objective<T, M>>,
    folder: PathBuf,
    device: Device,
    tokenizer: T,
    pub(super) learner: Learner<M>,
    stream: TokenStream,
}

impl<T: Tokenizer, M: Module> TransformerMethod<T, M> {
    /// Starts to train `model`, which lies on the autodiff device of `device`.
    #[allow(clippy::too_many_arguments, reason = "the parts of a run, each given once")]
    pub(super) fn start(
        settings: Settings,
        schedules: Schedules,
        objective: Box<dyn Objective<T, M>>,
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
        Ok(Self { settings, schedules, objective, folder, device, tokenizer, learner, stream })
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

    /// Returns the true tokens and the conditions of a piece, some of which are dropped.
    fn truth(&self, piece: &Piece, batch: &ScheduledBatch) -> Result<(TokenPyramid, Vec<Condition>)> {
        let tokens = TokenPyramid::from_rows(batch.scales.clone(), &batch.tokens.tokens, &self.device)?;
        let noise = &mut piece.noise("class dropout");
        Ok((tokens, drop_labels(&batch.tokens.labels, self.settings.class_dropout, noise)))
    }

    /// Returns loss and accuracy, of all tokens and of each scale, or of each row of a raster.
    fn per_scale(&self, of: ObjectiveLoss, scales: &Scales) -> Result<Metrics> {
        let read = |values: Tensor<2>| -> Result<Vec<f64>> {
            let per_position = values.mean_dim(0);
            Ok(per_position.try_into_vec_as::<f64>().map_err(burn_var::Error::device("read losses"))?)
        };
        let logits = of.logits.inner();
        let nll = ops::cross_entropy(logits.clone(), of.targets.clone(), 0.0);
        let hits = logits.argmax(2).squeeze_dim::<2>(2).equal(of.targets).float();
        let (nll, hits, counted) = match of.counted {
            Some(counted) => (read(nll * counted.clone())?, read(hits * counted.clone())?, read(counted)?),
            None => (read(nll)?, read(hits)?, vec![1.0; scales.tokens()]),
        };
        let mean = |values: &[f64], range: Range<usize>| {
            values[range.clone()].iter().sum::<f64>() / counted[range].iter().sum::<f64>()
        };
        let all = 0..scales.tokens();
        let mut metrics = vec![("loss".into(), mean(&nll, all.clone())), ("accuracy".into(), mean(&hits, all))];
        for (stage, of) in scales.stages().into_iter().enumerate() {
            let (name, range) =
                (self.stage_name(scales, stage), scales.range(of.start).start..scales.range(of.end - 1).end);
            metrics.push((format!("loss_{name}"), mean(&nll, range.clone())));
            metrics.push((format!("accuracy_{name}"), mean(&hits, range)));
        }
        Ok(metrics)
    }

    /// Returns the name of a stage in metrics: its index, or the size of the scale if schedules change.
    fn stage_name(&self, scales: &Scales, stage: usize) -> String {
        match &self.schedules.sampling {
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
        let default = &self.schedules.default;
        let scales = match &self.schedules.sampling {
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
        let pass = Pass {
            tokenizer: &self.tokenizer,
            model: &self.learner.model,
            piece,
            tokens: &tokens,
            conditions: &conditions,
            label_smoothing: self.settings.label_smoothing,
            measure: round.measure,
        };
        let mut of = self.objective.loss(&pass)?;
        let gradients = GradientsParams::from_grads(of.loss.backward(), &self.learner.model);
        let mut metrics = Metrics::new();
        if round.measure {
            let own = std::mem::take(&mut of.metrics);
            metrics = self.per_scale(of, tokens.scales())?;
            metrics.extend(own);
        }
        Ok((vec![(0, gradients)], metrics))
    }

    fn finish(&mut self, round: &Round, records: Vec<Metrics>, rates: &[Rates]) -> Result<Metrics> {
        round_metrics(round, records, rates)
    }

    fn samples(&mut self, step: u64) -> Result<Option<PathBuf>> {
        let (seed, classes) = (self.settings.run.seed, self.stream.spec().class_names.len());
        self.settings.preview.write(&self.tokenizer, self.average(), classes, seed, &self.folder, step).map(Some)
    }

    fn export(&self) -> Result<PathBuf> {
        self.settings.preview.export(self.average(), &self.stream.spec().class_names, &self.folder)
    }

    fn charts(&self) -> Vec<(&'static str, Vec<String>)> {
        let stored = &self.stream.spec().scales;
        let each = |name: &str| -> Vec<String> {
            let stages = 0..stored.stages().len();
            let stages = stages.map(|stage| format!("{name}_{}", self.stage_name(stored, stage)));
            stages.chain([name.to_owned()]).collect()
        };
        let mut charts = vec![("loss", each("loss")), ("accuracy", each("accuracy"))];
        charts.extend(self.objective.charts());
        charts
    }
}
