//! Filters and draws tokens.
//!
//! A token is the entry of the largest sum of logit and Gumbel noise, which follows the softmax of the logits. Unlike the
//! inverse of a cumulative sum, a small difference of one logit, as between devices, does not move the draw of all others
//! behind it. The noise is a function of seed, image, scale, token and entry: image `i` of seed `s` is the same in every
//! batch.
//!
//! [`Sampler::draw`] draws on the host. [`DeviceDraw`] does the same on a GPU, which keeps logits and tokens there.

mod device;
mod noise;

use burn::tensor::{Int, Tensor, TensorData};
use noise::{Use, gumbel, gumbel_bound};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use self::device::DeviceDraw;
pub use self::noise::Noise;
use crate::ops::exact_matmul;
use crate::{Error, MapSize, Result};

/// Settings of the filter and the draw of tokens.
///
/// ```
/// use burn_var::sampling::Sampler;
///
/// # fn main() -> burn_var::Result<()> {
/// let mut logits = [3.0, 1.0, 2.0];
/// Sampler { top_k: 2, top_p: 0.0, ..Sampler::default() }.filter(&mut logits)?;
/// assert_eq!(logits, [3.0, f32::NEG_INFINITY, 2.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampler {
    /// Number of largest logits to keep, with all that tie with the smallest of them; 0 keeps all, 1 is greedy.
    pub top_k: usize,
    /// Minimum probability mass to keep: the least likely tokens are dropped while their total is at most `1 - top_p`;
    /// 0 keeps all. See [`TopPRule`].
    pub top_p: f64,
    /// Side from which top-p counts.
    #[serde(default, skip_serializing_if = "TopPRule::is_default")]
    pub top_p_rule: TopPRule,
    /// Divisor of the logits, applied first; 1 in the papers' code, which has no temperature.
    pub temperature: f64,
    /// Paints a Gumbel-softmax mixture of codes instead of one code (VAR's `more_smooth`). For looks, not for metrics.
    pub more_smooth: bool,
    /// Draws greedily at the scales at which the released code of FlexVAR does: squares of more than 16 tokens a side or of
    /// a side that is in none of its schedules (7, 9, 11, 12, 14, 15), and maps that are not square.
    #[serde(default, skip_serializing_if = "is_false")]
    pub greedy_unlisted: bool,
}

/// Side from which top-p counts. Both rules keep the same tokens, except where sums meet the limit exactly and among tokens
/// of equal probability.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TopPRule {
    /// VAR's: drops from the least likely token up, while the total of those dropped is at most `1 - top_p`. Of equally
    /// likely tokens, the first are dropped first.
    #[default]
    Ascending,
    /// LlamaGen's: keeps from the most likely token down, until the total of those kept exceeds `top_p`. Of equally likely
    /// tokens, the first are kept. 1 keeps all.
    Descending,
}

impl TopPRule {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn is_false(flag: &bool) -> bool {
    !flag
}

impl Default for Sampler {
    /// Returns the evaluation setting of the VAR paper: top-k 900, top-p 0.96.
    fn default() -> Self {
        Self {
            top_k: 900,
            top_p: 0.96,
            top_p_rule: TopPRule::Ascending,
            temperature: 1.0,
            more_smooth: false,
            greedy_unlisted: false,
        }
    }
}

/// Tokens drawn at one scale.
#[derive(Debug)]
pub struct DrawnTokens {
    /// Ids, `[batch, tokens]`.
    pub ids: Tensor<2, Int>,
    /// Mixture of codes with `more_smooth`, `[batch, tokens, z_channels]`.
    pub codes: Option<Tensor<3>>,
}

impl Sampler {
    /// Returns greedy settings, which always select the most likely token.
    pub fn greedy() -> Self {
        Self { top_k: 1, top_p: 0.0, ..Self::default() }
    }

    /// Returns the settings for a scale: greedy ones where [`Sampler::greedy_unlisted`] says so.
    #[must_use]
    pub fn at_size(self, size: MapSize) -> Self {
        /// Sides of the scales that FlexVAR's released code samples.
        const SAMPLED: [usize; 10] = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16];
        match self.greedy_unlisted && !(size.height == size.width && SAMPLED.contains(&size.height)) {
            true => Self { more_smooth: self.more_smooth, ..Self::greedy() },
            false => self,
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.top_p) {
            return Err(Error::config("top_p", self.top_p, "a fraction in 0..=1 (0 is off)"));
        }
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return Err(Error::config("temperature", self.temperature, "a positive number"));
        }
        Ok(())
    }

    /// Draws a scale's tokens from host logits, row-major `[batch, tokens, vocab]`, with the noise of each image.
    ///
    /// `ratio` is the progress through the schedule, [`crate::Scales::ratio`], and `codebook` the `[vocab, z_channels]`
    /// codes; only `more_smooth` uses them.
    ///
    /// # Errors
    /// [`Error::Shape`] if the sizes do not fit each other, [`Error::NonFinite`] if a logit is not a number.
    pub fn draw(
        &self,
        mut values: Vec<f32>,
        [batch, tokens, vocab]: [usize; 3],
        noise: &[Noise],
        ratio: f64,
        codebook: &Tensor<2>,
    ) -> Result<DrawnTokens> {
        let _span = tracing::trace_span!("part", op = "Sampler", pass = "forward").entered();
        if batch != noise.len() || values.len() != batch * tokens * vocab {
            let expected = format!("[{}, tokens, vocab], {} values in all", noise.len(), values.len());
            return Err(Error::shape("logits", expected, [batch, tokens, vocab]));
        }
        let ids = values.par_chunks_mut(vocab).enumerate().map(|(i, row)| {
            self.filter(row)?;
            Ok(draw(row, noise[i / tokens], i % tokens) as i64)
        });
        let ids = ids.collect::<Result<Vec<_>>>()?;
        let ids = Tensor::from_data(TensorData::new(ids, [batch, tokens]), &codebook.device());
        let codes = self.more_smooth.then(|| mixture(values, [batch, tokens, vocab], noise, ratio, codebook));
        Ok(DrawnTokens { ids, codes })
    }

    /// Sets the logits that top-k and top-p drop to minus infinity, after dividing by the temperature.
    ///
    /// Equal to `sample_with_top_k_top_p_` of VAR (golden case `sampling`): entries that tie with the k-th largest
    /// stay; top-p drops from the smallest, in the order of a stable sort, while the running sum is at most
    /// `1 - top_p`, and always keeps the largest. With [`TopPRule::Descending`], equal to `top_k_top_p_filtering` of
    /// LlamaGen.
    ///
    /// # Errors
    /// [`Error::NonFinite`] if a logit is not a number.
    pub fn filter(&self, row: &mut [f32]) -> Result<()> {
        if let Some(position) = row.iter().position(|logit| logit.is_nan()) {
            return Err(not_a_number(position));
        }
        if self.temperature != 1.0 {
            row.iter_mut().for_each(|logit| *logit = (f64::from(*logit) / self.temperature) as f32);
        }
        if self.top_k > 0 && self.top_k < row.len() {
            let mut sorted = row.to_vec();
            let (_, &mut kth, _) = sorted.select_nth_unstable_by(self.top_k - 1, |a, b| b.total_cmp(a));
            row.iter_mut().filter(|logit| **logit < kth).for_each(|logit| *logit = f32::NEG_INFINITY);
        }
        match self.top_p_rule {
            _ if self.top_p == 0.0 => {}
            TopPRule::Ascending => self.drop_least_likely(row),
            TopPRule::Descending if self.top_p < 1.0 => self.keep_most_likely(row),
            TopPRule::Descending => {}
        }
        Ok(())
    }

    /// Applies top-p by [`TopPRule::Ascending`].
    fn drop_least_likely(&self, row: &mut [f32]) {
        let probabilities = softmax(row);
        // Logit and index packed into one number, which sorts faster than indices by their logits.
        let kept = row.iter().enumerate().filter(|(_, logit)| **logit > f32::NEG_INFINITY);
        let mut order: Vec<u64> = kept.map(|(i, &logit)| u64::from(ascending(logit)) << 32 | i as u64).collect();
        order.sort_unstable();
        let mut sum = 0.0;
        // The largest is last in the order, and always stays.
        let (_, smaller) = order.split_last().unwrap_or((&0, &[]));
        for &entry in smaller {
            let i = (entry & u64::from(u32::MAX)) as usize;
            sum += probabilities[i];
            if sum > 1.0 - self.top_p {
                break;
            }
            row[i] = f32::NEG_INFINITY;
        }
    }

    /// Applies top-p by [`TopPRule::Descending`].
    fn keep_most_likely(&self, row: &mut [f32]) {
        let probabilities = softmax(row);
        let kept = row.iter().enumerate().filter(|(_, logit)| **logit > f32::NEG_INFINITY);
        let mut order: Vec<u64> = kept.map(|(i, &logit)| u64::from(!ascending(logit)) << 32 | i as u64).collect();
        order.sort_unstable();
        let indices = order.into_iter().map(|entry| (entry & u64::from(u32::MAX)) as usize);
        let mut sum = 0.0;
        for (rank, i) in indices.enumerate() {
            // The first that exceeds the limit stays.
            if rank > 0 && sum > self.top_p {
                row[i] = f32::NEG_INFINITY;
            }
            sum += probabilities[i];
        }
    }
}

/// Returns the error for an entry of the vocabulary whose logit is not a number.
fn not_a_number(position: usize) -> Error {
    Error::NonFinite {
        what: format!("the logit of token {position}"),
        found: f64::NAN,
        hint: "the weights or a guidance setting produce numbers out of range",
    }
}

/// Maps a number to an integer that sorts as [`f32::total_cmp`] does.
fn ascending(x: f32) -> u32 {
    let bits = x.to_bits();
    if x.is_sign_negative() { !bits } else { bits | 1 << 31 }
}

/// Computes the softmax of a row in f64; entries of minus infinity get 0.
pub fn softmax(row: &[f32]) -> Vec<f64> {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut weights: Vec<f64> = row.iter().map(|&logit| f64::from(logit - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|weight| *weight /= sum);
    weights
}

/// Draws a token: returns the index of the largest sum of logit and Gumbel noise. Entries of minus infinity are never
/// drawn.
fn draw(row: &[f32], noise: Noise, token: usize) -> usize {
    let (mut largest, mut drawn) = (f64::NEG_INFINITY, 0);
    for (block, logits) in row.chunks(4).enumerate() {
        if logits.iter().all(|logit| *logit == f32::NEG_INFINITY) {
            continue;
        }
        for (i, (&logit, word)) in logits.iter().zip(noise.words(block, token, Use::Token)).enumerate() {
            let logit = f64::from(logit);
            // The logarithms cost more than all the rest, and hardly any entry needs them.
            if logit + gumbel_bound(word) <= largest {
                continue;
            }
            let sum = logit + gumbel(word);
            if sum > largest {
                (largest, drawn) = (sum, 4 * block + i);
            }
        }
    }
    drawn
}

/// Returns the temperature of [`mixture`], which falls from scale to scale.
fn mixture_temperature(ratio: f64) -> f64 {
    (0.27 * (1.0 - 0.95 * ratio)).max(0.005)
}

/// Computes `softmax(((1 + ratio) * logits + Gumbel noise) / tau) @ codebook`, with a temperature `tau` that falls from
/// scale to scale. As in the original, the logits are those after top-k and top-p.
fn mixture(
    mut logits: Vec<f32>,
    [batch, tokens, vocab]: [usize; 3],
    noise: &[Noise],
    ratio: f64,
    codebook: &Tensor<2>,
) -> Tensor<3> {
    let tau = mixture_temperature(ratio);
    for (i, row) in logits.chunks_mut(vocab).enumerate() {
        for (block, logits) in row.chunks_mut(4).enumerate() {
            for (logit, word) in logits.iter_mut().zip(noise[i / tokens].words(block, i % tokens, Use::Mixture)) {
                *logit = ((f64::from(*logit) * (1.0 + ratio) + gumbel(word)) / tau) as f32;
            }
        }
    }
    let logits = Tensor::<2>::from_data(TensorData::new(logits, [batch * tokens, vocab]), &codebook.device());
    let channels = codebook.dims()[1];
    let shares = burn::tensor::activation::softmax(logits, 1);
    exact_matmul(shares, codebook.clone()).reshape([batch, tokens, channels])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn ties_with_the_kth_survive() {
        let mut row = [3.0, 2.0, 1.0, 1.0, 0.0];
        Sampler { top_k: 3, ..Sampler::greedy() }.filter(&mut row).unwrap();
        assert_eq!(row, [3.0, 2.0, 1.0, 1.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn top_p_counts_from_either_side() {
        let filtered = |top_p_rule, top_p, row: [f32; 4]| {
            let mut row = row.map(f32::ln);
            Sampler { top_k: 0, top_p, top_p_rule, ..Sampler::default() }.filter(&mut row).unwrap();
            row.map(f32::is_finite)
        };
        let row = [0.25, 0.25, 0.25, 0.25];
        assert_eq!(filtered(TopPRule::Ascending, 0.6, row), [false, true, true, true], "drops the first of equal ones");
        assert_eq!(filtered(TopPRule::Descending, 0.6, row), [true, true, true, false], "drops the last");
        let row = [0.1, 0.5, 0.15, 0.25];
        assert_eq!(filtered(TopPRule::Descending, 0.45, row), [false, true, false, false], "one is enough");
        assert_eq!(filtered(TopPRule::Descending, 0.6, row), [false, true, false, true], "the one that exceeds stays");
        assert_eq!(filtered(TopPRule::Descending, 1.0, row), [true; 4]);
        assert_eq!(filtered(TopPRule::Descending, 0.0, row), [true; 4]);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let row = [0.5f32.ln(), f32::NEG_INFINITY, 0.3f32.ln(), 0.0001f32.ln(), 0.1999f32.ln()];
        let noise = Noise::new(&mut Rng::new(3, "draws", 0));
        let mut counts = [0i32; 5];
        (0..10_000).for_each(|token| counts[draw(&row, noise, token)] += 1);
        assert_eq!(counts[1], 0, "a dropped entry was drawn");
        for (i, expected, spread) in [(0, 5000, 200), (2, 3000, 200), (3, 1, 10), (4, 1999, 200)] {
            assert!((counts[i] - expected).abs() < spread, "entry {i} drawn {} times of {expected}", counts[i]);
        }
    }

    #[test]
    fn an_image_draws_the_same_in_every_batch() {
        let values: Vec<f32> = (0..2 * 3 * 9).map(|i| (i * 37 % 23) as f32 / 8.0).collect();
        let noise = [0, 1].map(|image| Noise::new(&mut Rng::new(3, "sample", image)).at_scale(2));
        let codebook = Tensor::zeros([9, 2], &Default::default());
        let sampler = Sampler { top_k: 0, top_p: 0.0, ..Sampler::default() };
        let drawn = |values: &[f32], noise: &[Noise]| {
            let shape = [noise.len(), 3, 9];
            sampler.draw(values.to_vec(), shape, noise, 0.0, &codebook).unwrap().ids.try_into_vec_as::<i64>()
        };
        let both = drawn(&values, &noise).unwrap();
        assert_eq!(both[..3], drawn(&values[..27], &noise[..1]).unwrap());
        assert_eq!(both[3..], drawn(&values[27..], &noise[1..]).unwrap());
    }

    #[test]
    fn a_small_difference_of_the_logits_moves_few_draws() {
        let mut rng = Rng::new(5, "logits", 0);
        let noise = Noise::new(&mut rng);
        let moved = (0..4000).filter(|&token| {
            let row: Vec<f32> = (0..1024).map(|_| (2.0 * rng.normal()) as f32).collect();
            let near: Vec<f32> = row.iter().map(|logit| logit + 1e-3 * rng.normal() as f32).collect();
            draw(&row, noise, token) != draw(&near, noise, token)
        });
        let moved = moved.count();
        assert!(moved <= 10, "{moved} of 4000 draws moved; the inverse of a cumulative sum moves about 200");
    }

    #[test]
    fn more_smooth_mixes_codes_by_a_gumbel_softmax() {
        // Exact in f32, as are the logits and the codes.
        let logits: Vec<f64> = (0..2 * 3 * 6).map(|i| f64::from(i * 37 % 23) / 8.0 - 1.0).collect();
        let codes: Vec<f64> = (0..6 * 2).map(|i| f64::from(i * i % 7) - 2.5).collect();
        let single = |values: &[f64]| values.iter().map(|x| *x as f32).collect::<Vec<_>>();
        let codebook = Tensor::from_data(TensorData::new(single(&codes), [6, 2]), &Default::default());
        let noise = [0, 1].map(|image| Noise::new(&mut Rng::new(3, "sample", image)));
        for (ratio, tau) in [(0.0, 0.27), (0.5, 0.14175), (1.0, 0.0135)] {
            let sampler = Sampler { top_k: 3, top_p: 0.0, temperature: 0.8, more_smooth: true, ..Sampler::default() };
            let drawn = sampler.draw(single(&logits), [2, 3, 6], &noise, ratio, &codebook).unwrap();
            let found = drawn.codes.unwrap().into_data().try_to_vec::<f32>().unwrap();
            for (i, row) in logits.chunks(6).enumerate() {
                let mut sorted = row.to_vec();
                sorted.sort_by(|a, b| b.total_cmp(a));
                let exponent = |entry: usize| {
                    let noise = gumbel(noise[i / 3].words(entry / 4, i % 3, Use::Mixture)[entry % 4]);
                    let kept = row[entry] >= sorted[2];
                    if kept { ((1.0 + ratio) * row[entry] / 0.8 + noise) / tau } else { f64::NEG_INFINITY }
                };
                let exponents: Vec<f64> = (0..6).map(exponent).collect();
                let largest = exponents.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = exponents.iter().map(|exponent| (exponent - largest).exp()).collect();
                for channel in 0..2 {
                    let mixed = (0..6).map(|entry| weights[entry] * codes[entry * 2 + channel]).sum::<f64>();
                    let expected = mixed / weights.iter().sum::<f64>();
                    let found = f64::from(found[i * 2 + channel]);
                    assert!((found - expected).abs() < 1e-3 * (1.0 + expected.abs()), "{found} instead of {expected}");
                }
            }
            let plain = Sampler { more_smooth: false, ..sampler };
            let plain = plain.draw(single(&logits), [2, 3, 6], &noise, ratio, &codebook).unwrap();
            assert!(plain.codes.is_none(), "a mixture only if asked for");
            assert_eq!(drawn.ids.into_data(), plain.ids.into_data(), "the same tokens");
        }
    }

    #[test]
    fn nan_is_an_error() {
        let error = Sampler::default().filter(&mut [0.0, f32::NAN]).unwrap_err();
        assert!(error.to_string().contains("token 1"), "{error}");
    }

    #[test]
    fn invalid_settings_are_errors() {
        assert!(Sampler { top_p: 1.5, ..Sampler::default() }.validate().is_err());
        assert!(Sampler { temperature: 0.0, ..Sampler::default() }.validate().is_err());
    }
}
