//! Random crops of images. Their places are drawn on the host; cutting is a product with two small matrices, which runs
//! on every device.

use burn::tensor::{Tensor, TensorData};
use burn_var::ops::{exact_matmul, transpose};
use burn_var::rng::Rng;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Number, size and change of the crops.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CropsConfig {
    /// Number of small crops; there are always two large ones, of the size of the image.
    pub small: usize,
    /// Height and width that small crops are brought to, a multiple of the patch size.
    pub small_size: usize,
    /// Smallest and largest share of the image's area in a large crop.
    pub large_area: [f64; 2],
    /// The same of a small crop.
    pub small_area: [f64; 2],
    /// Share of crops that are mirrored.
    pub mirrored: f64,
    /// Brightness and contrast are changed by up to this share.
    pub jitter: f64,
}

impl Default for CropsConfig {
    fn default() -> Self {
        Self { small: 4, small_size: 16, large_area: [0.4, 1.0], small_area: [0.1, 0.4], mirrored: 0.5, jitter: 0.4 }
    }
}

impl CropsConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self, patch: usize) -> Result<()> {
        if self.small > 0 && (self.small_size == 0 || !self.small_size.is_multiple_of(patch)) {
            let expected = format!("a multiple of the patch size {patch}");
            return Err(Error::config("crops.small_size", self.small_size, expected));
        }
        for (name, [low, high]) in [("crops.large_area", self.large_area), ("crops.small_area", self.small_area)] {
            if !(low > 0.0 && low <= high && high <= 1.0) {
                return Err(Error::config(name, format!("[{low}, {high}]"), "two rising shares in 0..=1"));
            }
        }
        for (name, share) in [("crops.mirrored", self.mirrored), ("crops.jitter", self.jitter)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::config(name, share, "a share in 0..=1"));
            }
        }
        Ok(())
    }
}

/// Crops of a batch, crop by crop: the first of all images, then the second of all images, ...
pub(super) struct Views {
    /// `[2 * batch, channels, side, side]` in `[-1, 1]`.
    pub(super) large: Tensor<4>,
    /// `[small * batch, channels, small_size, small_size]`, if there are any.
    pub(super) small: Option<Tensor<4>>,
}

/// Cuts crops.
pub(super) struct Crops {
    config: CropsConfig,
    side: usize,
}

impl Crops {
    /// Large crops get this `side`.
    pub(super) fn new(config: CropsConfig, side: usize) -> Self {
        Self { config, side }
    }

    /// Cuts the crops of images `[batch, channels, height, width]` in `[-1, 1]`; those of image `i` are drawn from stream
    /// `i`.
    pub(super) fn cut(&self, images: Tensor<4>, rngs: &mut [Rng]) -> Views {
        let CropsConfig { small, small_size, large_area, small_area, .. } = self.config;
        let mut many = |count: usize, area: [f64; 2], side: usize| {
            let crops = (0..count).map(|_| self.crop(images.clone(), area, side, rngs));
            Tensor::cat(crops.collect(), 0)
        };
        let large = many(2, large_area, self.side);
        let small = (small > 0).then(|| many(small, small_area, small_size));
        Views { large, small }
    }

    /// Cuts one crop of every image.
    fn crop(&self, images: Tensor<4>, area: [f64; 2], side: usize, rngs: &mut [Rng]) -> Tensor<4> {
        let [batch, channels, height, width] = images.dims();
        let device = images.device();
        let (mut rows, mut columns, mut light) = (Vec::new(), Vec::new(), Vec::new());
        for rng in rngs {
            let mut between = |low: f64, high: f64| low + (high - low) * rng.uniform();
            let share = between(area[0], area[1]);
            // The logarithm of height over width is even in both directions.
            let aspect = between(-(4.0f64 / 3.0).ln(), (4.0f64 / 3.0).ln()).exp();
            let (tall, wide) = ((share * aspect).sqrt().min(1.0), (share / aspect).sqrt().min(1.0));
            let (top, left) = (between(0.0, 1.0 - tall), between(0.0, 1.0 - wide));
            let mirrored = between(0.0, 1.0) < self.config.mirrored;
            let jitter = self.config.jitter;
            light.extend([between(1.0 - jitter, 1.0 + jitter), between(-jitter, jitter)].map(|x| x as f32));
            rows.extend(window(height, side, [top, tall], false));
            columns.extend(window(width, side, [left, wide], mirrored));
        }
        let matrices = |values: Vec<f32>, from: usize| {
            let matrices = Tensor::<4>::from_data(TensorData::new(values, [batch, 1, side, from]), &device);
            matrices.repeat_dim(1, channels)
        };
        let cut = exact_matmul(exact_matmul(matrices(rows, height), images), transpose(matrices(columns, width)));
        let light = Tensor::<2>::from_data(TensorData::new(light, [batch, 2]), &device);
        let [contrast, brightness] = [0, 1].map(|i| light.clone().narrow(1, i, 1).reshape([batch, 1, 1, 1]));
        (cut * contrast + brightness).clamp(-1.0, 1.0)
    }
}

/// Returns the matrix `[to, from]` that reads a window `[start, length]`, in shares of the axis, with linear interpolation.
fn window(from: usize, to: usize, [start, length]: [f64; 2], mirrored: bool) -> Vec<f32> {
    let mut matrix = vec![0.0; to * from];
    for (i, row) in matrix.chunks_exact_mut(from).enumerate() {
        let i = if mirrored { to - 1 - i } else { i };
        let at = (start + length * (i as f64 + 0.5) / to as f64) * from as f64 - 0.5;
        let at = at.clamp(0.0, (from - 1) as f64);
        let base = (at.floor() as usize).min(from.saturating_sub(2));
        let share = at - base as f64;
        row[base] += (1.0 - share) as f32;
        if from > 1 {
            row[base + 1] += share as f32;
        }
    }
    matrix
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn the_whole_window_is_the_image_and_its_mirror_image() {
        let identity: Vec<f32> = (0..25).map(|i| if i % 6 == 0 { 1.0 } else { 0.0 }).collect();
        assert_eq!(window(5, 5, [0.0, 1.0], false), identity);
        let turned: Vec<f32> = identity.chunks(5).rev().flatten().copied().collect();
        assert_eq!(window(5, 5, [0.0, 1.0], true), turned);
        for (from, to, start, length) in [(7, 3, 0.2, 0.5), (1, 4, 0.0, 0.3), (9, 16, 0.6, 0.4)] {
            for row in window(from, to, [start, length], false).chunks(from) {
                let sum: f32 = row.iter().sum();
                assert!((sum - 1.0).abs() < 1e-6, "{from} to {to}: {row:?}");
            }
        }
    }

    #[test]
    fn crops_depend_on_seed_step_and_image_alone() {
        let config = CropsConfig { small: 3, small_size: 4, ..CropsConfig::default() };
        let images =
            Tensor::<4>::random([2, 1, 9, 8], burn::tensor::Distribution::Uniform(-1.0, 1.0), &Device::default());
        let streams = |seed, step| (0..2).map(|image| Rng::keyed(seed, "crops", step, image)).collect::<Vec<_>>();
        let crops = Crops::new(config.clone(), 8);
        let cut = |seed: u64, step: u64| crops.cut(images.clone(), &mut streams(seed, step));
        let views = cut(1, 5);
        let small = views.small.expect("three");
        assert_eq!((views.large.dims(), small.dims()), ([4, 1, 8, 8], [6, 1, 4, 4]));
        assert_eq!(cut(1, 5).large.into_data(), views.large.clone().into_data(), "the same again");
        assert_ne!(cut(1, 6).large.into_data(), views.large.clone().into_data(), "another step");
        assert_ne!(cut(2, 5).large.into_data(), views.large.clone().into_data(), "another seed");
        let second = crops.cut(images.clone().narrow(0, 1, 1), &mut streams(1, 5)[1..]).large;
        let alone: Vec<f32> = second.into_data().try_into_vec().expect("f32");
        let whole = Tensor::cat(vec![views.large.clone().narrow(0, 1, 1), views.large.narrow(0, 3, 1)], 0);
        let whole: Vec<f32> = whole.into_data().try_into_vec().expect("f32");
        let same = alone.iter().zip(&whole).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(same, "the crops of an image do not depend on the images beside it");
        assert!(CropsConfig { small_size: 6, ..config.clone() }.validate(4).is_err());
        assert!(CropsConfig { large_area: [0.5, 0.2], ..config }.validate(4).is_err());
    }
}
