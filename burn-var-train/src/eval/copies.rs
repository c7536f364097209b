//! Near copies of training images among generated ones.

use burn::tensor::Device;
use burn_var::metrics::{NearCopies, NeighborIndex};
use serde::{Deserialize, Serialize};

use crate::Result;

/// Shares of near copies of training images; see [`NearCopies`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Copies {
    /// Share among the generated images.
    pub generated: f64,
    /// Share among test images, which are no copies.
    pub test: f64,
    /// Number of generated images that were compared.
    pub compared: usize,
    /// The closeness below which an image counts as a copy.
    pub threshold: f64,
}

impl Copies {
    /// Number of generated images, and of test images, that are compared with all training images.
    pub const COMPARED: usize = 1000;

    /// Compares rows of `dim` numbers, pixels or features of one network. [`Copies::COMPARED`] evenly spaced test images are
    /// compared like the generated ones; the others calibrate the threshold.
    ///
    /// # Errors
    /// [`burn_var::Error::Shape`] with too few test images (1,100 are needed).
    pub fn of(train: &[f32], generated: &[f32], test: &[f32], dim: usize, device: &Device) -> Result<Self> {
        let tests = test.len() / dim;
        if tests <= Self::COMPARED {
            let expected = format!("more than {} images: the others calibrate the threshold", Self::COMPARED);
            return Err(burn_var::Error::shape("test images", expected, [tests]).into());
        }
        let chosen = evenly(tests, Self::COMPARED);
        let row = |i: usize| &test[i * dim..][..dim];
        let compared: Vec<f32> = chosen.iter().flat_map(|i| row(*i)).copied().collect();
        let others = (0..tests).filter(|i| chosen.binary_search(i).is_err());
        let others: Vec<f32> = others.flat_map(row).copied().collect();
        let index = NeighborIndex::new(train, dim, device)?;
        let nearest = |rows: &[f32]| index.nearest(rows, NearCopies::NEIGHBORS.min(train.len() / dim));
        let near = NearCopies::calibrate(&nearest(&others)?)?;
        Ok(Self {
            generated: near.share(&nearest(generated)?),
            test: near.share(&nearest(&compared)?),
            compared: generated.len() / dim,
            threshold: near.threshold,
        })
    }
}

/// Returns `most` evenly spaced numbers below `count`, or all: evenly, since images may be sorted by class.
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
    fn tells_new_images_from_copies() {
        let new = copies(&noise(250, "strangers"));
        assert_eq!(new.compared, 250);
        assert!(new.generated < 0.05 && new.test < 0.05, "{new:?}");
        assert_eq!(copies(&noise(300, "train")).generated, 1.0, "the training images themselves");
    }

    #[test]
    fn chooses_evenly() {
        assert_eq!(evenly(10, 4), [0, 2, 5, 7]);
        assert_eq!(evenly(3, 4), [0, 1, 2], "few are all chosen");
        assert_eq!(evenly(0, 4), [0_usize; 0]);
    }

    #[test]
    fn too_few_test_images_are_named() {
        let rows = noise(1000, "test");
        let error = Copies::of(&rows, &rows, &rows, DIM, &Device::default()).expect_err("too few").to_string();
        assert!(error.contains("`test images`"), "{error}");
    }
}
