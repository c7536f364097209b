//! Random numbers that depend on what they are drawn for, never on what was drawn before.

use burn_var::rng::Rng;

/// The purpose of a random stream, so that no two uses share one.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    /// The order of the images of an epoch.
    Order = 1,
    /// The crop and mirroring of an image.
    View = 2,
    /// The images of a class that are kept for testing.
    Holdout = 3,
    /// The variant of an image's tokens that an epoch sees.
    Variant = 4,
}

/// The stream for one purpose, keyed by the seed of the run and two more numbers.
///
/// The key differs from those of [`Rng::keyed`], so that splits and orders of older versions stay as they were.
pub(super) fn keyed(purpose: Purpose, seed: u64, [first, second]: [usize; 2]) -> Rng {
    Rng::from_key([purpose as u64, seed, first as u64, second as u64])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_purposes_give_streams_of_their_own() {
        let first = |purpose, seed, key| keyed(purpose, seed, key).below(1 << 63);
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
            *counts.entry(keyed(Purpose::Order, 1, [key, 0]).permutation(3)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6, "all orders occur");
        for (order, count) in counts {
            assert!((850..1150).contains(&count), "{order:?} came {count} times of 6000, expected about 1000");
        }
    }
}
