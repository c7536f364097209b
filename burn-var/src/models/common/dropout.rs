//! Dropout and drop path in training, with factors drawn on the host: the same on every device, from one stream per image.

use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use crate::rng::Rng;

/// Sets a share of the values of `x`, `[batch, tokens, channels]`, to zero and scales up the others to keep the mean; `noise`
/// has one stream per image. Returns `x` without noise.
pub(crate) fn dropout(x: Tensor<3>, rate: f64, noise: Option<&mut [Rng]>) -> Tensor<3> {
    let Some(noise) = noise.filter(|_| rate > 0.0) else { return x };
    let [_, tokens, channels] = x.dims();
    multiplied(x, [tokens, channels], rate, noise)
}

/// Sets `x`, `[batch, tokens, channels]`, to zero for a share of the images and scales up the others to keep the mean.
/// Returns `x` without noise.
pub(crate) fn drop_path(x: Tensor<3>, rate: f64, noise: Option<&mut [Rng]>) -> Tensor<3> {
    let Some(noise) = noise.filter(|_| rate > 0.0) else { return x };
    multiplied(x, [1, 1], rate, noise)
}

/// Multiplies by random factors of one shape per image.
fn multiplied(x: Tensor<3>, [tokens, channels]: [usize; 2], rate: f64, noise: &mut [Rng]) -> Tensor<3> {
    let kept = (1.0 / (1.0 - rate)) as f32;
    let mut factors = vec![0.0; noise.len() * tokens * channels];
    let images = factors.par_chunks_mut((tokens * channels).max(1)).zip(noise.par_iter_mut());
    images.for_each(|(factors, rng)| {
        factors.iter_mut().for_each(|factor| *factor = if rng.uniform() < rate { 0.0 } else { kept });
    });
    let factors = TensorData::new(factors, [noise.len(), tokens, channels]);
    let factors = Tensor::from_data(factors, (&x.device(), x.dtype()));
    x * factors
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn a_share_is_dropped_and_the_mean_stays() {
        let x = || Tensor::<3>::ones([2, 50, 100], &Device::default());
        let mut noise = [0, 1].map(|image| Rng::new(1, "dropout", image));
        let values = dropout(x(), 0.2, Some(&mut noise)).into_data().try_into_vec::<f32>().unwrap();
        let dropped = values.iter().filter(|value| **value == 0.0).count();
        assert!((1800..2200).contains(&dropped), "{dropped} of 10000");
        assert!(values.iter().all(|value| *value == 0.0 || *value == 1.25));
        let images: Vec<f32> =
            drop_path(x(), 0.5, Some(&mut noise)).mean_dims(&[1, 2]).into_data().try_into_vec().unwrap();
        assert!(images.iter().all(|image| *image == 0.0 || *image == 2.0), "{images:?}");
        let same = dropout(x(), 0.2, None).into_data();
        assert_eq!(same, x().into_data(), "without noise");
    }
}
