//! Training of a masked first scale beside the scales that follow it: ScaleAR of SAR's pre-study.

use burn::tensor::{Bool, Int, Tensor, TensorData};
use burn_var::models::flexvar::{FlexVae, FlexVar};
use burn_var::rng::Rng;
use burn_var::{Scales, TokenPyramid, Tokenizer, ops};
use serde::{Deserialize, Serialize};

use super::transformer::{Objective, ObjectiveLoss, Pass};
use crate::{Error, Result};

/// Share of masked tokens in a step: normally distributed, within `least..=1`. The default is the released one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaskRatio {
    /// Mean of the distribution before it is cut off.
    pub mean: f64,
    /// Standard deviation before it is cut off; 0 masks the same share in every step.
    pub std: f64,
    /// Smallest share.
    pub least: f64,
}

impl Default for MaskRatio {
    fn default() -> Self {
        Self { mean: 1.0, std: 0.25, least: 0.7 }
    }
}

impl MaskRatio {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.least) {
            return Err(Error::config("mask_ratio.least", self.least, "a share in 0..=1"));
        }
        if !(self.least..=1.0).contains(&self.mean) {
            return Err(Error::config("mask_ratio.mean", self.mean, format!("a share in {}..=1", self.least)));
        }
        if !(self.std.is_finite() && self.std >= 0.0) {
            return Err(Error::config("mask_ratio.std", self.std, "a number of at least 0"));
        }
        Ok(())
    }

    /// Draws the share of a step.
    pub fn draw(&self, rng: &mut Rng) -> f64 {
        // The mean lies within the limits, so that at least a draw in some is accepted.
        let drawn = std::iter::repeat_with(|| self.mean + self.std * rng.normal());
        drawn.take(1000).find(|share| (self.least..=1.0).contains(share)).unwrap_or(self.mean)
    }
}

/// Returns the input of a pass with a masked first scale: its true codes, then the inputs of the scales behind it, `[batch,
/// L, z_channels]`.
pub fn masked_input(tokenizer: &FlexVae, tokens: &TokenPyramid) -> Tensor<3> {
    Tensor::cat(vec![tokenizer.lookup(tokens.map(0)), tokenizer.teacher_input(tokens)], 1)
}

/// Returns the tokens that count in the loss, `[batch, L]`: 1 for the masked ones of the first scale and for all of the
/// others, 0 elsewhere. `masked` is `[batch, tokens of the first scale]`.
pub fn counted_tokens(masked: Tensor<2, Bool>, scales: &Scales) -> Tensor<2> {
    let [batch, first] = masked.dims();
    let others = Tensor::ones([batch, scales.tokens() - first], &masked.device());
    Tensor::cat(vec![masked.float(), others], 1)
}

/// Computes the cross-entropy of the tokens that count: the mean over those of an image, then over images.
pub fn masked_loss(logits: Tensor<3>, targets: Tensor<2, Int>, counted: Tensor<2>, label_smoothing: f64) -> Tensor<1> {
    let share = counted.clone() / counted.sum_dim(1);
    (ops::cross_entropy(logits, targets, label_smoothing) * Tensor::from_inner(share)).sum_dim(1).mean()
}

/// Cross-entropy with a masked first scale.
pub(super) struct MaskedPrediction {
    pub(super) ratio: MaskRatio,
}

impl Objective<FlexVae, FlexVar> for MaskedPrediction {
    fn loss(&self, pass: &Pass<'_, FlexVae, FlexVar>) -> Result<ObjectiveLoss> {
        let (piece, tokens) = (pass.piece, pass.tokens);
        let (scales, device) = (tokens.scales(), pass.tokenizer.device());
        let first = scales.size(0).area();
        let ratio = self.ratio.draw(&mut Rng::keyed(piece.seed, "mask ratio", piece.step, 0));
        let count = (first as f64 * ratio) as usize;
        let ranks = piece.noise("mask order").into_iter().flat_map(|mut rng| rng.permutation(first));
        let masked: Vec<bool> = ranks.map(|rank| rank < count).collect();
        let masked = Tensor::<2, Bool>::from_data(TensorData::new(masked, [tokens.batch(), first]), &device);
        let counted = counted_tokens(masked.clone(), scales);

        let codes = Tensor::from_inner(masked_input(pass.tokenizer, tokens));
        let noise = &mut piece.noise("drop path");
        let on_graph = Tensor::from_inner(masked);
        let logits = pass.model.masked_teacher_forced(pass.conditions, codes, on_graph, scales, Some(noise))?;
        let targets = tokens.sequence();
        let loss = masked_loss(logits.clone(), targets.clone(), counted.clone(), pass.label_smoothing);
        let mut of = ObjectiveLoss::new(loss, logits, targets);
        of.counted = Some(counted);
        Ok(of)
    }
}
