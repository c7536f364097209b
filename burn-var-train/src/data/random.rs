//! Random numbers that depend on what they are drawn for, never on what was drawn before.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a stream of random numbers is for, so that no two uses share one.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    /// The order of the pictures of an epoch.
    Order = 1,
    /// The crop and mirroring of a picture.
    View = 2,
    /// Which pictures of a class are kept for testing.
    Holdout = 3,
    /// Which variant of a picture's tokens an epoch sees.
    Variant = 4,
}

/// The random numbers for one purpose, keyed by the seed of the run and two numbers more.
pub(super) fn keyed(purpose: Purpose, seed: u64, key: [usize; 2]) -> ChaCha8Rng {
    let mut bytes = [0; 32];
    for (field, value) in bytes.chunks_exact_mut(8).zip([purpose as u64, seed, key[0] as u64, key[1] as u64]) {
        field.copy_from_slice(&value.to_le_bytes());
    }
    ChaCha8Rng::from_seed(bytes)
}

/// A uniform number in `0..bound`; `bound` must not be 0.
///
/// The bias of the multiplication is below `bound / 2^64`, far from visible.
pub(super) fn below(rng: &mut ChaCha8Rng, bound: usize) -> usize {
    ((u128::from(rng.next_u64()) * bound as u128) >> 64) as usize
}

/// A uniform order of `0..len` (Fisher and Yates).
pub(super) fn permutation(rng: &mut ChaCha8Rng, len: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    for last in (1..len).rev() {
        order.swap(last, below(rng, last + 1));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_purposes_give_streams_of_their_own() {
        let first = |purpose, seed, key| keyed(purpose, seed, key).next_u64();
        let drawn = [
            first(Purpose::Order, 7, [3, 5]),
            first(Purpose::View, 7, [3, 5]),
            first(Purpose::Order, 8, [3, 5]),
            first(Purpose::Order, 7, [5, 3]),
        ];
        for (i, a) in drawn.iter().enumerate() {
            assert!(!drawn[..i].contains(a), "stream {i} repeats an earlier one");
        }
        assert_eq!(drawn[0], first(Purpose::Order, 7, [3, 5]), "the same key gives the same stream");
    }

    #[test]
    fn every_order_of_three_is_equally_likely() {
        let mut counts = std::collections::BTreeMap::new();
        for key in 0..6000 {
            *counts.entry(permutation(&mut keyed(Purpose::Order, 1, [key, 0]), 3)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6, "all orders occur");
        for (order, count) in counts {
            assert!((850..1150).contains(&count), "{order:?} came {count} times of 6000, expected about 1000");
        }
    }
}
