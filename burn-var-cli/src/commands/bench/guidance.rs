//! The cost of guidance beside the transformer.

use anyhow::{Context, Result};
use burn::tensor::{Distribution, Tensor};
use burn_var::guidance::{BatchInfo, Guidance, Logits, Ssg, SsgConfig};
use burn_var::models::aid::InjectorConfig;
use burn_var::pipeline::Pipeline;

use super::Bench;

impl Bench<'_> {
    /// Measures an injector of the paper's size for this transformer, at all scales of a batch.
    pub(super) fn injector(&mut self, pipeline: &Pipeline, batch: usize) -> Result<()> {
        let scales = pipeline.scales();
        let embedding = pipeline.code_embedding().context("an injector needs a model that embeds code vectors")?;
        let [_, width] = embedding.weight.dims();
        let injector = InjectorConfig::paper(width).init(1, self.device)?;
        let tokens: Vec<Tensor<3>> =
            scales.sizes().iter().map(|size| self.noise([batch, size.area(), width])).collect();
        self.seconds("AID-VAR's injector", batch, |_| {
            let pairs = scales.sizes().windows(2).zip(&tokens);
            let maps = pairs.map(|(sizes, tokens)| injector.forward(tokens.clone(), sizes[0], sizes[1], None));
            Ok(maps.collect::<burn_var::Result<Vec<_>>>()?)
        })
    }

    /// Measures Scaled Spatial Guidance at all scales of a batch.
    pub(super) fn ssg(&mut self, pipeline: &Pipeline, batch: usize) -> Result<()> {
        let scales = pipeline.scales();
        let choices = pipeline.tokenizer().vocabulary().logits();
        let logits: Vec<Tensor<3>> =
            scales.sizes().iter().map(|size| self.noise([batch, size.area(), choices])).collect();
        let device = self.device.clone();
        self.seconds("Scaled Spatial Guidance", batch, |_| {
            let mut ssg = Ssg::new(SsgConfig::paper(0.3));
            ssg.begin(&BatchInfo { scales, images: batch, seed: 0, first: 0, device: &device })?;
            let guided = scales.iter().zip(&logits);
            let guided = guided.map(|(at, cond)| ssg.logits(at, Logits::cond(cond.clone())));
            Ok(guided.collect::<burn_var::Result<Vec<_>>>()?)
        })
    }

    fn noise(&self, shape: [usize; 3]) -> Tensor<3> {
        Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), self.device)
    }
}
