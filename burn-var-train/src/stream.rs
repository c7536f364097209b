use burn::tensor::Device;

use crate::data::{BatchLoader, BatchOrder, PictureBatch, PrefetchedBatches};
use crate::run::RunConfig;
use crate::{Error, Result};

/// The batches of a run by step, loaded ahead as long as steps follow one another.
pub(crate) struct Stream {
    loader: BatchLoader,
    order: BatchOrder,
    seed: u64,
    mirror: bool,
    device: Device,
    /// Batches loaded ahead, and the step that the next one is for.
    ahead: Option<(u64, PrefetchedBatches)>,
}

impl Stream {
    pub(crate) fn new(loader: BatchLoader, run: &RunConfig, mirror: bool, device: &Device) -> Result<Self> {
        let order = BatchOrder::new(loader.source().len(), run.batch_size, run.seed)?;
        Ok(Self { loader, order, seed: run.seed, mirror, device: device.clone(), ahead: None })
    }

    /// The fingerprint of the pictures.
    pub(crate) fn data(&self) -> String {
        self.loader.source().fingerprint()
    }

    /// Returns the fingerprint of the pictures by the hash function that made `recorded`.
    pub(crate) fn data_like(&self, recorded: &str) -> Result<String> {
        self.loader.source().fingerprint_like(recorded)
    }

    /// The batch of zero-based `step`.
    pub(crate) fn batch(&mut self, step: u64) -> Result<PictureBatch> {
        let mut batches = match self.ahead.take() {
            Some((next, batches)) if next == step => batches,
            _ => self.loader.prefetch(self.order.clone(), step as usize, (self.seed, self.mirror), &self.device)?,
        };
        let batch = batches.next().ok_or_else(|| {
            Error::format(self.loader.source().path(), "the thread that loads pictures ended without a word")
        })??;
        self.ahead = Some((step + 1, batches));
        Ok(batch)
    }
}
