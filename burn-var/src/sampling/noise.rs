use crate::rng::Rng;

/// Noise of the draw of one image's tokens: a number for every scale, token and entry of the vocabulary, each computed by
/// itself.
///
/// The generator is Philox 4x32 with 10 rounds (Salmon and others, "Parallel Random Numbers: As Easy as 1, 2, 3"), which
/// works in integers of 32 bits alone. So a number is the same on every device, whatever else is computed there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noise {
    key: [u32; 2],
    scale: u32,
}

/// Use of the noise: different uses of one token draw different numbers.
#[derive(Debug, Clone, Copy)]
pub(super) enum Use {
    /// The draw of the token.
    Token,
    /// The mixture of codes, [`super::Sampler::more_smooth`].
    Mixture,
}

impl Noise {
    /// Draws the key of an image's noise from one of its streams. The noise is that of the first scale.
    pub fn new(rng: &mut Rng) -> Self {
        let key = rng.word();
        Self { key: [key as u32, (key >> 32) as u32], scale: 0 }
    }

    /// Returns the same image's noise of scale `k`.
    #[must_use]
    pub fn at_scale(self, k: usize) -> Self {
        Self { scale: k as u32, ..self }
    }

    /// Returns the key, the same for all scales of an image.
    pub(super) fn key(self) -> [u32; 2] {
        self.key
    }

    /// Returns the words of entries `4 * block` to `4 * block + 3` of a token.
    pub(super) fn words(self, block: usize, token: usize, use_: Use) -> [u32; 4] {
        philox([block as u32, token as u32, self.scale, use_ as u32], self.key)
    }
}

/// Returns the uniform number of a word, which lies in the middle of its `2^-32` of `(0, 1)`, as a number of the standard
/// Gumbel distribution: `-ln(-ln((word + 1/2) / 2^32))`.
pub(super) fn gumbel(word: u32) -> f64 {
    let uniform = (f64::from(word) + 0.5) * (1.0 / (1u64 << 32) as f64);
    -(-uniform.ln()).ln()
}

/// Returns a bound that [`gumbel`] does not exceed, without a logarithm: `-ln u >= 1 - u`, and a power of two is at most
/// `1 - u`.
pub(super) fn gumbel_bound(word: u32) -> f64 {
    f64::from((!word).leading_zeros() + 1) * std::f64::consts::LN_2
}

/// Philox 4x32-10.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [a, b] = [u64::from(counter[0]) * 0xD251_1F53, u64::from(counter[2]) * 0xCD9E_8D57];
        let [[a_low, a_high], [b_low, b_high]] = [a, b].map(|product| [product as u32, (product >> 32) as u32]);
        counter = [b_high ^ counter[1] ^ key[0], b_low, a_high ^ counter[3] ^ key[1], a_low];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_words_that_its_authors_published() {
        let zeros = [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8];
        assert_eq!(philox([0; 4], [0; 2]), zeros);
        let ones = [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD];
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), ones);
        let pi = philox([0x243F_6A88, 0x85A3_08D3, 0x1319_8A2E, 0x0370_7344], [0xA409_3822, 0x299F_31D0]);
        assert_eq!(pi, [0xD16C_FE09, 0x94FD_CCEB, 0x5001_E420, 0x2412_6EA1]);
    }

    #[test]
    fn noise_differs_by_image_scale_token_block_and_use() {
        let [first, second] = [0, 1].map(|image| Noise::new(&mut Rng::new(1, "noise", image)));
        let words = [
            first.words(0, 0, Use::Token),
            second.words(0, 0, Use::Token),
            first.at_scale(1).words(0, 0, Use::Token),
            first.words(0, 1, Use::Token),
            first.words(1, 0, Use::Token),
            first.words(0, 0, Use::Mixture),
        ];
        for (i, x) in words.iter().enumerate() {
            assert!(words[..i].iter().all(|y| x != y), "{i} repeats another");
        }
    }

    #[test]
    fn gumbel_has_its_moments_and_its_bound() {
        let noise = Noise::new(&mut Rng::new(7, "gumbel", 0));
        let words: Vec<u32> = (0..10_000).flat_map(|block| noise.words(block, 0, Use::Token)).collect();
        let mean = words.iter().map(|&word| gumbel(word)).sum::<f64>() / words.len() as f64;
        let square = words.iter().map(|&word| (gumbel(word) - mean).powi(2)).sum::<f64>() / words.len() as f64;
        assert!((mean - 0.5772).abs() < 0.02, "Euler's constant, found {mean}");
        assert!((square - 1.6449).abs() < 0.05, "pi^2 / 6, found {square}");
        for word in words.into_iter().chain([0, 1, u32::MAX - 1, u32::MAX]) {
            assert!(gumbel(word).is_finite() && gumbel(word) <= gumbel_bound(word), "word {word}");
        }
    }
}
