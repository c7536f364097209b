use burn::tensor::Tensor;

use super::{Condition, NextScale};
use crate::rng::Rng;
use crate::{Result, Scales};

/// A next-scale transformer that computes the logits of all scales in one pass, from the inputs of all scales: training,
/// and whatever scores given tokens.
pub trait TeacherForced: NextScale {
    /// Computes the logits of all scales of a schedule at once, `[batch, L, vocabulary.logits()]`.
    ///
    /// `input` has the code vectors of all scales but the first, `[batch, L - tokens of the first scale, z_channels]`, as
    /// [`Tokenizer::teacher_input`](super::Tokenizer::teacher_input) makes them of true tokens. With `noise`, one stream
    /// per image, drop path is enabled. The caller drops conditions.
    ///
    /// # Errors
    /// The errors of [`NextScale::check_scales`] and [`NextScale::start`]; [`Error::Shape`](crate::Error::Shape) if conditions,
    /// input or noise do not fit each other.
    fn teacher_forced(
        &self,
        conditions: &[Condition],
        input: Tensor<3>,
        scales: &Scales,
        noise: Option<&mut [Rng]>,
    ) -> Result<Tensor<3>>;
}
