//! One step of a method, and the set-up that all runs share.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use burn_var::ops::Precision;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::checkpoint::{Checkpoint, Part};
use super::progress::Progress;
use super::run::{Metrics, RunConfig, run};
use super::{Method, Network, Packet, Piece, Portable, Ranks, Round};
use crate::config::{Upgrade, settle};
use crate::{Error, Result};

/// Where a run computes.
#[derive(Debug)]
pub struct Placement {
    /// The device, without autodiff.
    pub device: Device,
    /// The processes that share the work.
    pub ranks: Ranks,
}

impl From<&Device> for Placement {
    /// Returns a device for the whole run.
    fn from(device: &Device) -> Self {
        Self { device: device.clone(), ranks: Ranks::alone() }
    }
}

/// A method between two steps.
pub struct Trainer<M> {
    method: M,
    run: RunConfig,
    device: Device,
    ranks: Ranks,
}

impl<M: Method> Trainer<M> {
    /// Creates the trainer of a run at its first step, in one process.
    ///
    /// # Errors
    /// The errors of [`RunConfig::validate`].
    pub fn new(method: M, run: &RunConfig) -> Result<Self> {
        run.validate()?;
        Ok(Self { method, run: run.clone(), device: Device::default(), ranks: Ranks::alone() })
    }

    /// Shares the run among ranks.
    ///
    /// # Errors
    /// [`Error::Config`] if the batch cannot be cut into pieces for all of them; those of [`Method::check_pieces`].
    pub fn at(mut self, place: Placement) -> Result<Self> {
        Placement { device: self.device, ranks: self.ranks } = place;
        let pieces = self.run.accumulate * self.ranks.count();
        self.method.check_pieces(pieces)?;
        match self.run.batch_size.is_multiple_of(pieces) {
            true => Ok(self),
            false => {
                let expected = format!("a multiple of {pieces}, run.accumulate times the number of ranks");
                Err(Error::config("run.batch_size", self.run.batch_size, expected))
            }
        }
    }

    /// Sets the precision of products, in place of that of the run.
    ///
    /// # Errors
    /// [`Error::Config`] for a precision without training.
    pub fn with_precision(mut self, precision: Precision) -> Result<Self> {
        self.run.precision = precision;
        self.run.validate()?;
        Ok(self)
    }

    /// The processes of the run.
    pub fn ranks(&mut self) -> &mut Ranks {
        &mut self.ranks
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
                let precision = self.run.precision;
                let (gradients, record) = precision.scope(|| self.method.backward(&round, piece, &mut batch))?;
                let mut networks = self.method.networks_mut();
                gradients.into_iter().for_each(|(network, gradients)| networks[network].add(gradients));
                records.push(record);
                if number + 1 < rounds {
                    *slot = Some(batch);
                }
            }
            let records = self.shared(records)?;
            let mut rates = Vec::new();
            for network in self.method.networks_mut() {
                network.share(&mut self.ranks)?;
                let updated = network.update(step).and_then(|updated| match measure {
                    true => network.check().map(|()| updated),
                    false => Ok(updated),
                });
                match updated {
                    Ok(updated) => rates.extend(updated),
                    Err(error) => return Err(self.method.explain(&round, &records, error)),
                }
            }
            metrics.extend(self.method.finish(&round, records, &rates)?);
        }
        Ok(metrics)
    }

    /// Returns the memory that this process takes, see [`burn_var::memory::held`].
    pub fn memory(&self) -> Option<u64> {
        burn_var::memory::held(&self.device)
    }

    /// Checks that all updates so far were finite, before the networks are saved.
    ///
    /// # Errors
    /// [`burn_var::Error::NonFinite`] naming the step.
    pub fn check(&self) -> Result<()> {
        self.method.networks().into_iter().try_for_each(Network::check)
    }

    /// Cuts the batch of a step, and returns the pieces of this rank.
    fn pieces(&self, step: u64) -> Vec<Piece> {
        let RunConfig { batch_size, accumulate, seed, .. } = self.run;
        let size = batch_size / (accumulate * self.ranks.count());
        let piece = |i: usize| Piece { step, seed, images: i * size..(i + 1) * size, batch_size };
        let first = self.ranks.rank() * accumulate;
        (first..first + accumulate).map(piece).collect()
    }

    /// Returns the records of all ranks, in the order of the pieces.
    fn shared(&mut self, records: Vec<M::Record>) -> Result<Vec<M::Record>> {
        if self.ranks.count() == 1 {
            return Ok(records);
        }
        let mut packet = Packet::default();
        records.pack(&mut packet)?;
        let all = self.ranks.gather(packet.into_bytes())?;
        let read = |bytes| Vec::<M::Record>::unpack(&mut Packet::received(bytes), &self.device);
        Ok(all.into_iter().map(read).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
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
/// `progress` stopped the run before the last step, and on all ranks but the first.
///
/// The run is a function of its configuration: it ends with the same weights however often it was interrupted.
///
/// # Errors
/// Whatever makes the run impossible or interrupts it; the same call resumes from the last checkpoint.
pub fn train<C: TrainConfig>(
    config: C,
    folder: &Path,
    place: impl Into<Placement>,
    progress: &mut dyn Progress,
) -> Result<Option<(PathBuf, Trainer<C::Method>)>> {
    let Placement { device, mut ranks } = place.into();
    let config = config.normalize();
    let settings = config.run().clone();
    let method = match prepare(config, folder, &device, &mut ranks, progress) {
        Ok(method) => method,
        Err(error) => {
            ranks.abort(&error);
            return Err(error);
        }
    };
    let mut trainer = Trainer::new(method, &settings)?.at(Placement { device, ranks })?;
    match run(&mut trainer, folder, progress) {
        Ok(file) => Ok(file.map(|file| (file, trainer))),
        Err(error) => {
            trainer.ranks.abort(&error);
            Err(error)
        }
    }
}

/// Creates the method of a run. Rank 0 is first, so that the others find the caches that it has made.
fn prepare<C: TrainConfig>(
    config: C,
    folder: &Path,
    device: &Device,
    ranks: &mut Ranks,
    progress: &mut dyn Progress,
) -> Result<C::Method> {
    if ranks.count() > 1 {
        let text = toml::to_string_pretty(&config).map_err(|error| Error::format(folder, error.to_string()))?;
        ranks.check_same("configuration", &text)?;
    }
    if !ranks.leads() {
        ranks.wait()?;
        let inputs = config.open(device)?;
        return config.start(inputs, folder, device, progress);
    }
    let inputs = config.open(device)?;
    // Only now: a wrong path must not become the configuration that the run was started with.
    settle(folder, &config, &RunConfig::MAY_CHANGE, C::UPGRADES)?;
    let method = config.start(inputs, folder, device, progress)?;
    ranks.wait()?;
    Ok(method)
}
