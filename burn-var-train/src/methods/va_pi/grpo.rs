//! The policy loss of VA-pi: group-relative advantages, a clipped ratio, a penalty for leaving a reference model, and
//! cross-entropy of the true tokens.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Bool, Int, Tensor};
use burn_var::ops;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Logit of a token that was outside the filter of the draw.
const OUTSIDE: f64 = -1e30;

/// Weights and limits of the loss. The default is that of the authors' class-conditional script.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrpoConfig {
    /// Weight of the policy term; 0 trains by cross-entropy alone.
    pub policy: f64,
    /// Largest change of a token's probability that is rewarded, as a share of it.
    pub clip: f64,
    /// Largest advantage, in either direction.
    pub advantage_clip: f64,
    /// Standard deviation of a group's rewards below which it has no advantages: what is left of it is rounding.
    pub advantage_floor: f64,
    /// Weight of the penalty for leaving the reference model; 0 for none.
    pub kl: f64,
    /// Divisor of the logits of the policy. Cross-entropy is computed without it.
    pub temperature: f64,
    /// Weight of the cross-entropy of the true tokens.
    pub cross_entropy: f64,
}

impl Default for GrpoConfig {
    fn default() -> Self {
        Self {
            policy: 1.0,
            clip: 0.2,
            advantage_clip: 5.0,
            advantage_floor: 1e-6,
            kl: 0.0,
            temperature: 1.0,
            cross_entropy: 0.1,
        }
    }
}

impl GrpoConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        for (name, value) in [
            ("policy", self.policy),
            ("clip", self.clip),
            ("advantage_floor", self.advantage_floor),
            ("kl", self.kl),
            ("cross_entropy", self.cross_entropy),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::config(name, value, "a number of at least 0"));
            }
        }
        for (name, value) in [("advantage_clip", self.advantage_clip), ("temperature", self.temperature)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::config(name, value, "a positive number"));
            }
        }
        if self.policy + self.kl + self.cross_entropy == 0.0 {
            return Err(Error::config("policy", self.policy, "a positive weight of a term: all are 0"));
        }
        Ok(())
    }

    /// Returns true if the loss depends on samples.
    pub(super) fn needs_samples(&self) -> bool {
        self.policy > 0.0 || self.kl > 0.0
    }
}

/// Computes the advantages of samples over the others of their group: `(reward - mean) / (standard deviation + 1e-8)`, with
/// Bessel's correction. `rewards` has groups of `group` one after the other. A group whose standard deviation is below
/// `floor` gives zeros.
///
/// # Errors
/// [`Error::Config`] for groups of fewer than two, or rewards that are not whole groups.
pub fn advantages(rewards: &[f64], group: usize, floor: f64) -> Result<Vec<f64>> {
    if group < 2 || !rewards.len().is_multiple_of(group) {
        let expected = format!("at least 2, and a divisor of the {} rewards", rewards.len());
        return Err(Error::config("samples per group", group, expected));
    }
    let of = |rewards: &[f64]| -> Vec<f64> {
        let (mean, std) = mean_and_std(rewards);
        let advantage = |reward: &f64| if std < floor { 0.0 } else { (reward - mean) / (std + 1e-8) };
        rewards.iter().map(advantage).collect()
    };
    Ok(rewards.chunks(group).flat_map(of).collect())
}

/// Returns the mean of the rewards of a group, and their standard deviation with Bessel's correction.
pub(super) fn mean_and_std(rewards: &[f64]) -> (f64, f64) {
    let count = rewards.len() as f64;
    let mean = rewards.iter().sum::<f64>() / count;
    let squares = rewards.iter().map(|reward| (reward - mean).powi(2)).sum::<f64>();
    (mean, (squares / (count - 1.0)).sqrt())
}

/// Computes the log-probabilities of samples, `[batch, tokens, samples]`, from logits `[batch, tokens, vocabulary]` that all
/// samples of an image share. With a `support`, of the shape of the logits, these are probabilities among the tokens for
/// which it is true.
pub fn log_probs(
    logits: Tensor<3>,
    ids: Tensor<3, Int>,
    temperature: f64,
    support: Option<Tensor<3, Bool>>,
) -> Tensor<3> {
    let logits = logits / temperature;
    let logits = match support {
        Some(support) => logits.mask_fill(support.bool_not(), OUTSIDE),
        None => logits,
    };
    log_softmax(logits, 2).gather(2, ids)
}

/// Samples of a batch, `[batch, tokens, samples]` each.
#[derive(Debug, Clone)]
pub struct Samples {
    /// Ids.
    pub ids: Tensor<3, Int>,
    /// Log-probabilities when they were drawn.
    pub old: Tensor<3>,
    /// Log-probabilities by the reference model; needed for the penalty alone.
    pub reference: Option<Tensor<3>>,
    /// Advantages: `[batch, 1, samples]`, or one per token.
    pub advantages: Tensor<3>,
    /// Tokens that could be drawn, `[batch, tokens, vocabulary]`; all if `None`. The probabilities of old, new and
    /// reference model are among these.
    pub support: Option<Tensor<3, Bool>>,
    /// Share of each token in the loss of its sample, `[1 or batch, tokens, 1 or samples]`, the sum over tokens being 1; the
    /// same for all tokens if `None`.
    pub weights: Option<Tensor<3>>,
}

impl Samples {
    /// Returns these as constants on the autodiff device.
    #[must_use]
    pub fn on_graph(self) -> Self {
        Self {
            ids: Tensor::from_inner(self.ids),
            old: Tensor::from_inner(self.old),
            reference: self.reference.map(Tensor::from_inner),
            advantages: Tensor::from_inner(self.advantages),
            support: self.support.map(Tensor::from_inner),
            weights: self.weights.map(Tensor::from_inner),
        }
    }
}

/// The loss of a batch and its parts.
#[derive(Debug)]
pub struct GrpoLoss {
    /// Policy term plus weighted cross-entropy.
    pub total: Tensor<1>,
    /// Weighted policy term, the weighted penalty included.
    pub policy: Tensor<1>,
    /// Cross-entropy of the true tokens; 0, and not computed, without a weight.
    pub cross_entropy: Tensor<1>,
    /// Log-probabilities of the samples, `[batch, tokens, samples]`.
    pub new: Tensor<3>,
    /// Probabilities of the samples over those when they were drawn.
    pub ratio: Tensor<3>,
    /// Penalty of each token, `exp(d) - d - 1` with the difference `d` of the reference's log-probability and the model's;
    /// `None` without a reference.
    pub kl: Option<Tensor<3>>,
}

impl GrpoLoss {
    /// Returns the share of tokens whose ratio is beyond the limit.
    pub fn clip_fraction(&self, clip: f64) -> Tensor<1> {
        (self.ratio.clone() - 1.0).abs().greater_elem(clip).float().mean()
    }
}

/// Computes the loss: the weighted mean over tokens, and the mean over samples, of `max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip))`, plus the
/// weighted penalty, plus the weighted cross-entropy of the true tokens `truth`, `[batch, tokens]`.
///
/// Logits are `[batch, tokens, vocabulary]`: all samples of an image have the same input, so that one pass serves them all.
/// Cross-entropy is computed from `dropout`, the logits of a pass with dropout, if there are any. Probabilities of samples are
/// among the same tokens here and where they were drawn.
///
/// # Errors
/// [`Error::Config`] naming `kl` if there is a weight but no reference.
pub fn grpo_loss(
    config: &GrpoConfig,
    logits: Tensor<3>,
    dropout: Option<Tensor<3>>,
    samples: Samples,
    truth: Tensor<2, Int>,
) -> Result<GrpoLoss> {
    let new = log_probs(logits.clone(), samples.ids, config.temperature, samples.support);
    let ratio = (new.clone() - samples.old).exp();
    let advantages = samples.advantages.clamp(-config.advantage_clip, config.advantage_clip);
    let free = ratio.clone() * advantages.clone();
    let clipped = ratio.clone().clamp(1.0 - config.clip, 1.0 + config.clip) * advantages;
    let mut per_token = free.min_pair(clipped) * -config.policy;
    let kl = samples.reference.map(|reference| {
        let apart = reference - new.clone();
        apart.clone().exp() - apart - 1.0
    });
    match &kl {
        Some(kl) if config.kl > 0.0 => per_token = per_token + kl.clone() * config.kl,
        None if config.kl > 0.0 => return Err(Error::config("kl", config.kl, "0 without a reference model")),
        _ => {}
    }
    let policy = match samples.weights {
        Some(weights) => (per_token * weights).sum_dim(1).mean(),
        None => per_token.mean(),
    };
    let cross_entropy = match config.cross_entropy > 0.0 {
        true => ops::cross_entropy(dropout.unwrap_or(logits), truth, 0.0).mean(),
        false => policy.zeros_like(),
    };
    // Without a policy term, samples are drawn for metrics alone and leave no trace in the gradient.
    let weighted = cross_entropy.clone() * config.cross_entropy;
    let total = if config.needs_samples() { policy.clone() + weighted } else { weighted };
    Ok(GrpoLoss { total, policy, cross_entropy, new, ratio, kl })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advantages_are_relative_to_the_group() {
        let found = advantages(&[1.0, 3.0, -5.0, -5.0], 2, 1e-6).unwrap();
        let half = 0.5f64.sqrt();
        assert!((found[0] + half).abs() < 1e-6 && (found[1] - half).abs() < 1e-6, "{found:?}");
        assert_eq!(found[2..], [0.0, 0.0], "no spread, no advantage");
        let rounding = advantages(&[1.0, 1.0 + 1e-9], 2, 1e-6).unwrap();
        assert_eq!(rounding, [0.0, 0.0], "rounding is not a reward");
        let small = advantages(&[1.0, 1.1], 2, 0.1).unwrap();
        assert_eq!(small, [0.0, 0.0], "the floor is a setting");
        assert!(advantages(&[1.0, 2.0, 3.0], 2, 0.0).unwrap_err().to_string().contains("divisor of the 3 rewards"));
        assert!(advantages(&[1.0], 1, 0.0).is_err(), "a group of one");
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        GrpoConfig::default().validate().unwrap();
        for (config, field) in [
            (GrpoConfig { clip: -0.1, ..Default::default() }, "clip"),
            (GrpoConfig { advantage_clip: 0.0, ..Default::default() }, "advantage_clip"),
            (GrpoConfig { advantage_floor: -1.0, ..Default::default() }, "advantage_floor"),
            (GrpoConfig { temperature: 0.0, ..Default::default() }, "temperature"),
            (GrpoConfig { kl: f64::NAN, ..Default::default() }, "kl"),
        ] {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
