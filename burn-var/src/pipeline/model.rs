use std::any::Any;

use burn::nn::Linear;
use burn::tensor::Tensor;

use crate::generation::{BatchRequest, Generated, Generation, NextScale, ScaleDone, Tokenizer, check_pair};
use crate::guidance::Guidance;
use crate::{Result, Scales};

/// A tokenizer and a transformer that fit each other.
#[derive(Debug, Clone)]
pub struct ModelPair<T, M> {
    /// Tokenizer.
    pub tokenizer: T,
    /// Transformer.
    pub transformer: M,
}

impl<T: Tokenizer, M: NextScale> ModelPair<T, M> {
    /// Pairs a tokenizer and a transformer.
    ///
    /// # Errors
    /// The errors of [`check_pair`].
    pub fn new(tokenizer: T, transformer: M) -> Result<Self> {
        check_pair(&tokenizer, &transformer)?;
        Ok(Self { tokenizer, transformer })
    }
}

/// A pair of any types: the one place where model types are erased.
pub(super) trait AnyPair: Send + Sync {
    fn tokenizer(&self) -> &dyn Tokenizer;
    fn scales(&self) -> &Scales;
    fn num_classes(&self) -> usize;
    fn code_embedding(&self) -> Option<&Linear>;
    fn start<'a>(
        &'a self,
        guidance: Vec<Box<dyn Guidance + 'a>>,
        request: BatchRequest,
    ) -> Result<Box<dyn AnyGeneration + 'a>>;
    fn as_any(&self) -> &dyn Any;
}

impl<T, M> AnyPair for ModelPair<T, M>
where
    T: Tokenizer + Send + Sync + 'static,
    M: NextScale + Send + Sync + 'static,
{
    fn tokenizer(&self) -> &dyn Tokenizer {
        &self.tokenizer
    }

    fn scales(&self) -> &Scales {
        self.transformer.scales()
    }

    fn num_classes(&self) -> usize {
        self.transformer.num_classes()
    }

    fn code_embedding(&self) -> Option<&Linear> {
        self.transformer.code_embedding()
    }

    fn start<'a>(
        &'a self,
        guidance: Vec<Box<dyn Guidance + 'a>>,
        request: BatchRequest,
    ) -> Result<Box<dyn AnyGeneration + 'a>> {
        Ok(Box::new(Generation::new(&self.tokenizer, &self.transformer, guidance, request)?))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A [`Generation`] of any model, in two halves around the read-back of its logits.
pub(super) trait AnyGeneration {
    fn logits(&mut self) -> Result<Option<Tensor<3>>>;
    fn draw(&mut self, logits: Tensor<3>, values: Vec<f32>) -> Result<ScaleDone>;
    fn finish(self: Box<Self>) -> Result<Generated>;
}

impl<T: Tokenizer + ?Sized, M: NextScale + ?Sized> AnyGeneration for Generation<'_, T, M> {
    fn logits(&mut self) -> Result<Option<Tensor<3>>> {
        Generation::logits(self)
    }

    fn draw(&mut self, logits: Tensor<3>, values: Vec<f32>) -> Result<ScaleDone> {
        Generation::draw(self, logits, values)
    }

    fn finish(self: Box<Self>) -> Result<Generated> {
        Generation::finish(*self)
    }
}
