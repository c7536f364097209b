//! One step of a method, and the set-up that all runs share.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::checkpoint::{Checkpoint, Part};
use super::progress::Progress;
use super::run::{Metrics, RunConfig, run};
use super::{Method, Piece, Round};
use crate::Result;
use crate::config::{Upgrade, settle};

/// A method between two steps.
pub struct Trainer<M> {
    method: M,
    run: RunConfig,
}

impl<M: Method> Trainer<M> {
    /// Creates the trainer of a run at its first step.
    ///
    /// # Errors
    /// The errors of [`RunConfig::validate`].
    pub fn new(method: M, run: &RunConfig) -> Result<Self> {
        run.validate()?;
        Ok(Self { method, run: run.clone() })
    }

    /// The method.
    pub fn method(&self) -> &M {
        &self.method
    }

    /// The method, to be changed.
    pub fn method_mut(&mut self) -> &mut M {
        &mut self.method
    }

    /// The settings of the run.
    pub fn run(&self) -> &RunConfig {
        &self.run
    }

    /// Does one step, counted from 0, and returns its metrics if `measure` is set.
    ///
    /// # Errors
    /// Data that cannot be read, and values that are not finite. The run stops there; its checkpoints stay.
    pub fn step(&mut self, step: u64, measure: bool) -> Result<Metrics> {
        let pieces = self.pieces(step);
        let mut batches: Vec<Option<M::Batch>> = pieces.iter().map(|_| None).collect();
        let rounds = self.method.rounds(step);
        let mut metrics = Metrics::new();
        for number in 0..rounds {
            let round = Round { step, number, measure };
            self.method.begin(&round)?;
            let mut records = Vec::with_capacity(pieces.len());
            for (piece, slot) in pieces.iter().zip(&mut batches) {
                let mut batch = match slot.take() {
                    Some(batch) => batch,
                    None => self.method.batch(piece)?,
                };
                let (gradients, record) = self.method.backward(&round, piece, &mut batch)?;
                let mut networks = self.method.networks_mut();
                gradients.into_iter().for_each(|(network, gradients)| networks[network].add(gradients));
                records.push(record);
                if number + 1 < rounds {
                    *slot = Some(batch);
                }
            }
            let mut rates = Vec::new();
            for network in self.method.networks_mut() {
                match network.update(step) {
                    Ok(updated) => rates.extend(updated),
                    Err(error) => return Err(self.method.explain(&round, &records, error)),
                }
            }
            metrics.extend(self.method.finish(&round, records, &rates)?);
        }
        Ok(metrics)
    }

    /// Cuts the batch of a step.
    fn pieces(&self, step: u64) -> Vec<Piece> {
        let RunConfig { batch_size, accumulate, seed, .. } = self.run;
        let size = batch_size / accumulate;
        let piece = |i: usize| Piece { step, seed, images: i * size..(i + 1) * size, batch_size };
        (0..accumulate).map(piece).collect()
    }

    pub(super) fn parts(&self) -> Vec<Part<'_>> {
        let mut parts: Vec<Part<'_>> = self.method.networks().into_iter().flat_map(|network| network.parts()).collect();
        parts.extend(self.method.parts());
        parts
    }

    pub(super) fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.method.networks_mut().into_iter().try_for_each(|network| network.restore(checkpoint))?;
        self.method.restore(checkpoint)
    }
}

/// The configuration of a run by one method.
pub trait TrainConfig: Serialize + DeserializeOwned {
    /// Opened data and models, before anything is written.
    type Inputs;
    /// The method.
    type Method: Method;

    /// Changes to configuration files of older versions.
    const UPGRADES: &'static [Upgrade] = &[];

    /// The settings that every run has.
    fn run(&self) -> &RunConfig;

    /// Brings settings in an old place to their new one.
    fn normalize(self) -> Self {
        self
    }

    /// Checks the settings, and opens data and models.
    ///
    /// # Errors
    /// Settings that contradict each other; files that cannot be read or do not fit.
    fn open(&self, device: &Device) -> Result<Self::Inputs>;

    /// Creates the method at its first step.
    ///
    /// # Errors
    /// If data and models do not fit the settings.
    fn start(
        self,
        inputs: Self::Inputs,
        folder: &Path,
        device: &Device,
        progress: &mut dyn Progress,
    ) -> Result<Self::Method>;
}

/// Trains in `folder`, or resumes what is there. Returns the file of the model and the trainer at its end; `None` if
/// `progress` stopped the run before the last step.
///
/// `device` is one without autodiff. The run is a function of its configuration: it ends with the same weights however
/// often it was interrupted.
///
/// # Errors
/// Whatever makes the run impossible or interrupts it; the same call resumes from the last checkpoint.
pub fn train<C: TrainConfig>(
    config: C,
    folder: &Path,
    device: &Device,
    progress: &mut dyn Progress,
) -> Result<Option<(PathBuf, Trainer<C::Method>)>> {
    let config = config.normalize();
    let inputs = config.open(device)?;
    // Only now: a wrong path must not become the configuration that the run was started with.
    settle(folder, &config, &RunConfig::MAY_CHANGE, C::UPGRADES)?;
    let settings = config.run().clone();
    let method = config.start(inputs, folder, device, progress)?;
    let mut trainer = Trainer::new(method, &settings)?;
    Ok(run(&mut trainer, folder, progress)?.map(|file| (file, trainer)))
}
