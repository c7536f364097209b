//! Distribution of the energy of logits over frequencies.

use burn::tensor::{Tensor, TensorData};

use crate::math::dct_matrix;
use crate::ops::exact_matmul;
use crate::{Error, MapSize, Result};

/// Mean log-magnitude of the DCT of one scale's logits per frequency, as in figure 4a of the paper on Scaled Spatial
/// Guidance: the difference of two shows how guidance moves energy. The mean over the vocabulary is subtracted at each
/// position, since softmax does not depend on it.
#[derive(Debug, Clone)]
pub struct Spectrum {
    size: MapSize,
    /// Sum over images for each coefficient, row-major.
    sums: Vec<f64>,
    images: usize,
}

/// Lower bound of magnitudes: the logarithm of 0 would make every mean infinite.
const FLOOR: f64 = 1e-12;

impl Spectrum {
    /// Creates an empty spectrum of maps of `size`.
    pub fn new(size: MapSize) -> Self {
        Self { size, sums: vec![0.0; size.area()], images: 0 }
    }

    /// Adds `[batch, tokens, vocab]` logits.
    ///
    /// # Errors
    /// [`Error::Shape`] if they have another number of tokens, [`Error::Device`] if they cannot be read back.
    pub fn push(&mut self, logits: Tensor<3>) -> Result<()> {
        let ([batch, tokens, _], area) = (logits.dims(), self.size.area());
        if tokens != area {
            return Err(Error::shape("logits", format!("[batch, {area}, vocab]"), logits.dims()));
        }
        let (rows, columns) = (dct_matrix(self.size.height), dct_matrix(self.size.width));
        let MapSize { height, width } = self.size;
        let entry = |i: usize| {
            let ([v, u], [y, x]) = ([i / area / width, i / area % width], [i % area / width, i % area % width]);
            (rows[v * height + y] * columns[u * width + x]) as f32
        };
        let matrix = TensorData::new((0..area * area).map(entry).collect::<Vec<f32>>(), [1, area, area]);
        let matrix = Tensor::<3>::from_data(matrix, &logits.device()).repeat_dim(0, batch);
        let mean = logits.clone().mean_dim(2);
        let magnitudes = exact_matmul(matrix, logits - mean).abs().clamp_min(FLOOR).log().mean_dim(2);
        let magnitudes = magnitudes.try_into_vec_as::<f32>().map_err(Error::device("read a spectrum"))?;
        for image in magnitudes.chunks_exact(area) {
            self.sums.iter_mut().zip(image).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        self.images += batch;
        Ok(())
    }

    /// Returns natural logarithms of magnitudes by frequency, from 0. A coefficient counts for the larger of its two
    /// frequencies, so that the frequencies below the side of a smaller map are the block that DSE takes from it. NaN
    /// without logits.
    pub fn by_frequency(&self) -> Vec<f64> {
        let MapSize { height, width } = self.size;
        let mut means = vec![(0.0, 0usize); height.max(width)];
        for (i, sum) in self.sums.iter().enumerate() {
            let (total, count) = &mut means[(i / width).max(i % width)];
            *total += sum;
            *count += self.images;
        }
        means.into_iter().map(|(total, count)| total / count as f64).collect()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    /// Creates a map with one DCT wave, in one code of two.
    fn wave(size: MapSize, [v, u]: [usize; 2], amplitude: f32) -> Tensor<3> {
        let (rows, columns) = (dct_matrix(size.height), dct_matrix(size.width));
        let at = |i: usize| {
            let (y, x) = (i / size.width, i % size.width);
            amplitude * (rows[v * size.height + y] * columns[u * size.width + x]) as f32
        };
        let values: Vec<f32> = (0..size.area()).flat_map(|i| [at(i) + 3.0, 3.0 - at(i)]).collect();
        Tensor::from_data(TensorData::new(values, [1, size.area(), 2]), &Device::default())
    }

    #[test]
    fn a_wave_appears_at_its_frequency_and_doubling_adds_ln_2() {
        let size = MapSize { height: 3, width: 4 };
        let of = |amplitude: f32| {
            let mut spectrum = Spectrum::new(size);
            spectrum.push(wave(size, [1, 2], amplitude)).expect("fits");
            spectrum
        };
        let (once, twice) = (of(1.0), of(2.0));
        let place = size.width + 2;
        assert!(once.sums[place].abs() < 1e-5, "magnitude 1, and the mean of a position is not seen: {:?}", once.sums);
        for (i, sum) in once.sums.iter().enumerate().filter(|(i, _)| *i != place) {
            assert!(*sum < -10.0, "nothing of other frequencies: {sum} at {i}");
        }
        assert!((twice.sums[place] - 2f64.ln()).abs() < 1e-5, "{:?}", twice.sums);
        assert_eq!(once.by_frequency().len(), 4);
        // Frequency 2 has the five coefficients whose larger index it is, of which the wave is one.
        let five: f64 = [2, 6, 8, 9, 10].iter().map(|i| once.sums[*i]).sum();
        assert!((once.by_frequency()[2] - five / 5.0).abs() < 1e-9);
    }

    #[test]
    fn logits_of_another_map_are_refused() {
        let mut spectrum = Spectrum::new(MapSize { height: 2, width: 2 });
        let error =
            spectrum.push(wave(MapSize { height: 3, width: 3 }, [0, 0], 1.0)).expect_err("too many").to_string();
        assert!(error.contains("[batch, 4, vocab]"), "{error}");
    }
}
