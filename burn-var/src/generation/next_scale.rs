use burn::nn::Linear;
use burn::tensor::{Bool, Int, Tensor};

use super::Condition;
use crate::rng::Rng;
use crate::scales::ScaleAt;
use crate::{Error, Result, Scales};

/// The choices that make up a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vocabulary {
    /// Choices per symbol: the number of codes, or 2 for bits.
    pub size: usize,
    /// Symbols per token: 1 for a token that is one code, the number of bits for a bit-wise token. Each is drawn from
    /// logits of its own.
    pub symbols: usize,
}

impl Vocabulary {
    /// Returns the vocabulary of tokens that are one code of `size`.
    pub const fn codes(size: usize) -> Self {
        Self { size, symbols: 1 }
    }

    /// Returns the vocabulary of tokens of `count` bits.
    pub const fn bits(count: usize) -> Self {
        Self { size: 2, symbols: count }
    }

    /// Returns the number of logits per token.
    pub const fn logits(self) -> usize {
        self.size * self.symbols
    }
}

/// Input of a transformer at one scale.
#[derive(Debug)]
pub struct ScaleInput<'a> {
    /// The tokenizer's view of the canvas so far, `[sequences, z_channels, height, width]` of this scale's size
    /// ([`Tokenizer::next_input`](super::Tokenizer::next_input)). At the first scale it holds no information.
    pub map: Tensor<4>,
    /// Symbols drawn at the preceding scale, `[sequences, tokens * symbols]`; `None` at the first scale. For models
    /// with a token embedding of their own.
    pub ids: Option<&'a Tensor<2, Int>>,
}

/// The final tokens of a scale, those that were known among them.
#[derive(Debug)]
pub struct ScaleTokens<'a> {
    /// Symbols, `[images, tokens * symbols]`.
    pub ids: &'a Tensor<2, Int>,
    /// Code vectors, `[images, tokens, z_channels]`: those of the ids, or a mixture of codes with `more_smooth`.
    pub codes: Tensor<3>,
}

/// A transformer that predicts all tokens of a scale at once from the scales before it.
///
/// A call of [`NextScale::start`] begins a batch; then each scale takes one [`NextScale::embed`] and one
/// [`NextScale::step`]. Guidance that needs more than one prediction per image puts several sequences per image into
/// the batch.
pub trait NextScale {
    /// State of a batch between scales: embedded conditions, caches.
    type State: State;

    /// Returns the scale schedule that the model was trained with, the default of requests.
    fn scales(&self) -> &Scales;

    /// Returns the choices per token.
    fn vocabulary(&self) -> Vocabulary;

    /// Returns the number of classes, the null class not counted; 0 for a model without classes.
    fn num_classes(&self) -> usize;

    /// Returns the embedding of code vectors, `[.., z_channels]` to `[.., width]`, which AID-VAR's injector reads;
    /// `None` for a model without one.
    fn code_embedding(&self) -> Option<&Linear> {
        None
    }

    /// Checks that the model can generate over a schedule. The default accepts its own only.
    ///
    /// # Errors
    /// [`Error::Config`] naming both.
    fn check_scales(&self, scales: &Scales) -> Result<()> {
        match scales == self.scales() {
            true => Ok(()),
            false => Err(Error::config("scale schedule", scales, format!("`{}`, the model's own", self.scales()))),
        }
    }

    /// Starts a batch of one sequence per condition: computes everything that depends on the conditions alone, and
    /// sets up empty caches.
    ///
    /// # Errors
    /// [`Error::Label`] for a class that the model does not have; [`Error::Unsupported`] for a condition of another
    /// kind; [`Error::Shape`] without conditions.
    fn start(&self, conditions: &[Condition], scales: &Scales) -> Result<Self::State>;

    /// Embeds a scale: the hidden states that enter the first block, `[sequences, tokens, width]`. The first scale
    /// starts from the condition alone.
    fn embed(&self, state: &Self::State, at: ScaleAt<'_>, input: ScaleInput<'_>) -> Tensor<3>;

    /// Runs all blocks over a scale's hidden states, and returns logits `[sequences, tokens, vocabulary.logits()]`.
    /// Appends keys and values to the caches.
    fn step(&self, state: &mut Self::State, at: ScaleAt<'_>, hidden: Tensor<3>) -> Tensor<3>;

    /// Returns which of the preceding map's tokens a scale of the same size keeps, `[images, tokens]`: they replace those
    /// drawn. Called after the draw.
    ///
    /// Repeated maps of one size are the steps of a model that unmasks or refines a map. The default keeps none. `rngs`
    /// holds one stream per image.
    ///
    /// # Errors
    /// The errors of the method.
    fn kept(&self, state: &mut Self::State, at: ScaleAt<'_>, rngs: &mut [Rng]) -> Result<Option<Tensor<2, Bool>>> {
        let _ = (state, at, rngs);
        Ok(None)
    }

    /// Refines the code vectors of a scale's final tokens, `[images, tokens, z_channels]`, before they are painted.
    ///
    /// This is where a model adds what its codes leave out, such as the residual diffusion of a hybrid tokenizer after
    /// the last scale. The default returns the codes as they are. `rngs` holds one stream per image.
    ///
    /// # Errors
    /// The errors of the method.
    fn refine(
        &self,
        state: &mut Self::State,
        at: ScaleAt<'_>,
        tokens: ScaleTokens<'_>,
        rngs: &mut [Rng],
    ) -> Result<Tensor<3>> {
        let _ = (state, at, rngs);
        Ok(tokens.codes)
    }
}

/// The state of a batch between two scales. It is a value: dropping it leaves the model as it was.
pub trait State: Clone {
    /// Returns the number of sequences.
    fn sequences(&self) -> usize;

    /// Keeps only the first `count` sequences.
    #[must_use]
    fn keep_first(self, count: usize) -> Self;

    /// Detaches the scales so far: no gradient passes to them.
    fn detach(&mut self);
}
