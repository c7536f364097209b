//! The training engine: one loop for every training method.
//!
//! A [`Method`] says how a batch is made and how a piece of it becomes gradients of one or several networks. The engine
//! does the rest: it cuts the batch into pieces, sums their gradients, clips them, runs the optimizer and the moving
//! average of each [`Network`], saves and resumes, and reports. A method never sees the whole batch at once, so its pieces
//! can be computed by several processes, the [`Ranks`].
//!
//! The weights after a step do not depend on the number of pieces, up to the rounding of sums. For this all noise comes
//! from [`Piece::noise`], which keys it by seed, purpose, step and image.

pub mod checkpoint;
mod learner;
mod portable;
pub mod progress;
mod ranks;
pub mod report;
pub mod run;
mod trainer;

use std::ops::Range;
use std::path::PathBuf;

use burn::optim::GradientsParams;
use burn_var::rng::Rng;

use self::checkpoint::{Checkpoint, Part};
use self::run::Metrics;
use crate::{Error, Result};

pub use learner::{Learner, Network, Rates, Rules, SectionNames};
pub use portable::{Packet, Portable};
pub use ranks::Ranks;
pub use trainer::{Placement, TrainConfig, Trainer, train};

/// Some images of a step's batch.
#[derive(Debug, Clone)]
pub struct Piece {
    /// The step, from 0.
    pub step: u64,
    /// The seed of the run.
    pub seed: u64,
    /// The indices of the images in the step's whole batch.
    pub images: Range<usize>,
    /// Images in the step's whole batch.
    pub batch_size: usize,
}

impl Piece {
    /// Returns one random stream per image of the piece. The streams of an image are the same in any piece.
    pub fn noise(&self, purpose: &str) -> Vec<Rng> {
        self.images.clone().map(|image| Rng::keyed(self.seed, purpose, self.step, image as u64)).collect()
    }

    /// Returns true if the piece is the whole batch. A method may then keep the graph of one round for the next.
    pub fn is_whole(&self) -> bool {
        self.images.len() == self.batch_size
    }
}

/// One pass over all pieces of a step's batch, after which the networks that got gradients are updated.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// The step, from 0.
    pub step: u64,
    /// The number of the round in its step, from 0.
    pub number: usize,
    /// True if the step is reported: only then metrics are worth their time.
    pub measure: bool,
}

/// Gradients of the mean loss over a piece, each with the index of its network in [`Method::networks`].
pub type NetworkGradients = Vec<(usize, GradientsParams)>;

/// The training data of a run, as its checkpoints record it.
pub trait TrainingData {
    /// Returns the fingerprint of the data.
    fn fingerprint(&self) -> String;

    /// Returns [`TrainingData::fingerprint`] in the form of `recorded`, which an earlier version may have recorded;
    /// `None` if this version cannot compute that form.
    ///
    /// # Errors
    /// If images must be read for it and cannot be.
    fn fingerprint_like(&self, _recorded: &str) -> Result<Option<String>> {
        Ok(Some(self.fingerprint()))
    }
}

/// A training method. [`Trainer`] drives it.
///
/// A step consists of one or more rounds. In every round each piece goes through [`Method::backward`] once; the engine
/// averages the gradients, updates the networks that got any, and calls [`Method::finish`].
pub trait Method {
    /// Images of a piece, and whatever one round leaves for the next.
    type Batch;
    /// Values that a piece reports besides its gradients: terms of the loss, statistics. All ranks get those of all
    /// pieces.
    type Record: Portable;

    /// The training data. A checkpoint made with other data is refused.
    fn data(&self) -> &dyn TrainingData;

    /// The trained networks, always in the same order.
    fn networks(&self) -> Vec<&dyn Network>;

    /// The trained networks, in the order of [`Method::networks`].
    fn networks_mut(&mut self) -> Vec<&mut dyn Network>;

    /// Checks that the batch can be cut into so many equal pieces.
    ///
    /// # Errors
    /// If images that belong together would be cut apart.
    fn check_pieces(&self, _pieces: usize) -> Result<()> {
        Ok(())
    }

    /// Makes the batch of a piece. Called once per piece and step, in the order of the pieces; with several ranks, for a
    /// part of the pieces.
    ///
    /// # Errors
    /// If images or tokens cannot be read.
    fn batch(&mut self, piece: &Piece) -> Result<Self::Batch>;

    /// The number of rounds of a step, at least 1.
    fn rounds(&self, _step: u64) -> usize {
        1
    }

    /// Prepares a round, before its first piece.
    ///
    /// # Errors
    /// If the device fails.
    fn begin(&mut self, _round: &Round) -> Result<()> {
        Ok(())
    }

    /// Computes the gradients of one piece. It must not depend on other pieces of the same round.
    ///
    /// # Errors
    /// Shapes that do not fit, and failures of the device.
    fn backward(
        &self,
        round: &Round,
        piece: &Piece,
        batch: &mut Self::Batch,
    ) -> Result<(NetworkGradients, Self::Record)>;

    /// Finishes a round, after the networks were updated. Returns metrics if the round is measured.
    ///
    /// `records` has one entry per piece, of all ranks, `rates` one per updated network. What it changes must be a function
    /// of these alone, so that all ranks stay equal.
    ///
    /// # Errors
    /// If a value cannot be read from the device, or the run must stop.
    fn finish(&mut self, round: &Round, records: Vec<Self::Record>, rates: &[Rates]) -> Result<Metrics>;

    /// Explains why the update of a network failed, if the records of the round show the cause.
    fn explain(&self, _round: &Round, _records: &[Self::Record], error: Error) -> Error {
        error
    }

    /// State besides the networks that the next step depends on.
    fn parts(&self) -> Vec<Part<'_>> {
        Vec::new()
    }

    /// Loads what [`Method::parts`] saved.
    ///
    /// # Errors
    /// If the checkpoint belongs to another model.
    fn restore(&mut self, _checkpoint: &Checkpoint) -> Result<()> {
        Ok(())
    }

    /// Writes sample images after `step` steps and returns their file; `None` if the method has no images to show.
    ///
    /// # Errors
    /// If the file cannot be written.
    fn samples(&mut self, _step: u64) -> Result<Option<PathBuf>> {
        Ok(None)
    }

    /// Writes the model in its present state for use, replacing the file of before, and returns that file.
    ///
    /// # Errors
    /// If the file cannot be written.
    fn export(&self) -> Result<PathBuf>;

    /// The charts to draw of the log: title and names of the metrics.
    fn charts(&self) -> Vec<(&'static str, Vec<String>)>;
}

/// Returns the metrics of a measured round: the means over its pieces, and the rates of the updated networks.
pub(crate) fn round_metrics(round: &Round, pieces: Vec<Metrics>, rates: &[Rates]) -> Result<Metrics> {
    let mut metrics = mean_metrics(pieces);
    if round.measure {
        for rates in rates {
            metrics.extend(rates.metrics()?);
        }
    }
    Ok(metrics)
}

/// Averages metrics of the pieces. All have the same names in the same order.
pub(crate) fn mean_metrics(pieces: Vec<Metrics>) -> Metrics {
    let count = pieces.len() as f64;
    let mut pieces = pieces.into_iter();
    let mut mean = pieces.next().unwrap_or_default();
    for piece in pieces {
        mean.iter_mut().zip(piece).for_each(|(sum, (_, value))| sum.1 += value);
    }
    mean.iter_mut().for_each(|(_, value)| *value /= count);
    mean
}
