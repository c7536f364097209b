use burn::tensor::Device;

use super::{
    BatchLoader, BatchOrder, Fingerprint, HostBatch, ImageBatch, ImageSource, PrefetchedBatches, TokenBatch,
    TokenCache, TokenCacheSpec, VariantChoice, View,
};
use crate::engine::run::RunConfig;
use crate::engine::{Piece, TrainingData};
use crate::{Error, Result};

/// The images of a run by step, decoded ahead as long as steps follow one another.
pub(crate) struct ImageStream {
    loader: BatchLoader,
    order: BatchOrder,
    seed: u64,
    mirror: bool,
    /// True for random crops, false for the middle of each image.
    crop: bool,
    device: Device,
    /// Batches that are decoded ahead, and the step of the next one.
    ahead: Option<(u64, PrefetchedBatches)>,
    /// The step in progress, if it is cut into pieces.
    current: Option<(u64, HostBatch)>,
}

impl ImageStream {
    pub(crate) fn new(loader: BatchLoader, run: &RunConfig, mirror: bool, device: &Device) -> Result<Self> {
        let order = BatchOrder::new(loader.source().len(), run.batch_size, run.seed)?;
        let device = device.clone();
        Ok(Self { loader, order, seed: run.seed, mirror, crop: true, device, ahead: None, current: None })
    }

    /// Returns the stream of the middle of each image in place of a random crop.
    pub(crate) fn centered(self) -> Self {
        Self { crop: false, ..self }
    }

    /// Returns the source of the images.
    pub(crate) fn source(&self) -> &dyn ImageSource {
        &**self.loader.source()
    }

    /// Returns the images of a piece.
    pub(crate) fn batch(&mut self, piece: &Piece) -> Result<ImageBatch> {
        if piece.is_whole() {
            return Ok(self.read(piece.step)?.upload(&self.device));
        }
        let batch = match self.current.take() {
            Some((step, batch)) if step == piece.step => batch,
            _ => self.read(piece.step)?,
        };
        let images = batch.part(piece.images.clone()).upload(&self.device);
        if piece.images.end < piece.batch_size {
            self.current = Some((piece.step, batch));
        }
        Ok(images)
    }

    /// Returns the whole batch of a step.
    fn read(&mut self, step: u64) -> Result<HostBatch> {
        let mut batches = match self.ahead.take() {
            Some((next, batches)) if next == step => batches,
            _ => {
                let (mut order, seed, mirror, crop) = (self.order.clone(), self.seed, self.mirror, self.crop);
                self.loader.prefetch((step as usize..).map(move |step| {
                    let epoch = order.epoch(step);
                    let view = match crop {
                        true => View::Random { seed, epoch, mirror },
                        false => View::Middle { seed, epoch, mirror },
                    };
                    (order.batch(step), view)
                }))?
            }
        };
        let ended = || Error::LoaderEnded { path: self.loader.source().path().to_path_buf() };
        let batch = batches.next().ok_or_else(ended)??;
        self.ahead = Some((step + 1, batches));
        Ok(batch)
    }
}

impl TrainingData for ImageStream {
    fn fingerprint(&self) -> String {
        self.loader.source().run_fingerprint()
    }

    fn fingerprint_like(&self, recorded: &str) -> Result<Option<String>> {
        Ok(Some(match Fingerprint::is_old(recorded) {
            true => self.loader.source().fingerprint_like(recorded)?,
            false => self.fingerprint(),
        }))
    }
}

/// The tokens of a run by step.
pub(crate) struct TokenStream {
    cache: TokenCache,
    order: BatchOrder,
    seed: u64,
}

impl TokenStream {
    pub(crate) fn new(cache: TokenCache, run: &RunConfig) -> Result<Self> {
        let order = BatchOrder::new(cache.len(), run.batch_size, run.seed)?;
        Ok(Self { cache, order, seed: run.seed })
    }

    /// Returns the specification of the cache: data, tokenizer and views.
    pub(crate) fn spec(&self) -> &TokenCacheSpec {
        self.cache.spec()
    }

    /// Returns the tokens of a piece.
    pub(crate) fn batch(&mut self, piece: &Piece) -> Result<TokenBatch> {
        let step = piece.step as usize;
        let images = &self.order.batch(step)[piece.images.clone()];
        self.cache.batch(images, VariantChoice::Random { seed: self.seed, epoch: self.order.epoch(step) })
    }
}

impl TrainingData for TokenStream {
    /// The fingerprints of images and tokenizer.
    fn fingerprint(&self) -> String {
        let TokenCacheSpec { data, tokenizer, .. } = self.cache.spec();
        format!("{data} {tokenizer}")
    }

    /// A cache has the form of the version that made it.
    fn fingerprint_like(&self, recorded: &str) -> Result<Option<String>> {
        let data = self.fingerprint();
        Ok((data.len() == recorded.len()).then_some(data))
    }
}
