//! Visual prefix guidance (arXiv 2605.30317).

use burn::tensor::{Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::{BatchInfo, Branches, Guidance, Logits, Schedule};
use crate::ops::extrapolate;
use crate::rng::Rng;
use crate::scales::ScaleAt;
use crate::{Error, Result};

/// Settings of [`Vpg`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VpgConfig {
    /// Strengths, λ in the paper.
    pub schedule: Schedule,
    /// Fraction of a scale's positions that are corrupted, `n_p` in the paper.
    #[serde(default = "default_share")]
    pub share: f64,
}

fn default_share() -> f64 {
    0.1
}

impl VpgConfig {
    /// Returns the paper's guidance: a constant strength (3 for VAR-d16, 1.3 for d30), a tenth of the prefix corrupted.
    pub fn paper(strength: f64) -> Self {
        Self { schedule: Schedule::Constant(strength), share: default_share() }
    }
}

/// Visual prefix guidance: `l + λ (l - l~)` with the model's logits `l~` for a corrupted prefix, which strengthens the
/// influence of the generated prefix. It follows classifier-free guidance in the chain, which guides both `l` and `l~`
/// first.
///
/// The prefix is corrupted at the input of the first block: each position, with its position embedding, is replaced
/// with probability `n_p` by another position of the same scale, drawn independently at every scale. The corrupted
/// branch has its own cache, so it doubles the transformer's work.
#[derive(Debug, Clone)]
pub struct Vpg {
    config: VpgConfig,
    /// Rows of hidden states that replace those of each scale, of all images with their condition and once more without;
    /// `None` for scales of one token. Uploaded before the first scale, since a GPU waits for each upload.
    rows: Vec<Option<Tensor<1, Int>>>,
}

impl Vpg {
    /// Creates guidance with the given settings.
    pub fn new(config: VpgConfig) -> Self {
        Self { config, rows: Vec::new() }
    }

    /// Draws the source position of each of `tokens` positions.
    fn places(&self, tokens: usize, rng: &mut Rng) -> Vec<usize> {
        let place = |own: usize| match rng.uniform() < self.config.share {
            true => (own + 1 + rng.below(tokens - 1)) % tokens,
            false => own,
        };
        (0..tokens).map(place).collect()
    }

    /// Draws the rows of one scale; see [`Vpg::rows`].
    fn draw(&self, batch: &BatchInfo<'_>, at: ScaleAt<'_>) -> Option<Tensor<1, Int>> {
        let tokens = at.size().area();
        if at.is_first() || tokens == 1 {
            return None;
        }
        let stream = |image: usize| (batch.first + image as u64) * at.scales().len() as u64 + at.k() as u64;
        let places =
            (0..batch.images).map(|image| self.places(tokens, &mut Rng::new(batch.seed, "corrupt", stream(image))));
        let rows = places
            .enumerate()
            .flat_map(|(image, places)| places.into_iter().map(move |place| (image * tokens + place) as i64));
        let mut rows: Vec<i64> = rows.collect();
        // Both branches of an image share one prefix.
        let count = rows.len();
        rows.extend_from_within(..);
        rows[count..].iter_mut().for_each(|row| *row += count as i64);
        Some(Tensor::from_data(TensorData::new(rows, [2 * count]), batch.device))
    }
}

impl Guidance for Vpg {
    fn name(&self) -> &'static str {
        "vpg"
    }

    fn begin(&mut self, batch: &BatchInfo<'_>) -> Result<()> {
        self.config.schedule.check(self.name(), batch.scales)?;
        let share = self.config.share;
        if !(share > 0.0 && share <= 1.0) {
            return Err(Error::config("vpg share", share, "a fraction above 0, up to 1"));
        }
        self.rows = batch.scales.iter().map(|at| self.draw(batch, at)).collect();
        Ok(())
    }

    fn branches(&self, at: ScaleAt<'_>) -> Branches {
        // The first scale has no prefix.
        Branches { corrupted: !at.is_first() && self.config.schedule.at(at) != 0.0, ..Branches::default() }
    }

    fn corrupt(&mut self, at: ScaleAt<'_>, hidden: Tensor<3>) -> Result<Tensor<3>> {
        let [sequences, tokens, width] = hidden.dims();
        let Some(rows) = self.rows.get(at.k()).cloned().flatten() else { return Ok(hidden) };
        let rows = rows.narrow(0, 0, sequences * tokens);
        let corrupted = hidden.reshape([sequences * tokens, width]).select(0, rows);
        Ok(corrupted.reshape([sequences, tokens, width]))
    }

    fn logits(&mut self, at: ScaleAt<'_>, logits: Logits) -> Result<Logits> {
        let cond = match &logits.corrupted {
            Some(corrupted) if self.branches(at).corrupted => {
                extrapolate(logits.cond, corrupted.cond.clone(), self.config.schedule.at(at))
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
    use crate::Scales;

    #[test]
    fn positions_stay_within_a_scale_and_depend_on_the_image_alone() {
        let scales = Scales::square(&[1, 5]).unwrap();
        let device = Device::default();
        let mut vpg = Vpg::new(VpgConfig { share: 0.4, ..VpgConfig::paper(1.0) });
        let hidden = Tensor::<1, Int>::arange(0..100, &device).float().reshape([4, 25, 1]);
        let mut corrupt = |images: usize, first: u64, hidden: Tensor<3>| -> Vec<f32> {
            vpg.begin(&BatchInfo { scales: &scales, images, seed: 7, first, device: &device }).unwrap();
            vpg.corrupt(scales.at(1), hidden).unwrap().into_data().try_into_vec().unwrap()
        };
        // Two images, each with a class and without.
        let found = corrupt(2, 3, hidden.clone());
        let moved = |sequence: usize| -> Vec<(usize, f32)> {
            let part = found[sequence * 25..][..25].iter().enumerate();
            part.map(|(i, value)| (i, value - (sequence * 25) as f32)).filter(|(i, v)| *v != *i as f32).collect()
        };
        for sequence in 0..4 {
            let moved = moved(sequence);
            assert!((3..=20).contains(&moved.len()), "about 10 of 25, {moved:?}");
            assert!(moved.iter().all(|(_, from)| (0.0..25.0).contains(from)), "within the sequence, {moved:?}");
        }
        assert_eq!(moved(0), moved(2), "both branches of an image");
        assert_ne!(moved(0), moved(1), "two images");
        assert_eq!(corrupt(1, 4, hidden.clone().narrow(0, 1, 1)), found[25..50], "alone or in a batch");
    }

    #[test]
    fn an_invalid_share_is_an_error() {
        let scales = Scales::square(&[1, 2]).unwrap();
        for share in [0.0, -0.1, 1.1, f64::NAN] {
            let mut vpg = Vpg::new(VpgConfig { share, ..VpgConfig::paper(1.0) });
            let info = BatchInfo { scales: &scales, images: 1, seed: 0, first: 0, device: &Device::default() };
            let error = vpg.begin(&info).unwrap_err().to_string();
            assert!(error.contains("vpg share"), "{error}");
        }
    }
}
