//! Visual prefix guidance (arXiv 2605.30317).

use burn::tensor::{Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::{Entering, Guidance, Logits, Schedule};
use crate::rng::Rng;
use crate::{Error, Request, Result, Scales};

/// How [`Vpg`] guides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VpgConfig {
    /// The strengths, λ in the paper.
    pub schedule: Schedule,
    /// The share of a scale's positions that are corrupted, `n_p` in the paper.
    #[serde(default = "default_share")]
    pub share: f64,
}

fn default_share() -> f64 {
    0.1
}

impl VpgConfig {
    /// The paper's guidance: the same strength at every scale (3 for VAR-d16, 1.3 for d30), a tenth of the prefix
    /// corrupted.
    pub fn paper(strength: f64) -> Self {
        Self { schedule: Schedule::Constant(strength), share: default_share() }
    }
}

/// `l + λ (l - l~)` with the logits `l~` that the model has for a corrupted prefix: what the generated prefix makes
/// likely is made more so. After classifier-free guidance in the chain, which guides both first.
///
/// The prefix is corrupted as it enters the first block: each position, with its embedding of place, gives way with
/// probability `n_p` to that of another position of the same scale, drawn anew at every scale. The corrupted branch has
/// a cache of its own, so it costs as much as the rest of the transformer's work.
#[derive(Debug, Clone)]
pub struct Vpg {
    config: VpgConfig,
}

impl Vpg {
    /// Guidance of one chain.
    pub fn new(config: VpgConfig) -> Self {
        Self { config }
    }

    /// For each of `tokens` positions the one that takes its place.
    fn places(&self, tokens: usize, rng: &mut Rng) -> Vec<usize> {
        let place = |own: usize| match rng.uniform() < self.config.share {
            true => (own + 1 + rng.below(tokens - 1)) % tokens,
            false => own,
        };
        (0..tokens).map(place).collect()
    }
}

impl Guidance for Vpg {
    fn name(&self) -> &'static str {
        "vpg"
    }

    fn check(&self, scales: &Scales) -> Result<()> {
        self.config.schedule.check(self.name(), scales)?;
        match self.config.share {
            share if share > 0.0 && share <= 1.0 => Ok(()),
            share => Err(Error::config("vpg share", share, "a share above 0, up to 1")),
        }
    }

    fn needs_corrupted(&self, k: usize, scales: &Scales) -> bool {
        // Nothing comes before the first scale.
        k > 0 && self.config.schedule.at(k, scales) != 0.0
    }

    fn corrupt(&mut self, scale: Entering<'_>, request: &Request, hidden: Tensor<3>) -> Result<Tensor<3>> {
        let [sequences, tokens, width] = hidden.dims();
        if scale.k == 0 || tokens == 1 {
            return Ok(hidden);
        }
        let pictures = request.labels.len();
        let stream = |picture: usize| (request.first + picture as u64) * scale.scales.len() as u64 + scale.k as u64;
        let places: Vec<Vec<usize>> = (0..pictures)
            .map(|picture| self.places(tokens, &mut Rng::new(request.seed, "corrupt", stream(picture))))
            .collect();
        // Both branches of a picture have the same prefix.
        let rows = (0..sequences).flat_map(|sequence| {
            places[sequence % pictures].iter().map(move |place| (sequence * tokens + place) as i64)
        });
        let rows = TensorData::new(rows.collect::<Vec<i64>>(), [sequences * tokens]);
        let rows = Tensor::<1, Int>::from_data(rows, &hidden.device());
        let corrupted = hidden.reshape([sequences * tokens, width]).select(0, rows);
        Ok(corrupted.reshape([sequences, tokens, width]))
    }

    fn steer(&mut self, k: usize, scales: &Scales, logits: Logits) -> Result<Logits> {
        let strength = self.config.schedule.at(k, scales);
        let cond = match &logits.corrupted {
            Some(corrupted) if self.needs_corrupted(k, scales) => {
                logits.cond * (1.0 + strength) - corrupted.cond.clone() * strength
            }
            _ => logits.cond,
        };
        Ok(Logits { cond, ..logits })
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn places_move_within_a_scale_and_are_a_function_of_the_picture() {
        let scales = Scales::square(&[1, 5]).unwrap();
        let device = Device::default();
        let mut vpg = Vpg::new(VpgConfig { share: 0.4, ..VpgConfig::paper(1.0) });
        let hidden = Tensor::<1, Int>::arange(0..100, &device).float().reshape([4, 25, 1]);
        let entering = Entering { k: 1, scales: &scales, previous: None };
        let mut corrupt = |labels: &[usize], first: u64, hidden: Tensor<3>| -> Vec<f32> {
            let request = Request { first, ..Request::new(labels, 7) };
            vpg.corrupt(entering, &request, hidden).unwrap().into_data().try_into_vec().unwrap()
        };
        // Two pictures, each with a class and without.
        let found = corrupt(&[0, 0], 3, hidden.clone());
        let moved = |sequence: usize| -> Vec<(usize, f32)> {
            let part = found[sequence * 25..][..25].iter().enumerate();
            part.map(|(i, value)| (i, value - (sequence * 25) as f32)).filter(|(i, v)| *v != *i as f32).collect()
        };
        for sequence in 0..4 {
            let moved = moved(sequence);
            assert!((3..=20).contains(&moved.len()), "about 10 of 25, {moved:?}");
            assert!(moved.iter().all(|(_, from)| (0.0..25.0).contains(from)), "within the sequence, {moved:?}");
        }
        assert_eq!(moved(0), moved(2), "both branches of a picture");
        assert_ne!(moved(0), moved(1), "two pictures");
        assert_eq!(corrupt(&[0], 4, hidden.clone().narrow(0, 1, 1)), found[25..50], "alone or in a batch");
    }

    #[test]
    fn a_share_that_is_none_is_refused() {
        let scales = Scales::square(&[1, 2]).unwrap();
        for share in [0.0, -0.1, 1.1, f64::NAN] {
            let error = Vpg::new(VpgConfig { share, ..VpgConfig::paper(1.0) }).check(&scales).unwrap_err().to_string();
            assert!(error.contains("vpg share"), "{error}");
        }
    }
}
