//! What guidance costs beside the transformer.

use anyhow::Result;
use burn::tensor::{Distribution, Tensor};
use burn_var::Tokenizer;
use burn_var::models::aid::InjectorConfig;
use burn_var::guidance::{Guidance, Logits, Ssg, SsgConfig};

use super::Bench;
use crate::models::Pair;

impl Bench<'_> {
    /// An injector of the paper's size for this transformer, at all scales of a batch.
    pub(super) fn injector(&mut self, pair: &Pair, batch: usize) -> Result<()> {
        let scales = pair.tokenizer.scales();
        let width = pair.transformer.config().embed_dim;
        let injector = InjectorConfig::paper(width).init(1, self.device)?;
        let tokens: Vec<Tensor<3>> =
            scales.sizes().iter().map(|size| self.noise([batch, size.area(), width])).collect();
        self.seconds("AID-VAR's injector", batch, |_| {
            let pairs = scales.sizes().windows(2).zip(&tokens);
            let maps = pairs.map(|(sizes, tokens)| injector.forward(tokens.clone(), sizes[0], sizes[1], None));
            Ok(maps.collect::<burn_var::Result<Vec<_>>>()?)
        })
    }

    /// Scaled Spatial Guidance, at all scales of a batch.
    pub(super) fn ssg(&mut self, pair: &Pair, batch: usize) -> Result<()> {
        let scales = pair.tokenizer.scales();
        let vocab = pair.transformer.config().vocab_size;
        let logits: Vec<Tensor<3>> =
            scales.sizes().iter().map(|size| self.noise([batch, size.area(), vocab])).collect();
        self.seconds("Scaled Spatial Guidance", batch, |_| {
            let mut ssg = Ssg::new(SsgConfig::paper(0.3));
            let steered = logits.iter().enumerate();
            let steered = steered.map(|(k, cond)| ssg.steer(k, scales, Logits::cond(cond.clone())));
            Ok(steered.collect::<burn_var::Result<Vec<_>>>()?)
        })
    }

    fn noise(&self, shape: [usize; 3]) -> Tensor<3> {
        Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), self.device)
    }
}
