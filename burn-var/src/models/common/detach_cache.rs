use burn::nn::Linear;
use burn::tensor::{Bool, Tensor};

use crate::generation::{Condition, NextScale, ScaleInput, ScaleTokens, State, Vocabulary};
use crate::rng::Rng;
use crate::scales::ScaleAt;
use crate::{Result, Scales};

/// Transformer without gradients through its cache: a scale's logits depend on that scale's own input, and on no scale
/// before it. This takes less memory in training; the gradient is truncated.
#[derive(Debug, Clone, Copy)]
pub struct DetachCache<'a, M: ?Sized>(pub &'a M);

impl<M: NextScale + ?Sized> NextScale for DetachCache<'_, M> {
    type State = M::State;

    fn scales(&self) -> &Scales {
        self.0.scales()
    }

    fn vocabulary(&self) -> Vocabulary {
        self.0.vocabulary()
    }

    fn num_classes(&self) -> usize {
        self.0.num_classes()
    }

    fn code_embedding(&self) -> Option<&Linear> {
        self.0.code_embedding()
    }

    fn check_scales(&self, scales: &Scales) -> Result<()> {
        self.0.check_scales(scales)
    }

    fn start(&self, conditions: &[Condition], scales: &Scales) -> Result<Self::State> {
        self.0.start(conditions, scales)
    }

    fn embed(&self, state: &Self::State, at: ScaleAt<'_>, input: ScaleInput<'_>) -> Tensor<3> {
        self.0.embed(state, at, input)
    }

    fn step(&self, state: &mut Self::State, at: ScaleAt<'_>, hidden: Tensor<3>) -> Tensor<3> {
        let logits = self.0.step(state, at, hidden);
        state.detach();
        logits
    }

    fn kept(&self, state: &mut Self::State, at: ScaleAt<'_>, rngs: &mut [Rng]) -> Result<Option<Tensor<2, Bool>>> {
        self.0.kept(state, at, rngs)
    }

    fn refine(
        &self,
        state: &mut Self::State,
        at: ScaleAt<'_>,
        tokens: ScaleTokens<'_>,
        rngs: &mut [Rng],
    ) -> Result<Tensor<3>> {
        self.0.refine(state, at, tokens, rngs)
    }
}
