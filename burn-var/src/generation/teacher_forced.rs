use burn::tensor::{Int, Tensor};

use super::{Condition, NextScale, Tokenizer};
use crate::guidance::Schedule;
use crate::rng::Rng;
use crate::{Error, Result, Scales, TokenPyramid};

/// Input of a teacher-forced pass: the true tokens, in the form that a model reads.
#[derive(Debug, Clone)]
pub struct TeacherInput {
    /// Code vectors of all scales but the first, `[batch, L - tokens of the first scale, z_channels]`, as
    /// [`Tokenizer::teacher_input`] makes them of true tokens.
    pub codes: Tensor<3>,
    /// Ids of all scales, `[batch, L * symbols]`, for models with a token embedding of their own.
    pub ids: Option<Tensor<2, Int>>,
}

impl TeacherInput {
    /// Returns the input for true tokens, on the tokenizer's device.
    pub fn of<T: Tokenizer + ?Sized>(tokenizer: &T, tokens: &TokenPyramid) -> Self {
        Self { codes: tokenizer.teacher_input(tokens), ids: Some(tokens.sequence()) }
    }

    /// Returns this input as constants on the autodiff device, for training.
    #[must_use]
    pub fn on_graph(self) -> Self {
        Self { codes: Tensor::from_inner(self.codes), ids: self.ids.map(Tensor::from_inner) }
    }

    /// Returns the ids of all scales.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the input has code vectors alone.
    pub fn ids(&self) -> Result<Tensor<2, Int>> {
        self.ids.clone().ok_or_else(|| {
            Error::unsupported(
                "a pass over code vectors",
                "this model embeds the ids of tokens: use `TeacherInput::of`",
            )
        })
    }
}

impl From<Tensor<3>> for TeacherInput {
    fn from(codes: Tensor<3>) -> Self {
        Self { codes, ids: None }
    }
}

/// A next-scale transformer that computes the logits of all scales in one pass, from the inputs of all scales: training,
/// and whatever scores given tokens.
pub trait TeacherForced: NextScale {
    /// Computes the logits of all scales of a schedule at once, `[batch, L, vocabulary.logits()]`.
    ///
    /// `input` has the true tokens; code vectors alone are enough for models that read those. With `noise`, one stream per
    /// image, drop path and dropout are enabled. The caller drops conditions.
    ///
    /// # Errors
    /// The errors of [`NextScale::check_scales`] and [`NextScale::start`]; [`Error::Shape`] if conditions, input or noise do
    /// not fit each other; [`Error::Unsupported`] for code vectors alone if the model needs ids.
    fn teacher_forced(
        &self,
        conditions: &[Condition],
        input: impl Into<TeacherInput>,
        scales: &Scales,
        noise: Option<&mut [Rng]>,
    ) -> Result<Tensor<3>>;

    /// Returns the classifier-free guidance of a strength that models of this family are used with: VAR's ramp by default.
    fn cfg(strength: f64) -> Schedule
    where
        Self: Sized,
    {
        Schedule::Ramp(strength)
    }
}
