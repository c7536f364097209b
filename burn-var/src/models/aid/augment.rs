//! Differentiable augmentation (Zhao et al. 2020, "DiffAugment"): random changes to the discriminator's inputs, so that
//! it cannot memorize the training images. Gradients pass through.

use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::ops::{exact_matmul, transpose};
use crate::rng::Rng;

/// Random changes that [`Augment::apply`] makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Brightness by up to 0.5, saturation by a factor of up to 2, contrast by up to 0.5.
    pub color: bool,
    /// Shifts by up to an eighth of each side; black beyond the edge.
    pub translation: bool,
    /// Replaces a square, half of each side, by gray.
    pub cutout: bool,
}

impl Default for Augment {
    /// Returns all changes, as in StyleGAN-T; AID-VAR's code stores the same setting and applies none.
    fn default() -> Self {
        Self { color: true, translation: true, cutout: true }
    }
}

impl Augment {
    /// No changes.
    pub const NONE: Self = Self { color: false, translation: false, cutout: false };

    /// Changes each image of `[batch, channels, height, width]` in `[-1, 1]` in its own way. The draws for image `i` come
    /// from stream `i` of `rngs`, on the host.
    ///
    /// # Panics
    /// If there is not one stream per image.
    pub fn apply(self, images: Tensor<4>, rngs: &mut [Rng]) -> Tensor<4> {
        assert_eq!(images.dims()[0], rngs.len(), "one random stream per image");
        let images = if self.color { color(images, rngs) } else { images };
        let images = if self.translation { translation(images, rngs) } else { images };
        if self.cutout { cutout(images, rngs) } else { images }
    }
}

fn color(images: Tensor<4>, rngs: &mut [Rng]) -> Tensor<4> {
    let [batch, channels, ..] = images.dims();
    let device = images.device();
    let mut each = |low: f64, high: f64| {
        let values: Vec<f32> = rngs.iter_mut().map(|rng| (low + (high - low) * rng.uniform()) as f32).collect();
        Tensor::<4>::from_data(TensorData::new(values, [batch, 1, 1, 1]), &device)
    };
    let images = images + each(-0.5, 0.5);
    let saturation = each(0.0, 2.0);
    let images = match channels {
        1 => images,
        _ => {
            let gray = images.clone().mean_dim(1);
            (images - gray.clone()) * saturation + gray
        }
    };
    let mean = images.clone().mean_dims(&[1, 2, 3]);
    (images - mean.clone()) * each(0.5, 1.5) + mean
}

fn translation(images: Tensor<4>, rngs: &mut [Rng]) -> Tensor<4> {
    let [batch, channels, height, width] = images.dims();
    let device = images.device();
    // A shift along an axis is a product with a matrix whose diagonal is moved. Beyond the edge lies -1.
    let mut matrices = |side: usize| {
        let most = (side as f64 / 8.0).round() as usize;
        let mut values = vec![0.0f32; batch * side * side];
        for (matrix, rng) in values.chunks_exact_mut(side * side).zip(rngs.iter_mut()) {
            let shift = rng.below(2 * most + 1) as isize - most as isize;
            for (to, row) in matrix.chunks_exact_mut(side).enumerate() {
                if let Some(value) = usize::try_from(to as isize + shift).ok().and_then(|from| row.get_mut(from)) {
                    *value = 1.0;
                }
            }
        }
        let matrices = Tensor::<4>::from_data(TensorData::new(values, [batch, 1, side, side]), &device);
        matrices.repeat_dim(1, channels)
    };
    let rows = matrices(height);
    let columns = matrices(width);
    exact_matmul(exact_matmul(rows, images + 1.0), transpose(columns)) - 1.0
}

fn cutout(images: Tensor<4>, rngs: &mut [Rng]) -> Tensor<4> {
    let [batch, _, height, width] = images.dims();
    let mut mask = vec![1.0f32; batch * height * width];
    for (mask, rng) in mask.chunks_exact_mut(height * width).zip(rngs) {
        let mut span = |side: usize| {
            let (half, center) = (side.div_ceil(2), rng.below(side + 1) as isize);
            let first = center - (half / 2) as isize;
            move |at: usize| (first..first + half as isize).contains(&(at as isize))
        };
        let (in_rows, in_columns) = (span(height), span(width));
        for (i, value) in mask.iter_mut().enumerate() {
            if in_rows(i / width) && in_columns(i % width) {
                *value = 0.0;
            }
        }
    }
    let device = images.device();
    images * Tensor::from_data(TensorData::new(mask, [batch, 1, height, width]), &device)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::*;

    fn images(device: &Device) -> Tensor<4> {
        Tensor::random([3, 3, 8, 16], Distribution::Uniform(-1.0, 1.0), device)
    }

    fn streams(batch: u64, step: u64) -> Vec<Rng> {
        (0..batch).map(|image| Rng::keyed(1, "augment", step, image)).collect()
    }

    #[test]
    fn an_image_is_changed_alike_in_any_batch() {
        let (images, mut rngs) = (images(&Device::default()), streams(3, 0));
        let whole = Augment::default().apply(images.clone(), &mut rngs).narrow(0, 1, 2).into_data();
        let part = Augment::default().apply(images.narrow(0, 1, 2), &mut streams(3, 0)[1..]).into_data();
        part.assert_approx_eq::<f32>(&whole, burn::tensor::Tolerance::absolute(1e-6));
    }

    #[test]
    fn every_change_is_random_and_repeatable() {
        let images = images(&Device::default());
        for augment in [
            Augment { color: true, ..Augment::NONE },
            Augment { translation: true, ..Augment::NONE },
            Augment { cutout: true, ..Augment::NONE },
            Augment::default(),
        ] {
            let change = |step: u64| augment.apply(images.clone(), &mut streams(3, step)).into_data();
            assert_eq!(change(0), change(0), "{augment:?}");
            assert_ne!(change(0), change(1), "{augment:?}");
        }
        let same = Augment::NONE.apply(images.clone(), &mut streams(3, 0));
        assert_eq!(same.into_data(), images.into_data());
    }

    #[test]
    fn shifts_are_black_beyond_the_edge_and_cutout_removes_a_quarter_at_most() {
        let device = Device::default();
        let white = Tensor::<4>::ones([64, 1, 8, 8], &device);
        let mut rngs = streams(64, 0);
        let shifted: Vec<f32> = translation(white.clone(), &mut rngs).into_data().try_into_vec().unwrap();
        assert!(shifted.iter().all(|value| (value.abs() - 1.0).abs() < 1e-6), "white or black");
        assert!(shifted.iter().filter(|value| **value < 0.0).count() > 64, "some pixels are moved");
        for image in shifted.chunks(64) {
            let lost = image.iter().filter(|value| **value < 0.0).count();
            assert!(lost <= 15, "at most a row and a column of eight: {lost}");
        }
        let cut: Vec<f32> = cutout(white, &mut rngs).into_data().try_into_vec().unwrap();
        for image in cut.chunks(64) {
            assert!(image.iter().filter(|value| **value == 0.0).count() <= 16, "a quarter of the image");
        }
        assert!(cut.contains(&0.0));
    }

    #[test]
    fn gradients_pass() {
        let images = images(&Device::default().autodiff()).require_grad();
        let changed = Augment::default().apply(images.clone(), &mut streams(3, 0));
        let grad = images.grad(&changed.square().sum().backward()).unwrap();
        let sum: f32 = grad.abs().sum().into_scalar();
        assert!(sum > 1.0, "{sum}");
    }
}
