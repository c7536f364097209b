use burn::tensor::Tensor;

use super::{Label, NextScale, Session};
use crate::{Result, Scales};

/// A transformer through whose cache no gradient passes: what a scale's logits say reaches that scale's own input, and
/// none before it. It takes less memory to learn through, and the gradient is no longer the whole one.
#[derive(Clone, Copy)]
pub struct Truncated<'a>(pub &'a dyn NextScale);

impl NextScale for Truncated<'_> {
    fn scales(&self) -> &Scales {
        self.0.scales()
    }

    fn num_classes(&self) -> usize {
        self.0.num_classes()
    }

    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    fn begin(&self, labels: &[Label]) -> Result<Session> {
        self.0.begin(labels)
    }

    fn embed(&self, session: &Session, k: usize, input: Tensor<4>) -> Tensor<3> {
        self.0.embed(session, k, input)
    }

    fn step(&self, session: &mut Session, hidden: Tensor<3>) -> Tensor<3> {
        let logits = self.0.step(session, hidden);
        session.detach();
        logits
    }
}
