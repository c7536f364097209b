//! A network that learns: weights, their moving average, and the optimizer's moments, which every trainer has.

use burn::module::Module;
use burn::optim::GradientsParams;

use crate::Result;
use crate::checkpoint::{Checkpoint, Part};
use crate::optim::{AdamW, EmaConfig, LrSchedule, NoDecay, OptimConfig, StepRates, ema_update};
use crate::run::Metrics;

/// How a network learns.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) optimizer: OptimConfig,
    pub(crate) learning_rate: LrSchedule,
    pub(crate) ema: EmaConfig,
    /// Parameters without weight decay.
    pub(crate) no_decay: NoDecay,
    /// Steps of the whole run.
    pub(crate) steps: u64,
}

pub(crate) struct Learner<M> {
    /// On an autodiff device.
    pub(crate) model: M,
    /// Off it: what the run is for.
    pub(crate) average: M,
    optimizer: AdamW,
    rules: Rules,
    /// What its parts in a checkpoint begin with, where there is another learner.
    prefix: &'static str,
}

/// The parts of a checkpoint.
const MODEL: &str = "model";
const AVERAGE: &str = "average";
const OPTIMIZER: &str = "optimizer";

impl<M: Module> Learner<M> {
    pub(crate) fn new(model: M, rules: Rules) -> Self {
        let average = model.valid();
        let optimizer = rules.optimizer.init(&model, rules.no_decay);
        Self { model, average, optimizer, rules, prefix: "" }
    }

    /// For a run with several networks: a name for its parts in checkpoints.
    pub(crate) fn named(self, prefix: &'static str) -> Self {
        Self { prefix, ..self }
    }

    fn part(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The zero-based step; returns the norm of the gradients before clipping, and the learning rate.
    pub(crate) fn update(&mut self, step: u64, grads: GradientsParams) -> Result<Metrics> {
        let Rules { optimizer, learning_rate, ema, steps, .. } = &self.rules;
        let rates = StepRates {
            step,
            learning_rate: learning_rate.at(step, *steps),
            weight_decay: optimizer.weight_decay_at(step, *steps),
        };
        let optimizer = tracing::trace_span!("part", op = "Optimizer", pass = "").entered();
        let (model, norm) = self.optimizer.step(rates, self.model.clone(), grads)?;
        drop(optimizer);
        self.model = model;
        let _average = tracing::trace_span!("part", op = "MovingAverage", pass = "").entered();
        self.average = ema_update(self.average.clone(), &self.model, ema.decay_at(step));
        Ok(vec![("grad_norm".into(), norm), ("learning_rate".into(), rates.learning_rate)])
    }

    pub(crate) fn parts(&self) -> Vec<Part<'_>> {
        vec![
            Part::module(self.part(MODEL), &self.model),
            Part::module(self.part(AVERAGE), &self.average),
            Part::optimizer(self.part(OPTIMIZER), &self.optimizer),
        ]
    }

    pub(crate) fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.model = checkpoint.module(&self.part(MODEL), self.model.clone())?;
        self.average = checkpoint.module(&self.part(AVERAGE), self.average.clone())?;
        // Made anew, since the moments are found by the identities that the loaded parameters bear.
        let optimizer = self.rules.optimizer.init(&self.model, self.rules.no_decay);
        self.optimizer = checkpoint.optimizer(&self.part(OPTIMIZER), optimizer)?;
        Ok(())
    }
}
