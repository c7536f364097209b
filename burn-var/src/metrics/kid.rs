use burn::tensor::{Device, Tensor, TensorData};
use serde::Serialize;

use super::rows::check_rows;
use crate::ops::{exact_matmul, transpose};
use crate::rng::Rng;
use crate::{Error, Result};

/// Kernel Inception Distance (Binkowski et al. 2018): the squared maximum mean discrepancy under the kernel
/// `(x y / dim + 1)^3`, unbiased, so that its expected value does not depend on the number of rows. For equal
/// distributions it is about 0 and can be negative.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Kid {
    /// Mean over the subsets.
    pub mean: f64,
    /// Population standard deviation over the subsets: the spread that is published beside the mean.
    #[serde(rename = "deviation")]
    pub std: f64,
}

/// Random subsets that a [`Kid`] averages over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Subsets {
    /// Number of subsets; 100 in the literature.
    pub count: usize,
    /// Rows of each set per subset; 1,000 in the literature.
    pub size: usize,
    /// Seed of the selection.
    pub seed: u64,
}

impl Default for Subsets {
    fn default() -> Self {
        Self { count: 100, size: 1000, seed: 0 }
    }
}

impl Kid {
    /// Computes the distance of two sets of features, `[n, dim]` each in row-major order; matrix products run on
    /// `device`.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::NonFinite`] for invalid rows; [`Error::Shape`] for a set with fewer rows than a
    /// subset; [`Error::Config`] for 0 subsets, or subsets of fewer than 2 rows; [`Error::Device`] if a product cannot be
    /// read back.
    pub fn of(a: &[f32], b: &[f32], dim: usize, subsets: Subsets, device: &Device) -> Result<Self> {
        check_rows("first features", a, dim, 0)?;
        check_rows("second features", b, dim, 0)?;
        let fewest = a.len().min(b.len()) / dim;
        if subsets.size < 2 {
            return Err(Error::config("size of a subset", subsets.size, "at least 2"));
        }
        if subsets.count == 0 {
            return Err(Error::config("number of subsets", 0, "at least 1"));
        }
        if subsets.size > fewest {
            let expected = format!("{} rows or more in both sets, the size of a subset", subsets.size);
            return Err(Error::shape("features", expected, [fewest, dim]));
        }
        let distance = |i: usize| {
            let draw = |rows: &[f32], which: &str| {
                let mut rng = Rng::new(subsets.seed, which, i as u64);
                let chosen = without_replacement(rows.len() / dim, subsets.size, &mut rng);
                let rows: Vec<f32> = chosen.into_iter().flat_map(|row| &rows[row * dim..][..dim]).copied().collect();
                Tensor::<2>::from_data(TensorData::new(rows, [subsets.size, dim]), device)
            };
            let (a, b) = (draw(a, "kid a"), draw(b, "kid b"));
            let within = sum_of_kernel(&a, &a, true)? + sum_of_kernel(&b, &b, true)?;
            let size = subsets.size as f64;
            Ok(within / (size * (size - 1.0)) - 2.0 * sum_of_kernel(&a, &b, false)? / (size * size))
        };
        let distances = (0..subsets.count).map(distance).collect::<Result<Vec<f64>>>()?;
        let mean = distances.iter().sum::<f64>() / distances.len() as f64;
        let variance = distances.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / distances.len() as f64;
        Ok(Self { mean, std: variance.sqrt() })
    }
}

/// Sums the kernel over all pairs of rows, or all but each row with itself.
fn sum_of_kernel(a: &Tensor<2>, b: &Tensor<2>, skip_diagonal: bool) -> Result<f64> {
    let [rows, dim] = a.dims();
    let products = exact_matmul(a.clone(), transpose(b.clone()));
    let products = products.try_into_vec_as::<f32>().map_err(Error::device("compare rows"))?;
    let kernel = |product: &f32| (f64::from(*product) / dim as f64 + 1.0).powi(3);
    let all: f64 = products.iter().map(kernel).sum();
    let diagonal: f64 = if skip_diagonal { products.iter().step_by(rows + 1).map(kernel).sum() } else { 0.0 };
    Ok(all - diagonal)
}

/// Draws `count` different numbers below `below`.
fn without_replacement(below: usize, count: usize, rng: &mut Rng) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..below).collect();
    for i in 0..count {
        let other = i + rng.below(below - i);
        numbers.swap(i, other);
    }
    numbers.truncate(count);
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIM: usize = 6;

    fn rows(count: usize, purpose: &str, shift: f64) -> Vec<f32> {
        let mut rng = Rng::new(1, purpose, 0);
        (0..count * DIM).map(|_| (rng.normal() + shift) as f32).collect()
    }

    fn kid(a: &[f32], b: &[f32], subsets: Subsets) -> Kid {
        Kid::of(a, b, DIM, subsets, &Device::default()).expect("finite rows")
    }

    #[test]
    fn is_the_unbiased_estimate_of_the_definition() {
        let (a, b) = (rows(30, "a", 0.0), rows(30, "b", 0.5));
        let found = kid(&a, &b, Subsets { count: 3, size: 30, seed: 1 });
        let kernel = |x: &[f32], y: &[f32]| {
            (x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>() / DIM as f64 + 1.0).powi(3)
        };
        let mean = |x: &[f32], y: &[f32], same: bool| {
            let pairs = x.chunks(DIM).enumerate().flat_map(|(i, x)| {
                y.chunks(DIM).enumerate().filter(move |(j, _)| !same || i != *j).map(move |(_, y)| kernel(x, y))
            });
            let pairs: Vec<f64> = pairs.collect();
            pairs.iter().sum::<f64>() / pairs.len() as f64
        };
        let exact = mean(&a, &a, true) + mean(&b, &b, true) - 2.0 * mean(&a, &b, false);
        assert!((found.mean - exact).abs() < 1e-5 * exact, "{} instead of {exact}", found.mean);
        assert!(found.std < 1e-6, "a subset of all rows is always the same: {}", found.std);
    }

    #[test]
    fn is_about_zero_for_one_distribution_and_grows_with_the_shift() {
        let a = rows(2000, "a", 0.0);
        let subsets = Subsets { count: 20, size: 200, seed: 1 };
        let [same, near, far] = [0.0, 0.3, 1.0].map(|shift| kid(&a, &rows(2000, "b", shift), subsets));
        assert!(same.mean.abs() < 2.0 * same.std, "one distribution: {same:?}");
        assert!(near.mean > 3.0 * same.mean.abs() && far.mean > 3.0 * near.mean, "{same:?} {near:?} {far:?}");
        assert_eq!(kid(&a, &a, subsets), kid(&a, &a, subsets), "the same seed, the same number");
    }

    #[test]
    fn errors_name_the_input() {
        let a = rows(5, "a", 0.0);
        let error = |size| {
            let subsets = Subsets { size, ..Default::default() };
            Kid::of(&a, &a, DIM, subsets, &Device::default()).unwrap_err()
        };
        assert!(matches!(error(1), Error::Config { ref name, .. } if name == "size of a subset"), "{}", error(1));
        assert!(matches!(error(6), Error::Shape { ref found, .. } if *found == [5, DIM]), "{}", error(6));
        let none = Subsets { count: 0, size: 3, seed: 0 };
        assert!(Kid::of(&a, &a, DIM, none, &Device::default()).is_err(), "no subset");
    }
}
