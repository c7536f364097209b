//! A network in training: weights, their moving average, and the optimizer with its moments.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Tensor, TensorData};

use super::Ranks;
use super::checkpoint::{Checkpoint, Part};
use super::run::{Metrics, RunConfig};
use crate::optim::{AdamW, Average, EmaConfig, GradNorm, LrSchedule, NoDecay, OptimConfig, StepRates};
use crate::{Error, Result};

/// Settings that a network is optimized with.
#[derive(Debug, Clone)]
pub struct Rules {
    /// AdamW and clipping.
    pub optimizer: OptimConfig,
    /// Learning rate by step.
    pub learning_rate: LrSchedule,
    /// Moving average of the weights; `None` keeps none.
    pub ema: Option<EmaConfig>,
    /// Chooses the parameters without weight decay.
    pub no_decay: NoDecay,
    /// Steps of the whole run.
    pub steps: u64,
}

impl Rules {
    /// The rules of a network in `run`, with a moving average.
    pub fn new(
        run: &RunConfig,
        optimizer: &OptimConfig,
        learning_rate: &LrSchedule,
        ema: &EmaConfig,
        no_decay: NoDecay,
    ) -> Self {
        Self {
            optimizer: optimizer.clone(),
            learning_rate: learning_rate.clone(),
            ema: Some(ema.clone()),
            no_decay,
            steps: run.steps,
        }
    }
}

/// Numbers of one update.
#[derive(Debug, Clone)]
pub struct Rates {
    grad_norm: GradNorm,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// The network in messages, if a run has several.
    network: Option<&'static str>,
}

impl Rates {
    /// Returns the norm of all gradients together, before clipping. On a GPU this waits until the update is done.
    ///
    /// # Errors
    /// [`burn_var::Error::NonFinite`] naming the first step whose norm was not finite; [`burn_var::Error::Device`] if it cannot
    /// be read back.
    pub fn grad_norm(&self) -> Result<f64> {
        self.grad_norm.read().map_err(|error| in_network(self.network, error))
    }

    /// Both numbers, as they are logged.
    ///
    /// # Errors
    /// The errors of [`Rates::grad_norm`].
    pub fn metrics(&self) -> Result<Metrics> {
        Ok(vec![("grad_norm".into(), self.grad_norm()?), ("learning_rate".into(), self.learning_rate)])
    }
}

/// A trained network as the engine sees it.
pub trait Network {
    /// Adds the gradients of a piece to those of the round.
    fn add(&mut self, gradients: GradientsParams);

    /// Replaces the gradients of the round by their sums over all ranks.
    ///
    /// # Errors
    /// [`Error::Rank`] if a rank has stopped; [`burn_var::Error::Device`] if gradients cannot be read back.
    fn share(&mut self, ranks: &mut Ranks) -> Result<()>;

    /// Updates weights and moving average by the mean of the gradients added since the last update. Returns `None` if
    /// there were none.
    ///
    /// # Errors
    /// [`burn_var::Error::NonFinite`] if a gradient is not finite; the weights then stay as they are. On a GPU it is
    /// [`Network::check`] that finds this out.
    fn update(&mut self, step: u64) -> Result<Option<Rates>>;

    /// Checks that no gradient was infinite or NaN so far, before weights are saved. On a GPU this waits for the last update.
    ///
    /// # Errors
    /// [`burn_var::Error::NonFinite`] naming the step; since then the weights have stayed as they were.
    fn check(&self) -> Result<()>;

    /// Everything that the next update depends on.
    fn parts(&self) -> Vec<Part<'_>>;

    /// Loads what [`Network::parts`] saved.
    ///
    /// # Errors
    /// [`Error::Format`] if the checkpoint belongs to another model.
    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()>;
}

/// The names of a network's checkpoint sections.
#[derive(Debug, Clone, Copy)]
pub struct SectionNames {
    model: &'static str,
    average: &'static str,
    optimizer: &'static str,
    /// The network in messages, if a run has several.
    network: Option<&'static str>,
}

impl SectionNames {
    /// Names for a network of another method. `network` names it in messages, if a run has several.
    pub const fn new(
        model: &'static str,
        average: &'static str,
        optimizer: &'static str,
        network: Option<&'static str>,
    ) -> Self {
        Self { model, average, optimizer, network }
    }

    /// For a run with one network.
    pub const SINGLE: Self = Self { model: "model", average: "average", optimizer: "optimizer", network: None };
    /// For the discriminator of a tokenizer.
    pub const DISCRIMINATOR: Self = Self {
        model: "discriminator",
        average: "discriminator-average",
        optimizer: "discriminator-optimizer",
        network: Some("discriminator"),
    };
    /// For the injector or the low-rank adaptation of AID-VAR.
    pub const CORRECTION: Self = Self {
        model: "correction-model",
        average: "correction-average",
        optimizer: "correction-optimizer",
        network: Some("correction"),
    };
    /// For the discriminator heads of AID-VAR.
    pub const HEADS: Self = Self {
        model: "heads-model",
        average: "heads-average",
        optimizer: "heads-optimizer",
        network: Some("discriminator"),
    };
}

/// A network in training.
pub struct Learner<M> {
    /// The weights, on an autodiff device.
    pub model: M,
    /// Their moving average, off it.
    average: Option<M>,
    optimizer: AdamW,
    rules: Rules,
    names: SectionNames,
    /// Gradients of the round so far, and how many pieces they come from.
    gradients: GradientsAccumulator<M>,
    pieces: usize,
}

impl<M: Module> Learner<M> {
    /// Starts to train `model`, which lies on an autodiff device.
    pub fn new(model: M, rules: Rules, names: SectionNames) -> Self {
        let average = rules.ema.is_some().then(|| model.valid());
        let optimizer = rules.optimizer.init(&model, rules.no_decay);
        Self { model, average, optimizer, rules, names, gradients: GradientsAccumulator::new(), pieces: 0 }
    }

    /// The moving average of the weights, which is what a run is for; the weights themselves if there is none.
    pub fn average(&self) -> &M {
        self.average.as_ref().unwrap_or(&self.model)
    }

    /// Returns the result of a run off the autodiff graph: the moving average of the weights, or the weights themselves.
    pub fn result(&self) -> M {
        self.average.clone().unwrap_or_else(|| self.model.valid())
    }

    /// Changes the weights and their average in the same way.
    pub(crate) fn edit(&mut self, mut change: impl FnMut(&mut M) -> Result<()>) -> Result<()> {
        change(&mut self.model)?;
        self.average.as_mut().map_or(Ok(()), change)
    }
}

impl<M: Module> Network for Learner<M> {
    fn add(&mut self, gradients: GradientsParams) {
        self.gradients.accumulate(&self.model, gradients);
        self.pieces += 1;
    }

    fn share(&mut self, ranks: &mut Ranks) -> Result<()> {
        if self.pieces == 0 || ranks.count() == 1 {
            return Ok(());
        }
        let mut gradients = self.gradients.grads();
        let mut read = ReadGradients { gradients: &gradients, values: Ok(Vec::new()) };
        self.model.visit(&mut read);
        let mut values = read.values?;
        ranks.sum(&mut values)?;
        self.model.visit(&mut WriteGradients { gradients: &mut gradients, values: &values });
        self.gradients.accumulate(&self.model, gradients);
        self.pieces *= ranks.count();
        Ok(())
    }

    fn update(&mut self, step: u64) -> Result<Option<Rates>> {
        let pieces = std::mem::take(&mut self.pieces);
        let gradients = self.gradients.grads();
        if pieces == 0 {
            return Ok(None);
        }
        let Rules { optimizer, learning_rate, ema, steps, .. } = &self.rules;
        let rates = StepRates {
            step,
            learning_rate: learning_rate.at(step, *steps),
            weight_decay: optimizer.weight_decay_at(step, *steps),
        };
        let decay = ema.as_ref().map_or(0.0, |ema| ema.decay_at(step));
        let average = Average { module: &mut self.average, decay };
        let (model, grad_norm) = self
            .optimizer
            .update(rates, self.model.clone(), average, gradients, 1.0 / pieces as f64)
            .map_err(|error| in_network(self.names.network, error))?;
        self.model = model;
        Ok(Some(Rates { grad_norm, learning_rate: rates.learning_rate, network: self.names.network }))
    }

    fn check(&self) -> Result<()> {
        self.optimizer.check().map_err(|error| in_network(self.names.network, error))
    }

    fn parts(&self) -> Vec<Part<'_>> {
        let mut parts = vec![Part::module(self.names.model, &self.model)];
        parts.extend(self.average.as_ref().map(|average| Part::module(self.names.average, average)));
        parts.push(Part::optimizer(self.names.optimizer, &self.optimizer));
        parts
    }

    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.model = checkpoint.module(self.names.model, self.model.clone())?;
        if let Some(average) = self.average.take() {
            self.average = Some(checkpoint.module(self.names.average, average)?);
        }
        // Rebuilt: moments are keyed by parameter id, and loading changed the ids.
        let optimizer = self.rules.optimizer.init(&self.model, self.rules.no_decay);
        self.optimizer = checkpoint.optimizer(self.names.optimizer, optimizer)?;
        Ok(())
    }
}

/// Reads all gradients of a module, in its order.
struct ReadGradients<'a> {
    gradients: &'a GradientsParams,
    values: Result<Vec<f32>>,
}

impl ModuleVisitor for ReadGradients<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(gradient) = self.gradients.get::<D>(param.id) else { return };
        if let Ok(values) = &mut self.values {
            match gradient.try_into_vec_as::<f32>() {
                Ok(own) => values.extend(own),
                Err(error) => self.values = Err(burn_var::Error::device("read gradients")(error).into()),
            }
        }
    }
}

/// Replaces all gradients of a module by numbers in its order.
struct WriteGradients<'a> {
    gradients: &'a mut GradientsParams,
    values: &'a [f32],
}

impl ModuleVisitor for WriteGradients<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(gradient) = self.gradients.remove::<D>(param.id) else { return };
        let (own, rest) = self.values.split_at(gradient.shape().num_elements());
        self.values = rest;
        let summed = Tensor::<D>::from_data(TensorData::new(own.to_vec(), gradient.dims()), &gradient.device());
        self.gradients.register(param.id, summed.cast(gradient.dtype()));
    }
}

/// Says which network a value that is not finite belongs to: the names of their parameters are alike.
fn in_network(network: Option<&'static str>, error: Error) -> Error {
    match (network, error) {
        (Some(network), Error::Model(burn_var::Error::NonFinite { what, found, hint })) => {
            burn_var::Error::NonFinite { what: format!("the {network}: {what}"), found, hint }.into()
        }
        (_, error) => error,
    }
}
