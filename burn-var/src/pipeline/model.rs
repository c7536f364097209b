use std::any::Any;
use std::pin::Pin;

use burn::nn::Linear;

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
    fn check_scales(&self, scales: &Scales) -> Result<()>;
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

    fn check_scales(&self, scales: &Scales) -> Result<()> {
        self.transformer.check_scales(scales)
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

/// The future of the next scale. It may not be sent to another thread, since guidance may not.
pub(super) type NextScaleFuture<'a> = Pin<Box<dyn Future<Output = Result<Option<ScaleDone>>> + 'a>>;

/// A [`Generation`] of any model.
pub(super) trait AnyGeneration {
    fn next_scale(&mut self) -> Result<Option<ScaleDone>>;
    fn next_scale_async(&mut self) -> NextScaleFuture<'_>;
    fn finish(self: Box<Self>) -> Result<Generated>;
}

impl<T: Tokenizer + ?Sized, M: NextScale + ?Sized> AnyGeneration for Generation<'_, T, M> {
    fn next_scale(&mut self) -> Result<Option<ScaleDone>> {
        Generation::next_scale(self)
    }

    fn next_scale_async(&mut self) -> NextScaleFuture<'_> {
        Box::pin(Generation::next_scale_async(self))
    }

    fn finish(self: Box<Self>) -> Result<Generated> {
        Generation::finish(*self)
    }
}
