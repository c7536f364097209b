//! Whether generated pictures merely repeat those that the model was trained on.

use burn::tensor::Device;
use burn_var::metrics::{NearCopies, NeighbourIndex};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Shares of near copies of training pictures; see [`NearCopies`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Copies {
    /// Among generated pictures.
    pub generated: f64,
    /// Among test pictures, which nobody copied.
    pub test: f64,
    /// How many of each were compared, at most.
    pub compared: usize,
    /// The closeness below which a picture counts.
    pub threshold: f64,
}

impl Copies {
    /// Generated pictures, and as many test pictures, that are compared with all training pictures.
    pub const COMPARED: usize = 1000;

    /// Compares rows of `dim` numbers, pixels or features. Of the test pictures [`Copies::COMPARED`] at even distances
    /// are compared like the generated ones; the others say what counts as a copy.
    ///
    /// # Errors
    /// [`Error::Config`] with too few test pictures (1,100 are needed).
    pub fn of(train: &[f32], generated: &[f32], test: &[f32], dim: usize, device: &Device) -> Result<Self> {
        let tests = test.len() / dim;
        if tests <= Self::COMPARED {
            let expected = format!("more than {}: as many are compared, the others say what a copy is", Self::COMPARED);
            return Err(Error::config("number of test pictures", tests, expected));
        }
        let chosen = evenly(tests, Self::COMPARED);
        let row = |i: usize| &test[i * dim..][..dim];
        let compared: Vec<f32> = chosen.iter().flat_map(|i| row(*i)).copied().collect();
        let others = (0..tests).filter(|i| chosen.binary_search(i).is_err());
        let others: Vec<f32> = others.flat_map(row).copied().collect();
        let index = NeighbourIndex::new(train, dim, device)?;
        let nearest = |rows: &[f32]| index.nearest(rows, NearCopies::NEIGHBOURS.min(train.len() / dim));
        let near = NearCopies::calibrate(&nearest(&others)?)?;
        Ok(Self {
            generated: near.share(&nearest(generated)?),
            test: near.share(&nearest(&compared)?),
            compared: generated.len() / dim,
            threshold: near.threshold,
        })
    }
}

/// `most` of `count` numbers at even distances, or all: even, since pictures may be sorted by class.
pub fn evenly(count: usize, most: usize) -> Vec<usize> {
    let most = most.min(count);
    (0..most).map(|i| i * count / most).collect()
}

#[cfg(test)]
mod tests {
    use burn_var::rng::Rng;

    use super::*;

    const DIM: usize = 16;

    fn noise(count: usize, name: &str) -> Vec<f32> {
        let mut rng = Rng::new(7, name, 0);
        (0..count * DIM).map(|_| rng.uniform() as f32 * 2.0 - 1.0).collect()
    }

    fn copies(generated: &[f32]) -> Copies {
        Copies::of(&noise(300, "train"), generated, &noise(1500, "test"), DIM, &Device::default()).expect("enough")
    }

    #[test]
    fn tells_strangers_from_copies() {
        let strangers = copies(&noise(250, "strangers"));
        assert_eq!(strangers.compared, 250);
        assert!(strangers.generated < 0.05 && strangers.test < 0.05, "{strangers:?}");
        assert_eq!(copies(&noise(300, "train")).generated, 1.0, "the training pictures themselves");
    }

    #[test]
    fn chooses_evenly() {
        assert_eq!(evenly(10, 4), [0, 2, 5, 7]);
        assert_eq!(evenly(3, 4), [0, 1, 2], "few are all chosen");
        assert_eq!(evenly(0, 4), [0_usize; 0]);
    }

    #[test]
    fn too_few_test_pictures_are_named() {
        let rows = noise(1000, "test");
        let error = Copies::of(&rows, &rows, &rows, DIM, &Device::default()).expect_err("too few").to_string();
        assert!(error.contains("number of test pictures"), "{error}");
    }
}
