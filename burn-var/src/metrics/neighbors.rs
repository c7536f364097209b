//! Nearest neighbors in a large set, and the fraction of generated images that copy a training image.

use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

use super::rows::check_rows;
use crate::ops::{exact_matmul, transpose};
use crate::{Error, Result};

/// Rows of the large set, and queries, that one matrix product compares: 16 MiB of results.
const BLOCK: usize = 4096;
const QUERY_BLOCK: usize = 1024;

/// Rows of a set that one product compares with one another.
const OWN_BLOCK: usize = 2048;
/// Columns of products that are read together: one cache line.
const COLUMNS: usize = 16;

/// Extra candidates to keep, since single precision can swap neighbors at almost equal distances.
const SPARE: usize = 8;

/// Index of a large set of rows to find neighbors in: training images as pixels or as features.
#[derive(Debug, Clone)]
pub struct NeighborIndex<'a> {
    rows: &'a [f32],
    dim: usize,
    /// Mean of the rows, subtracted before products are computed, which leaves distances equal and reduces their
    /// rounding.
    mean: Vec<f32>,
    device: Device,
}

impl<'a> NeighborIndex<'a> {
    /// Creates an index over `rows`, `[n, dim]` in row-major order; matrix products run on `device`.
    ///
    /// # Errors
    /// [`Error::Shape`] if `rows` is empty or not a whole number of rows; [`Error::NonFinite`], naming the row, for NaN
    /// or infinity.
    pub fn new(rows: &'a [f32], dim: usize, device: &Device) -> Result<Self> {
        check_rows("reference rows", rows, dim, 0)?;
        if rows.is_empty() {
            return Err(Error::shape("reference rows", "at least one row", [0, dim]));
        }
        let mut sums = vec![0.0_f64; dim];
        for row in rows.chunks_exact(dim) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        let count = (rows.len() / dim) as f64;
        Ok(Self { rows, dim, mean: sums.iter().map(|sum| (sum / count) as f32).collect(), device: device.clone() })
    }

    /// Finds the `k` rows nearest to each query by Euclidean distance; `queries` is `[n, dim]`.
    ///
    /// Candidates come from products in single precision; their distances are recomputed in double precision.
    ///
    /// # Errors
    /// The errors of [`NeighborIndex::new`]; [`Error::Config`] if `k` is 0; [`Error::Shape`] for fewer than `k` rows;
    /// [`Error::Device`] if a product cannot be read back.
    pub fn nearest(&self, queries: &[f32], k: usize) -> Result<Neighbors> {
        check_rows("queries", queries, self.dim, 0)?;
        self.check_count(k, k)?;
        let mut candidates = vec![Candidates::new(k + SPARE); queries.len() / self.dim];
        self.scores(queries, &mut |Block { first_query, first_row, rows, scores }| {
            let pairs = candidates[first_query..].par_iter_mut().zip(scores.par_chunks_exact(rows));
            pairs.for_each(|(candidates, scores)| {
                scores.iter().enumerate().for_each(|(i, score)| candidates.offer(*score, first_row + i));
            });
        })?;
        Ok(self.exact(candidates, queries, k))
    }

    /// Finds the neighbors of the rows themselves with little more than half of the products; the nearest neighbor of
    /// each row is itself.
    ///
    /// # Errors
    /// The errors of [`NeighborIndex::nearest`].
    pub fn nearest_own(&self, k: usize) -> Result<Neighbors> {
        self.check_count(k, k)?;
        let mut candidates = vec![Candidates::new(k + SPARE); self.len()];
        let blocks = self.centered_blocks(self.rows, OWN_BLOCK);
        for (i, (queries, own_squares)) in blocks.iter().enumerate() {
            for (j, (rows, squares)) in blocks.iter().enumerate().skip(i) {
                let products = exact_matmul(queries.clone(), transpose(rows.clone()));
                let products = products.try_into_vec_as::<f32>().map_err(Error::device("compare rows"))?;
                let (first, other) = (i * OWN_BLOCK, j * OWN_BLOCK);
                let count = squares.len();
                let pairs = candidates[first..].par_iter_mut().zip(products.par_chunks_exact(count));
                pairs.for_each(|(candidates, products)| {
                    for (at, (product, square)) in products.iter().zip(squares).enumerate() {
                        candidates.offer(square - 2.0 * product, other + at);
                    }
                });
                if i == j {
                    continue;
                }
                // The same products with queries and rows exchanged, several adjacent columns at a time.
                let columns = candidates[other..other + count].par_chunks_mut(COLUMNS).enumerate();
                columns.for_each(|(chunk, candidates)| {
                    for (at, (row, square)) in products.chunks_exact(count).zip(own_squares).enumerate() {
                        for (candidates, product) in candidates.iter_mut().zip(&row[chunk * COLUMNS..]) {
                            candidates.offer(square - 2.0 * product, first + at);
                        }
                    }
                });
            }
        }
        Ok(self.exact(candidates, self.rows, k))
    }

    /// Selects the nearest candidates of each query by distances in double precision.
    fn exact(&self, candidates: Vec<Candidates>, queries: &[f32], k: usize) -> Neighbors {
        let mut neighbors = Neighbors { k, distances: Vec::new(), indices: Vec::new() };
        let found: Vec<Vec<(f64, usize)>> = candidates
            .into_par_iter()
            .zip(queries.par_chunks_exact(self.dim))
            .map(|(candidates, query)| {
                candidates.into_indices().map(|index| (self.square(query, index).sqrt(), index)).collect()
            })
            .collect();
        found.into_iter().for_each(|found| neighbors.add(found));
        neighbors
    }

    /// Checks that `k` neighbors can be found, which needs `rows` rows.
    pub(super) fn check_count(&self, k: usize, rows: usize) -> Result<()> {
        if k == 0 {
            return Err(Error::config("number of neighbors", 0, "at least 1"));
        }
        if self.len() < rows {
            let expected = format!("{rows} rows or more, for {k} neighbors");
            return Err(Error::shape("features", expected, [self.len(), self.dim]));
        }
        Ok(())
    }

    /// Computes `|r|^2 - 2 q r` of centered rows r and queries q, in single precision and block by block.
    ///
    /// # Errors
    /// [`Error::Device`] if a product cannot be read back.
    pub(super) fn scores(&self, queries: &[f32], take: &mut dyn FnMut(Block<'_>)) -> Result<()> {
        let queries = self.centered_blocks(queries, QUERY_BLOCK);
        for (block, (rows, squares)) in self.centered_blocks(self.rows, BLOCK).into_iter().enumerate() {
            let rows = transpose(rows);
            for (part, (queries, _)) in queries.iter().enumerate() {
                let products = exact_matmul(queries.clone(), rows.clone());
                let mut scores = products.try_into_vec_as::<f32>().map_err(Error::device("compare rows"))?;
                scores.par_chunks_exact_mut(squares.len()).for_each(|scores| {
                    scores.iter_mut().zip(&squares).for_each(|(score, square)| *score = square - 2.0 * *score);
                });
                take(Block {
                    first_query: part * QUERY_BLOCK,
                    first_row: block * BLOCK,
                    rows: squares.len(),
                    scores: &scores,
                });
            }
        }
        Ok(())
    }

    /// Computes the squared length of a row minus the mean.
    pub(super) fn centered_square(&self, row: &[f32]) -> f32 {
        row.iter().zip(&self.mean).map(|(x, m)| (x - m).powi(2)).sum()
    }

    /// Returns blocks of rows minus the mean on the device, `[n, dim]`, and their squared lengths.
    fn centered_blocks(&self, rows: &[f32], block: usize) -> Vec<(Tensor<2>, Vec<f32>)> {
        let centered = |rows: &[f32]| {
            let mut centered = rows.to_vec();
            let rows = centered.par_chunks_exact_mut(self.dim);
            let squares = rows.map(|row| {
                row.iter_mut().zip(&self.mean).for_each(|(x, m)| *x -= m);
                row.iter().map(|x| x * x).sum()
            });
            let squares: Vec<f32> = squares.collect();
            (Tensor::from_data(TensorData::new(centered, [squares.len(), self.dim]), &self.device), squares)
        };
        rows.chunks(block * self.dim).map(centered).collect()
    }

    /// Computes the squared distance of a query and a row, in double precision.
    pub(super) fn square(&self, query: &[f32], index: usize) -> f64 {
        let row = &self.rows[index * self.dim..][..self.dim];
        query.iter().zip(row).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
    }

    /// Returns the rows.
    pub(super) fn rows(&self) -> &'a [f32] {
        self.rows
    }

    /// Returns the number of rows.
    pub(super) fn len(&self) -> usize {
        self.rows.len() / self.dim
    }
}

/// Products of some queries and some rows.
pub(super) struct Block<'a> {
    pub(super) first_query: usize,
    pub(super) first_row: usize,
    pub(super) rows: usize,
    /// Row-major, one row per query.
    pub(super) scores: &'a [f32],
}

/// Smallest scores of a sequence, with their indices.
#[derive(Debug, Clone)]
struct Candidates {
    capacity: usize,
    best: Vec<(f32, usize)>,
}

impl Candidates {
    fn new(capacity: usize) -> Self {
        Self { capacity, best: Vec::with_capacity(capacity + 1) }
    }

    fn offer(&mut self, score: f32, index: usize) {
        if self.best.len() == self.capacity && self.best.last().is_some_and(|(worst, _)| score >= *worst) {
            return;
        }
        let place = self.best.partition_point(|(other, _)| *other <= score);
        self.best.insert(place, (score, index));
        self.best.truncate(self.capacity);
    }

    fn into_indices(self) -> impl Iterator<Item = usize> {
        self.best.into_iter().map(|(_, index)| index)
    }
}

/// Nearest `k` rows of each query, the nearest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Neighbors {
    k: usize,
    distances: Vec<f64>,
    indices: Vec<usize>,
}

impl Neighbors {
    /// Returns the number of queries.
    pub fn count(&self) -> usize {
        self.distances.len() / self.k
    }

    /// Returns the `k` distances of query `i`, in ascending order.
    pub fn distances(&self, i: usize) -> &[f64] {
        &self.distances[i * self.k..][..self.k]
    }

    /// Returns the indices, in the large set, of the `k` rows nearest to query `i`.
    pub fn indices(&self, i: usize) -> &[usize] {
        &self.indices[i * self.k..][..self.k]
    }

    /// Computes, for each query, the distance to the nearest row over the mean distance to the `k` nearest: 0 for an
    /// exact copy, 1 where all of them are equally far.
    ///
    /// Plain distances would call every simple image a copy, since simple images lie close together. This ratio tests
    /// whether one row is closer than its surroundings explain (Carlini et al. 2023, "Extracting training data from
    /// diffusion models", where `k` is 50).
    pub fn closeness(&self) -> Vec<f64> {
        let of_row = |row: &[f64]| {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            if mean == 0.0 { 0.0 } else { row[0] / mean }
        };
        self.distances.chunks_exact(self.k).map(of_row).collect()
    }

    fn add(&mut self, mut found: Vec<(f64, usize)>) {
        found.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        found.truncate(self.k);
        self.distances.extend(found.iter().map(|(distance, _)| distance));
        self.indices.extend(found.iter().map(|(_, index)| index));
    }
}

/// Test for near copies of training images: an image is one if its [closeness](Neighbors::closeness) is below that of
/// 99% of the real images outside the training set.
///
/// Calibrate it on some held-out real images, then compare the fraction of near copies among generated images and among
/// *other* held-out images: about 1% of the latter by chance, and more among the images of a model that memorized.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NearCopies {
    /// Closeness below which an image is a near copy.
    pub threshold: f64,
}

impl NearCopies {
    /// Number of neighbors to search for, which form the surroundings of the nearest one.
    pub const NEIGHBORS: usize = 50;
    /// One in this many held-out images lies below the threshold.
    const ONE_IN: usize = 100;

    /// Calibrates the threshold on real images outside the training set.
    ///
    /// # Errors
    /// [`Error::Shape`] with fewer than 100 images, which have no 1st percentile.
    pub fn calibrate(real: &Neighbors) -> Result<Self> {
        let mut closeness = real.closeness();
        if closeness.len() < Self::ONE_IN {
            let expected = format!("{} or more, whose 1st percentile is the threshold", Self::ONE_IN);
            return Err(Error::shape("real images", expected, [closeness.len()]));
        }
        closeness.sort_by(f64::total_cmp);
        Ok(Self { threshold: closeness[closeness.len() / Self::ONE_IN] })
    }

    /// Returns the fraction of near copies, in `[0, 1]`; 0 without images.
    pub fn share(&self, images: &Neighbors) -> f64 {
        let copies = images.closeness().into_iter().filter(|closeness| *closeness < self.threshold).count();
        copies as f64 / images.count().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    const DIM: usize = 5;

    fn rows(count: usize, purpose: &str) -> Vec<f32> {
        let mut rng = Rng::new(1, purpose, 0);
        (0..count * DIM).map(|_| rng.normal() as f32 + 100.0).collect()
    }

    fn nearest(reference: &[f32], queries: &[f32], k: usize) -> Neighbors {
        let index = NeighborIndex::new(reference, DIM, &Device::default()).expect("finite rows");
        index.nearest(queries, k).expect("neighbors")
    }

    #[test]
    fn equals_a_full_search_across_blocks() {
        let (reference, queries) = (rows(BLOCK + 37, "reference"), rows(QUERY_BLOCK + 3, "queries"));
        let found = nearest(&reference, &queries, 4);
        assert_eq!(found.count(), QUERY_BLOCK + 3, "one row of neighbors per query");
        for i in [0, 1, QUERY_BLOCK - 1, QUERY_BLOCK, QUERY_BLOCK + 2] {
            let query = &queries[i * DIM..][..DIM];
            let square = |row: &[f32]| query.iter().zip(row).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            let mut all: Vec<_> = reference.chunks(DIM).map(square).enumerate().collect();
            all.sort_by(|a, b| a.1.total_cmp(&b.1));
            for (j, (index, square)) in all[..4].iter().enumerate() {
                assert_eq!(found.indices(i)[j], *index, "neighbor {j} of query {i}");
                let distance = found.distances(i)[j];
                assert!((distance - square.sqrt()).abs() < 1e-5, "distance {j} of query {i}: {distance}");
            }
        }
    }

    #[test]
    fn own_rows_are_searched_like_queries() {
        let rows = rows(2 * OWN_BLOCK + 37, "reference");
        let index = NeighborIndex::new(&rows, DIM, &Device::default()).expect("finite rows");
        let [own, any] = [index.nearest_own(4), index.nearest(&rows, 4)].map(|found| found.expect("found"));
        assert_eq!(own.distances, any.distances, "the same distances in double precision");
        assert!((0..own.count()).all(|i| own.indices(i)[0] == i), "the nearest is the row itself");
        assert!(index.nearest_own(0).is_err() && index.nearest_own(rows.len()).is_err());
    }

    #[test]
    fn an_exact_copy_has_distance_and_closeness_zero() {
        let reference = rows(300, "reference");
        let mut queries = rows(2, "queries");
        queries[DIM..].copy_from_slice(&reference[17 * DIM..18 * DIM]);
        let found = nearest(&reference, &queries, 9);
        assert_eq!((found.distances(1)[0], found.indices(1)[0]), (0.0, 17), "the copy");
        assert_eq!(found.closeness()[1], 0.0, "closeness of a copy");
        let other = found.closeness()[0];
        assert!(other > 0.2 && other <= 1.0, "closeness of an unrelated row: {other}");
        let duplicates = nearest(&rows(1, "one").repeat(20), &rows(1, "one"), 9);
        assert_eq!(duplicates.closeness(), [0.0], "all neighbors are copies");
    }

    #[test]
    fn near_copies_are_all_copies_and_one_percent_of_unrelated_rows() {
        let reference = rows(4000, "reference");
        let neighbors = |queries: &[f32]| nearest(&reference, queries, NearCopies::NEIGHBORS);
        let test = NearCopies::calibrate(&neighbors(&rows(1000, "calibration"))).expect("enough images");
        assert_eq!(test.share(&neighbors(&rows(1000, "calibration"))), 0.01, "fraction of the calibration set");
        let unrelated = test.share(&neighbors(&rows(1000, "others")));
        assert!(unrelated < 0.025, "fraction among unrelated rows: {unrelated}");
        let copies: Vec<f32> = reference[..500 * DIM].iter().map(|x| x + 1e-3).collect();
        assert!(test.share(&neighbors(&copies)) > 0.95, "fraction of copies with a little noise");
        assert!(NearCopies::calibrate(&neighbors(&rows(99, "few"))).is_err(), "too few to calibrate with");
    }

    #[test]
    fn errors_name_the_input() {
        let reference = rows(10, "reference");
        let device = Device::default();
        let index = NeighborIndex::new(&reference, DIM, &device).expect("finite rows");
        let mut broken = rows(3, "queries");
        broken[2 * DIM + 4] = f32::INFINITY;
        let message = index.nearest(&broken, 1).expect_err("infinite").to_string();
        assert!(message.contains("number 4 of row 2 of the queries"), "{message}");
        let few = index.nearest(&reference, 11).expect_err("more neighbors than rows");
        assert!(matches!(few, Error::Shape { ref found, .. } if *found == [10, DIM]), "{few}");
        assert!(NeighborIndex::new(&[], DIM, &device).is_err(), "no rows");
        assert!(NeighborIndex::new(&reference[1..], DIM, &device).is_err(), "a part of a row");
    }
}
