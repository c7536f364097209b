//! The hybrid of SAR's pre-study (ScaleAR in its code): masked prediction of the first scale, and scales that see the class
//! token alone.

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::ops::Sight;
use crate::rng::Rng;
use crate::{Error, Result, Scales};

/// Prediction of the first scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirstScale {
    /// All of its tokens at once, from the class: FlexVAR.
    #[default]
    OneShot,
    /// In several steps that unmask ever more of its tokens, in a random order: MaskGIT's masked prediction without its
    /// confidences, and ScaleAR's.
    Masked(MaskedFirst),
}

/// Settings of a masked first scale. The number of steps is that of the schedule's maps of the first size: 8 in
/// `4,4,4,4,4,4,4,4,5,6,8,10,13,16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaskedFirst {
    /// The first scale has a table of positions of its own, for one size, in place of the one that is resized to every
    /// scale.
    pub own_positions: bool,
    /// Draws the tokens that are already unmasked again in every step, as the released code does. No training step has
    /// taught the model to do so.
    pub rewrite: bool,
}

/// Tokens that a scale sees besides its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SeenScales {
    /// The class token and all scales before: FlexVAR. Those after a masked first scale see it as it was in the last of its
    /// steps.
    #[default]
    Before,
    /// The class token alone, which itself sees nothing else. Without a masked first scale, the first scale takes its place.
    ClassToken,
    /// The class token alone, which itself sees the first scale in training, and the scale in prediction at generation: the
    /// released code of ScaleAR. Only with a masked first scale.
    ClassTokenReleased,
}

impl SeenScales {
    /// Returns the mask of a teacher-forced pass.
    pub(super) fn sight(self) -> Sight {
        match self {
            Self::Before => Sight::Causal,
            Self::ClassToken => Sight::FirstAndOwn,
            Self::ClassTokenReleased => Sight::FirstSeesSecond,
        }
    }
}

impl MaskedFirst {
    /// Returns the number of unmasked tokens after each step on a first scale of `tokens` tokens: `tokens (1 - cos(pi (j +
    /// 1) / steps)) / 2` rounded down, but at least one more in every step while any is left.
    pub fn unmasked(tokens: usize, steps: usize) -> Vec<usize> {
        let mut done = 0;
        let after = |step: usize| {
            let cosine = 0.5 * (1.0 + (std::f64::consts::PI * (step + 1) as f64 / steps as f64).cos());
            let ideal = if step + 1 == steps { tokens } else { (tokens as f64 * (1.0 - cosine)) as usize };
            done = ideal.max(done + 1).min(tokens);
            done
        };
        (0..steps).map(after).collect()
    }
}

/// Progress of a masked first scale.
#[derive(Debug, Clone)]
pub(super) struct Unmasking {
    /// Number of unmasked tokens after each step.
    after: Vec<usize>,
    rewrite: bool,
    /// Rank of each token in the order of unmasking, `[images, tokens]`.
    order: Option<Tensor<2, Int>>,
}

impl Unmasking {
    pub(super) fn new(masked: MaskedFirst, scales: &Scales) -> Self {
        let after = MaskedFirst::unmasked(scales.size(0).area(), scales.first_repeats());
        Self { after, rewrite: masked.rewrite, order: None }
    }

    /// Returns true for the steps of the first scale.
    pub(super) fn is_step(&self, k: usize) -> bool {
        k < self.after.len()
    }

    pub(super) fn set_order(&mut self, order: Tensor<2, Int>) {
        self.order = Some(order);
    }

    /// Returns the tokens that are unmasked before step `k`, `[images, tokens]`; `None` for the first step and for the
    /// scales behind the steps.
    pub(super) fn unmasked(&self, k: usize) -> Option<Tensor<2, Bool>> {
        let before = *self.after.get(k.checked_sub(1)?)?;
        let order = self.order.clone().filter(|_| self.is_step(k))?;
        Some(order.lower_elem(before as i64))
    }

    /// Returns the tokens that step `k` leaves as they are. The first step draws the order, if none is set.
    pub(super) fn kept(&mut self, k: usize, rngs: &mut [Rng], device: &Device) -> Option<Tensor<2, Bool>> {
        let tokens = *self.after.last()?;
        if self.order.is_none() {
            let ranks = rngs.iter_mut().flat_map(|rng| rng.permutation(tokens)).map(|rank| rank as i64).collect();
            self.order = Some(Tensor::from_data(TensorData::new::<i64, _>(ranks, [rngs.len(), tokens]), device));
        }
        self.unmasked(k).filter(|_| !self.rewrite)
    }
}

/// Checks that a schedule fits a masked first scale; `own` is the number of positions that its table has, if it has one.
///
/// # Errors
/// [`Error::Config`] naming the schedule.
pub(super) fn check_masked(scales: &Scales, own: Option<usize>) -> Result<()> {
    let (tokens, steps) = (scales.size(0).area(), scales.first_repeats());
    if let Some(own) = own.filter(|own| *own != tokens) {
        let expected = format!("a first map of {own} tokens, the size that this model's masked first scale has");
        return Err(Error::config("scale schedule", scales, expected));
    }
    match steps > tokens {
        true => Err(Error::config("scale schedule", scales, format!("at most {tokens} maps of the first size"))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_unmasks_a_token_while_any_is_masked() {
        assert_eq!(MaskedFirst::unmasked(16, 8), [1, 2, 4, 8, 11, 13, 15, 16], "the cosine, in double precision");
        assert_eq!(MaskedFirst::unmasked(16, 1), [16]);
        assert_eq!(MaskedFirst::unmasked(4, 4), [1, 2, 3, 4], "one at a time");
        for (tokens, steps) in [(9, 5), (16, 13), (25, 25), (64, 8)] {
            let after = MaskedFirst::unmasked(tokens, steps);
            let grows = |pair: &[usize]| pair[0] < pair[1] || pair[0] == tokens;
            assert!(after[0] >= 1 && after.windows(2).all(grows), "{after:?}");
            assert_eq!((after.len(), after.last()), (steps, Some(&tokens)));
        }
    }
}
