//! Random numbers that do not depend on the device, the batch size or the number of threads.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng};

/// Stream of random numbers that is a function of `(seed, purpose, index)` alone.
///
/// Burn's own generators differ between backends, are global to a process and can't be saved. So every draw here is
/// made on the host from a stream of its own: image `i` of seed `s` is the same image whatever batch it is in, and a
/// training run that resumes at step `n` draws what it would have drawn without the interruption.
#[derive(Debug, Clone)]
pub struct Rng(ChaCha8Rng);

impl Rng {
    /// Creates stream `index` of the given purpose and seed.
    pub fn new(seed: u64, purpose: &str, index: u64) -> Self {
        let mut rng = Self::from_key([seed, fnv1a(purpose.as_bytes()), 0, 0]);
        rng.0.set_stream(index);
        rng
    }

    /// The stream called `purpose` for one image of one training step. `image` is the index in the step's whole batch,
    /// so the draws do not depend on how the batch is divided into pieces or among devices.
    ///
    /// No stream of [`Rng::new`] is among these.
    pub fn keyed(seed: u64, purpose: &str, step: u64, image: u64) -> Self {
        let mut rng = Self::from_key([seed, fnv1a(purpose.as_bytes()), step, image]);
        rng.0.set_stream(u64::MAX);
        rng
    }

    /// The stream of a whole ChaCha key, for callers whose streams have keys of their own.
    pub fn from_key(key: [u64; 4]) -> Self {
        let mut bytes = [0; 32];
        for (field, word) in bytes.chunks_exact_mut(8).zip(key) {
            field.copy_from_slice(&word.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(bytes))
    }

    /// Draws 64 random bits.
    pub fn word(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Draws a uniform number in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        (self.word() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Draws a uniform number in `(0, 1)`, safe to take a logarithm of.
    fn uniform_open(&mut self) -> f64 {
        ((self.word() >> 11) as f64 + 0.5) * (1.0 / (1u64 << 53) as f64)
    }

    /// Draws a uniform integer in `0..bound`; 0 if `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        // The bias of the multiply-shift method is below 2^-64 * bound: far too small for any use here to notice.
        ((u128::from(self.word()) * bound as u128) >> 64) as usize
    }

    /// Draws a uniform order of `0..count` (Fisher and Yates).
    pub fn permutation(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            order.swap(last, self.below(last + 1));
        }
        order
    }

    /// Draws from the normal distribution with mean 0 and standard deviation 1 (Box-Muller).
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform_open().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Draws from the standard Gumbel distribution.
    pub fn gumbel(&mut self) -> f64 {
        -(-self.uniform_open().ln()).ln()
    }
}

/// Hashes a name to a key (FNV-1a, 64 bits).
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_reproducible_and_differ() {
        let draw = |seed, purpose, index| Rng::new(seed, purpose, index).uniform();
        assert_eq!(draw(1, "a", 0), draw(1, "a", 0), "same stream");
        let others = [draw(1, "a", 0), draw(2, "a", 0), draw(1, "b", 0), draw(1, "a", 1)];
        for (i, x) in others.iter().enumerate() {
            assert!(others[..i].iter().all(|y| x != y), "stream {i} repeats another");
        }
    }

    #[test]
    fn streams_of_new_stay_as_published_models_drew_them() {
        // The numbers are from an independent ChaCha8 with the key and stream number that `new` documents.
        let draws = [("sample", 0), ("weights", 9)].map(|(purpose, index)| Rng::new(7, purpose, index).below(1 << 32));
        assert_eq!(draws, [729_072_222, 1_413_769_232]);
    }

    #[test]
    fn keyed_streams_differ_by_every_part_of_the_key() {
        let draw = |seed, purpose, step, image| Rng::keyed(seed, purpose, step, image).uniform();
        let all = [draw(1, "a", 0, 0), draw(2, "a", 0, 0), draw(1, "b", 0, 0), draw(1, "a", 1, 0), draw(1, "a", 0, 1)];
        for (i, x) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|y| x != y), "stream {i} repeats another");
            assert_ne!(*x, Rng::new(1, "a", 0).uniform(), "stream {i} is not one of `new`");
        }
        assert_eq!(all[0], draw(1, "a", 0, 0), "same stream");
    }

    #[test]
    fn moments_are_right() {
        let mut rng = Rng::new(7, "moments", 0);
        let n = 20_000;
        let normal: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
        let mean = normal.iter().sum::<f64>() / n as f64;
        let variance = normal.iter().map(|x| x * x).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.03, "mean of the normal {mean}");
        assert!((variance - 1.0).abs() < 0.05, "variance of the normal {variance}");
        let gumbel = (0..n).map(|_| rng.gumbel()).sum::<f64>() / n as f64;
        assert!((gumbel - 0.5772).abs() < 0.04, "mean of the Gumbel {gumbel}");
        let counts = (0..n).fold([0; 3], |mut counts, _| {
            counts[rng.below(3)] += 1;
            counts
        });
        assert!(counts.iter().all(|&c| c > n / 3 - 400), "uniform integers {counts:?}");
    }
}
