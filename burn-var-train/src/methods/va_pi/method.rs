//! The runs of VA-pi.

use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::optim::GradientsParams;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Tensor};
use burn_var::generation::{TeacherInput, check_pair};
use burn_var::models::common::Adaptable;
use burn_var::models::flexvar::FlexVar;
use burn_var::models::llamagen::LlamaGen;
use burn_var::models::var::{Var, drop_labels};
use burn_var::rng::Rng;
use burn_var::weights::{LoadOptions, Pretrained, StateDict};
use burn_var::{Condition, Scales, TokenPyramid, Tokenizer, ops};
use serde::{Deserialize, Serialize};

use super::grpo::mean_and_std;
use super::reward::{Targets, Terms};
use super::{Estimator, Judgment, Rewards, Samples, VaPi, VaPiFamily, VaPiTrainConfig, grpo_loss};
use crate::data::{BatchLoader, Fingerprint, ImageBatch, ImageShape, ImageSource, ImageStream, Split};
use crate::engine::progress::Progress;
use crate::engine::run::{Metrics, RunConfig};
use crate::engine::{
    Learner, Method, Network, NetworkGradients, Piece, Placement, Rates, Round, Rules, SectionNames, TrainConfig,
    TrainingData, round_metrics, train,
};
use crate::optim::no_decay_1d;
use crate::tensor::scalar;
use crate::{Error, Result};

/// A configuration for the models of one family.
#[derive(Serialize, Deserialize)]
#[serde(transparent, bound = "")]
struct VaPiRun<M> {
    config: VaPiTrainConfig,
    #[serde(skip)]
    family: PhantomData<fn() -> M>,
}

/// The opened inputs of a run.
struct VaPiInputs<M: VaPiFamily> {
    step: VaPi<M>,
    /// On the autodiff device.
    model: M,
    images: Arc<dyn ImageSource>,
}

impl<M: VaPiFamily> TrainConfig for VaPiRun<M> {
    type Inputs = VaPiInputs<M>;
    type Method = VaPiMethod<M>;

    fn run(&self) -> &RunConfig {
        &self.config.run
    }

    /// Names the credit that a file without one means.
    fn normalize(mut self) -> Self {
        self.config.va_pi.credit.get_or_insert(M::CREDITS[0]);
        self
    }

    fn open(&self, device: &Device) -> Result<VaPiInputs<M>> {
        let config = &self.config;
        config.validate()?;
        let (tokenizer, model) = open_pair::<M>(config, device)?;
        model.check()?;
        check_pair(&tokenizer, &model)?;
        let images = config.data.open(Split::Train)?;
        let classes = images.class_names().len();
        if classes != model.num_classes() {
            let expected = format!("{classes}, the classes of the images in `{}`", images.path().display());
            return Err(Error::config("classes of the transformer", model.num_classes(), expected));
        }
        // Before the files of the reward are looked for.
        config.va_pi.validate(tokenizer.image_shape(tokenizer.scales()), M::CREDITS)?;
        let rewards = Rewards::load(config.va_pi.reward.clone(), device)?;
        Ok(VaPiInputs { step: VaPi::new(config.va_pi.clone(), tokenizer, rewards)?, model, images })
    }

    fn start(
        self,
        VaPiInputs { step, model, images }: VaPiInputs<M>,
        folder: &Path,
        device: &Device,
        _progress: &mut dyn Progress,
    ) -> Result<VaPiMethod<M>> {
        VaPiMethod::new(self.config, step, model, images, folder, device)
    }
}

/// Loads the tokenizer, and the transformer onto the autodiff device, over one scale schedule.
fn open_pair<M: VaPiFamily>(config: &VaPiTrainConfig, device: &Device) -> Result<(M::Tokenizer, M)> {
    let files = [StateDict::open(&config.tokenizer)?, StateDict::open(&config.init)?];
    let given = config.patch_nums.as_ref();
    if let (true, Some(scales)) = (M::TOKENIZER_HAS_SCALES, given) {
        return Err(Error::config("patch_nums", scales, "absent, for VAR: it has one scale schedule"));
    }
    let autodiff = device.clone().autodiff();
    let tokenizer = |scales: Option<&Scales>| -> Result<M::Tokenizer> {
        let sizes = M::Tokenizer::config_of(&files[0], scales)?;
        Ok(M::Tokenizer::load_with(&files[0], &sizes, LoadOptions::default(), device)?)
    };
    let model = |scales: Option<&Scales>| -> Result<M> {
        let sizes = M::config_of(&files[1], scales)?;
        Ok(M::load_with(&files[1], &sizes, LoadOptions::default(), &autodiff)?)
    };
    if M::TOKENIZER_HAS_SCALES {
        let tokenizer = tokenizer(None)?;
        let model = model(Some(tokenizer.scales()))?;
        return Ok((tokenizer, model));
    }
    let model = model(given)?;
    Ok((tokenizer(Some(model.scales()))?, model))
}

/// The trained network: all weights, or low-rank updates beside frozen ones.
#[allow(clippy::large_enum_variant, reason = "there is one, for the whole run")]
enum Trained<M: Adaptable> {
    Full(Learner<M>),
    LowRank { base: M, updates: Learner<M::Lora> },
}

impl<M: Adaptable> Trained<M> {
    /// Computes teacher-forced logits on the graph.
    fn logits(
        &self,
        conditions: &[Condition],
        input: TeacherInput,
        scales: &Scales,
        noise: Option<&mut [Rng]>,
    ) -> Result<Tensor<3>> {
        let input = input.on_graph();
        Ok(match self {
            Self::Full(learner) => learner.model.teacher_forced(conditions, input, scales, noise)?,
            Self::LowRank { base, updates } => {
                base.teacher_forced_with(&updates.model, conditions, input, scales, noise)?
            }
        })
    }

    fn gradients(&self, loss: &Tensor<1>) -> GradientsParams {
        match self {
            Self::Full(learner) => GradientsParams::from_grads(loss.backward(), &learner.model),
            Self::LowRank { updates, .. } => GradientsParams::from_grads(loss.backward(), &updates.model),
        }
    }

    fn network(&self) -> &dyn Network {
        match self {
            Self::Full(learner) => learner,
            Self::LowRank { updates, .. } => updates,
        }
    }

    fn network_mut(&mut self) -> &mut dyn Network {
        match self {
            Self::Full(learner) => learner,
            Self::LowRank { updates, .. } => updates,
        }
    }

    /// Returns the model as it is now, off the graph; updates are merged.
    fn result(&self) -> Result<M> {
        Ok(match self {
            Self::Full(learner) => learner.result(),
            Self::LowRank { base, updates } => base.valid().merged(&updates.result())?,
        })
    }
}

/// Images of a run, and the models that it starts from.
struct VaPiData {
    stream: ImageStream,
    /// Fingerprint of tokenizer and transformer.
    models: String,
}

impl TrainingData for VaPiData {
    fn fingerprint(&self) -> String {
        format!("{} {}", self.stream.fingerprint(), self.models)
    }

    fn fingerprint_like(&self, recorded: &str) -> Result<Option<String>> {
        let data = self.fingerprint();
        Ok((data.len() == recorded.len()).then_some(data))
    }
}

/// Post-training by VA-pi.
pub struct VaPiMethod<M: VaPiFamily> {
    config: VaPiTrainConfig,
    step: VaPi<M>,
    folder: PathBuf,
    trained: Trained<M>,
    /// The model that the run starts from, off the graph: a copy of its weights, or with updates the frozen ones themselves.
    reference: Option<M>,
    data: VaPiData,
}

/// A piece of a step.
pub struct VaPiBatch {
    images: ImageBatch,
    prepared: Option<Prepared>,
}

/// Values that all updates of a rollout share, off the graph.
struct Prepared {
    truth: TokenPyramid,
    conditions: Vec<Condition>,
    input: TeacherInput,
    targets: Targets,
    /// Samples, and the metrics of their rewards.
    rollout: Option<(Samples, Metrics)>,
}

impl<M: VaPiFamily> VaPiMethod<M> {
    /// Creates the method of a run in `folder`, on `device` (without autodiff), at its first step. `model` is the one to start
    /// from and lies on the autodiff device.
    ///
    /// # Errors
    /// Settings, models and images that do not fit each other.
    pub fn new(
        config: VaPiTrainConfig,
        step: VaPi<M>,
        model: M,
        images: Arc<dyn ImageSource>,
        folder: &Path,
        device: &Device,
    ) -> Result<Self> {
        let tokenizer = step.tokenizer();
        let [channels, height, width] = tokenizer.image_shape(tokenizer.scales());
        let models = Fingerprint::new().module(tokenizer)?.module(&model)?.finish();
        let loader = BatchLoader::new(images, ImageShape::new(height, width, channels)?);
        let stream = ImageStream::new(loader, &config.run, config.data.mirror, device)?.centered();
        let rules = |no_decay| Rules {
            ema: (config.ema.decay > 0.0).then(|| config.ema.clone()),
            ..Rules::new(&config.run, &config.optimizer, &config.learning_rate, &config.ema, no_decay)
        };
        let (trained, reference) = match &config.lora {
            None => {
                let reference = (config.va_pi.loss.kl > 0.0).then(|| model.valid());
                (Trained::Full(Learner::new(model, rules(M::NO_DECAY), SectionNames::SINGLE)), reference)
            }
            Some(size) => {
                let base = model.no_grad();
                let updates = base.low_rank(size.attention, size.feed_forward, config.run.seed);
                let updates = Learner::new(updates?, rules(no_decay_1d), SectionNames::SINGLE);
                let reference = base.valid();
                (Trained::LowRank { base, updates }, Some(reference))
            }
        };
        let (folder, data) = (folder.to_path_buf(), VaPiData { stream, models });
        Ok(Self { config, step, folder, trained, reference, data })
    }

    /// Returns the model as it is now, off the autodiff graph.
    ///
    /// # Errors
    /// If a low-rank adaptation does not fit.
    pub fn model(&self) -> Result<M> {
        self.trained.result()
    }

    fn prepare(&self, piece: &Piece, images: &ImageBatch) -> Result<Prepared> {
        let tokenizer = self.step.tokenizer();
        let truth = tokenizer.encode(images.images.clone(), tokenizer.scales())?;
        let input = self.step.context(&truth, &mut piece.noise("va-pi context"))?;
        let conditions = Condition::classes(&images.labels);
        let targets = self.step.targets(images.images.clone(), &truth)?;
        Ok(Prepared { truth, conditions, input, targets, rollout: None })
    }

    /// Returns the logits of the pass that cross-entropy has of its own; `None` if it shares that of the policy.
    fn second_pass(&self, piece: &Piece, labels: &[usize], prepared: &Prepared) -> Result<Option<Tensor<3>>> {
        let config = self.step.config();
        if !config.has_second_pass() {
            return Ok(None);
        }
        let conditions = drop_labels(labels, config.class_dropout, &mut piece.noise("class dropout"));
        let mut noise = config.dropout.then(|| piece.noise("drop path"));
        let scales = prepared.truth.scales();
        self.trained.logits(&conditions, prepared.input.clone(), scales, noise.as_deref_mut()).map(Some)
    }

    /// Draws and judges the samples of a piece by its logits, off the graph.
    fn roll_out(
        &self,
        round: &Round,
        piece: &Piece,
        prepared: &Prepared,
        logits: Tensor<3>,
    ) -> Result<(Samples, Metrics)> {
        let Prepared { truth, conditions, input, targets, .. } = prepared;
        let scales = truth.scales();
        let draw = self.step.draw(logits.clone(), &mut piece.noise("va-pi sample"))?;
        let judgment = self.step.judge(targets, truth, &draw.ids)?;
        let reference = match &self.reference {
            Some(model) if round.measure || self.config.va_pi.loss.kl > 0.0 => {
                Some(model.teacher_forced(conditions, input.clone(), scales, None)?)
            }
            _ => None,
        };
        let counted = self.step.counted(scales.tokens(), &mut piece.noise("va-pi token dropout"));
        let samples = self.step.samples(logits, draw, &judgment, reference, counted.as_deref(), scales)?;
        let metrics = if round.measure { self.reward_metrics(&judgment, &samples)? } else { Metrics::new() };
        Ok((samples, metrics))
    }

    /// Returns mean and spread of the rewards, their terms, and the share of advantages at a limit.
    fn reward_metrics(&self, judgment: &Judgment, samples: &Samples) -> Result<Metrics> {
        let loss = &self.config.va_pi.loss;
        let groups = || judgment.rewards.iter().flat_map(|rewards| rewards.chunks(self.config.va_pi.group));
        let (mut mean, mut spread, mut flat) = (0.0, 0.0, 0.0);
        for group in groups() {
            let (of_group, std) = mean_and_std(group);
            (mean, spread) = (mean + of_group, spread + std);
            flat += f64::from(std < loss.advantage_floor);
        }
        let count = groups().count() as f64;
        let clipped = samples.advantages.clone().abs().greater_elem(loss.advantage_clip).float().mean();
        let mut metrics = vec![
            ("reward".to_owned(), mean / count),
            ("reward_std".to_owned(), spread / count),
            ("flat_groups".to_owned(), flat / count),
            ("advantages_clipped".to_owned(), scalar(&clipped, "read advantages")?),
        ];
        metrics.extend(term_metrics(&judgment.terms)?);
        Ok(metrics)
    }

    /// Returns cross-entropy and accuracy of the true tokens, and the entropy of the model, in all and by stage.
    fn token_metrics(&self, logits: Tensor<3>, truth: &TokenPyramid) -> Result<Metrics> {
        let (sequence, scales) = (truth.sequence(), truth.scales());
        let cross_entropy = ops::cross_entropy(logits.clone(), sequence.clone(), 0.0).mean();
        let hits = logits.clone().argmax(2).squeeze_dim::<2>(2).equal(sequence).float().mean();
        let log = log_softmax(logits / self.config.va_pi.loss.temperature, 2);
        let entropy = (log.clone().exp() * log).sum_dim(2).squeeze_dim::<2>(2).mean_dim(0).neg();
        let entropy = entropy.try_into_vec_as::<f64>().map_err(burn_var::Error::device("read the entropy"))?;
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let mut metrics = vec![
            ("cross_entropy".to_owned(), scalar(&cross_entropy, "read the cross-entropy")?),
            ("accuracy".to_owned(), scalar(&hits, "read the accuracy")?),
            ("entropy".to_owned(), mean(&entropy)),
        ];
        for (stage, of) in scales.stages().into_iter().enumerate() {
            let range = scales.range(of.start).start..scales.range(of.end - 1).end;
            metrics.push((format!("entropy_{stage}"), mean(&entropy[range])));
        }
        Ok(metrics)
    }
}

/// Returns the mean of each term.
fn term_metrics(terms: &Terms) -> Result<Metrics> {
    let mean = |(name, term): (&str, &Tensor<1>)| {
        Ok((name.to_owned(), scalar(&term.clone().mean(), "read the terms of the reward")?))
    };
    terms.named().into_iter().map(mean).collect()
}

impl<M: VaPiFamily> Method for VaPiMethod<M> {
    type Batch = VaPiBatch;
    type Record = Metrics;

    fn data(&self) -> &dyn TrainingData {
        &self.data
    }

    fn networks(&self) -> Vec<&dyn Network> {
        vec![self.trained.network()]
    }

    fn networks_mut(&mut self) -> Vec<&mut dyn Network> {
        vec![self.trained.network_mut()]
    }

    fn batch(&mut self, piece: &Piece) -> Result<VaPiBatch> {
        Ok(VaPiBatch { images: self.data.stream.batch(piece)?, prepared: None })
    }

    fn rounds(&self, _step: u64) -> usize {
        self.config.va_pi.updates
    }

    fn backward(&self, round: &Round, piece: &Piece, batch: &mut VaPiBatch) -> Result<(NetworkGradients, Metrics)> {
        let mut prepared = match batch.prepared.take() {
            Some(prepared) => prepared,
            None => self.prepare(piece, &batch.images)?,
        };
        let scales = prepared.truth.scales().clone();
        let logits = self.trained.logits(&prepared.conditions, prepared.input.clone(), &scales, None)?;
        let plain = logits.clone().inner();
        let dropout = self.second_pass(piece, &batch.images.labels, &prepared)?;
        let measure = round.measure && round.number + 1 == self.config.va_pi.updates;
        let mut metrics = Metrics::new();
        let config = &self.config.va_pi.loss;
        let total = match self.config.va_pi.estimator {
            // Samples would be drawn for metrics alone.
            Estimator::Grpo if !config.needs_samples() && !round.measure => {
                let truth = Tensor::from_inner(prepared.truth.sequence());
                ops::cross_entropy(dropout.unwrap_or(logits), truth, 0.0).mean() * config.cross_entropy
            }
            Estimator::Grpo => {
                let (samples, of_rewards) = match prepared.rollout.take() {
                    Some(rollout) => rollout,
                    None => self.roll_out(round, piece, &prepared, plain.clone())?,
                };
                let truth = Tensor::from_inner(prepared.truth.sequence());
                let loss = grpo_loss(config, logits, dropout, samples.clone().on_graph(), truth)?;
                if measure {
                    metrics.push(("loss".to_owned(), scalar(&loss.total, "read the loss")?));
                    metrics.extend(of_rewards.clone());
                    metrics.push(("policy_loss".to_owned(), scalar(&loss.policy, "read the policy term")?));
                    let clipped = scalar(&loss.clip_fraction(config.clip), "read the ratios")?;
                    metrics.push(("ratios_clipped".to_owned(), clipped));
                    if let Some(kl) = &loss.kl {
                        metrics.push(("kl".to_owned(), scalar(&kl.clone().mean(), "read the penalty")?));
                    }
                }
                prepared.rollout = Some((samples, of_rewards));
                loss.total
            }
            Estimator::StraightThrough(_) => {
                let gumbel = self.step.gumbel(scales.tokens(), &mut piece.noise("va-pi gumbel"));
                let (targets, truth) = (prepared.targets.clone(), &prepared.truth);
                let loss = self.step.straight_through(logits, dropout, gumbel, targets, truth)?;
                if measure {
                    metrics.push(("loss".to_owned(), scalar(&loss.total, "read the loss")?));
                    metrics.extend(term_metrics(&loss.terms)?);
                }
                loss.total
            }
        };
        if measure {
            metrics.extend(self.token_metrics(plain, &prepared.truth)?);
        }
        let gradients = self.trained.gradients(&total);
        batch.prepared = Some(prepared);
        Ok((vec![(0, gradients)], metrics))
    }

    fn finish(&mut self, round: &Round, records: Vec<Metrics>, rates: &[Rates]) -> Result<Metrics> {
        let last = round.number + 1 == self.config.va_pi.updates;
        if last { round_metrics(round, records, rates) } else { Ok(Metrics::new()) }
    }

    fn samples(&mut self, step: u64) -> Result<Option<PathBuf>> {
        let classes = self.data.stream.source().class_names().len();
        let (model, seed) = (self.trained.result()?, self.config.run.seed);
        let tokenizer = self.step.tokenizer();
        self.config.preview.write(tokenizer, &model, classes, seed, &self.folder, step).map(Some)
    }

    fn export(&self) -> Result<PathBuf> {
        self.config.preview.export(&self.trained.result()?, self.data.stream.source().class_names(), &self.folder)
    }

    fn charts(&self) -> Vec<(&'static str, Vec<String>)> {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let tokenizer = self.step.tokenizer();
        let stages = 0..tokenizer.scales().stages().len();
        let entropies = stages.map(|stage| format!("entropy_{stage}")).chain(["entropy".to_owned()]);
        let terms = ("terms", names(&["pixels", "lpips", "embedding", "features"]));
        let loss = ("cross_entropy", names(&["cross_entropy"]));
        match self.config.va_pi.estimator {
            Estimator::Grpo => vec![("reward", names(&["reward"])), terms, loss, ("entropy", entropies.collect())],
            Estimator::StraightThrough(_) => vec![terms, loss, ("entropy", entropies.collect())],
        }
    }
}

/// Post-trains a transformer by VA-pi in `folder`, or resumes what is there, and returns its file; `None` if `progress`
/// stopped the run before the last step. The family is that of the transformer's file.
///
/// # Errors
/// The errors of [`train`].
pub fn train_va_pi(
    config: VaPiTrainConfig,
    folder: &Path,
    place: impl Into<Placement>,
    progress: &mut dyn Progress,
) -> Result<Option<PathBuf>> {
    let dict = StateDict::open(&config.init)?;
    let models = dict.models()?;
    let holds = |kind| models.iter().any(|model| model.kind() == kind);
    // Whatever is not recognized as another family is taken for VAR's, whose loader says what is missing.
    match () {
        () if holds(LlamaGen::KIND) => train_family::<LlamaGen>(config, folder, place, progress),
        () if holds(FlexVar::KIND) => train_family::<FlexVar>(config, folder, place, progress),
        () => train_family::<Var>(config, folder, place, progress),
    }
}

fn train_family<M: VaPiFamily>(
    config: VaPiTrainConfig,
    folder: &Path,
    place: impl Into<Placement>,
    progress: &mut dyn Progress,
) -> Result<Option<PathBuf>> {
    let run = VaPiRun::<M> { config, family: PhantomData };
    Ok(train(run, folder, place, progress)?.map(|(file, _)| file))
}
