use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::solvers::EvdError;
use faer::{Accum, MatMut, MatRef, Side, get_global_parallelism};

use super::rows::check_rows;
use crate::{Error, Result};

/// Negative eigenvalues above this fraction of the largest count as rounding (published covariances are float32).
const NOISE: f64 = 1e-5;

/// Rows that are centered and added to the scatter at a time.
const BLOCK: usize = 1024;

/// Mean and scatter matrix of feature rows, accumulated in one pass or merged from parts.
///
/// Sums are in double precision and about the running mean (Chan, Golub and LeVeque 1983), so large means lose no
/// digits; parts can be merged in any order.
#[derive(Debug, Clone)]
pub struct FeatureStats {
    dim: usize,
    count: u64,
    mean: Vec<f64>,
    /// Sum of `(x - mean) (x - mean)^T`, row-major.
    scatter: Vec<f64>,
}

impl FeatureStats {
    /// Creates empty statistics for rows of `dim` features.
    pub fn new(dim: usize) -> Self {
        Self { dim, count: 0, mean: vec![0.0; dim], scatter: vec![0.0; dim * dim] }
    }

    /// Returns the number of rows added.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the number of features per row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Adds `rows`, `[n, dim]` in row-major order.
    ///
    /// # Errors
    /// [`Error::Shape`] if `rows` is not a whole number of rows; [`Error::NonFinite`], naming the row by its index in
    /// the whole sequence, if a feature is NaN or infinite. In both cases nothing is added.
    pub fn push(&mut self, rows: &[f32]) -> Result<()> {
        check_rows("features", rows, self.dim, self.count)?;
        rows.chunks(BLOCK * self.dim).for_each(|block| self.merge_same_dim(&Self::of_block(block, self.dim)));
        Ok(())
    }

    /// Merges the statistics of `other` into these.
    ///
    /// # Errors
    /// [`Error::Shape`] if `other` has rows of another length.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if other.dim != self.dim {
            return Err(Error::shape("features", format!("rows of {} numbers", self.dim), [other.dim]));
        }
        self.merge_same_dim(other);
        Ok(())
    }

    /// Computes the mean and the unbiased covariance (divided by `count - 1`).
    ///
    /// # Errors
    /// [`Error::Shape`] with fewer than two rows.
    pub fn gaussian(&self) -> Result<Gaussian> {
        if self.count < 2 {
            return Err(Error::shape(
                "feature rows",
                "2 rows or more for a covariance",
                [self.count as usize, self.dim],
            ));
        }
        let scale = 1.0 / (self.count - 1) as f64;
        let covariance = self.scatter.iter().map(|s| s * scale).collect();
        Ok(Gaussian { mean: self.mean.clone(), covariance })
    }

    /// Computes [`FeatureStats::gaussian`] with the covariance as in AID-VAR's released code: shrunk toward the
    /// identity matrix if there are fewer rows than features, and with 1e-6 added to the diagonal.
    ///
    /// # Errors
    /// The errors of [`FeatureStats::gaussian`].
    pub fn robust_gaussian(&self) -> Result<Gaussian> {
        let mut gaussian = self.gaussian()?;
        let (rows, dim) = (self.count as f64, self.dim as f64);
        let share = ((dim - rows) / (rows * dim)).clamp(0.0, 1.0);
        gaussian.covariance.iter_mut().for_each(|x| *x *= 1.0 - share);
        Ok(gaussian.with_ridge(share + 1e-6))
    }

    fn of_block(rows: &[f32], dim: usize) -> Self {
        let count = rows.len() / dim;
        let mut mean = vec![0.0; dim];
        for row in rows.chunks_exact(dim) {
            mean.iter_mut().zip(row).for_each(|(m, x)| *m += f64::from(*x));
        }
        mean.iter_mut().for_each(|m| *m /= count as f64);
        let centered: Vec<f64> =
            rows.chunks_exact(dim).flat_map(|row| row.iter().zip(&mean).map(|(x, m)| f64::from(*x) - m)).collect();
        let centered = MatRef::from_row_major_slice(&centered, count, dim);
        let mut scatter = vec![0.0; dim * dim];
        // Computes one half and mirrors it.
        triangular::matmul(
            MatMut::from_row_major_slice_mut(&mut scatter, dim, dim),
            BlockStructure::TriangularLower,
            Accum::Replace,
            centered.transpose(),
            BlockStructure::Rectangular,
            centered,
            BlockStructure::Rectangular,
            1.0,
            get_global_parallelism(),
        );
        for i in 0..dim {
            for j in 0..i {
                scatter[j * dim + i] = scatter[i * dim + j];
            }
        }
        Self { dim, count: count as u64, mean, scatter }
    }

    fn merge_same_dim(&mut self, other: &Self) {
        let total = self.count + other.count;
        if total == 0 {
            return;
        }
        let share = other.count as f64 / total as f64;
        let weight = self.count as f64 * share;
        let gap: Vec<f64> = other.mean.iter().zip(&self.mean).map(|(theirs, ours)| theirs - ours).collect();
        for ((row, theirs), gi) in
            self.scatter.chunks_exact_mut(self.dim).zip(other.scatter.chunks_exact(self.dim)).zip(&gap)
        {
            for ((s, t), gj) in row.iter_mut().zip(theirs).zip(&gap) {
                *s += t + weight * gi * gj;
            }
        }
        self.mean.iter_mut().zip(&gap).for_each(|(m, g)| *m += share * g);
        self.count = total;
    }
}

/// Normal distribution with the mean and covariance of a set of features.
#[derive(Debug, Clone, PartialEq)]
pub struct Gaussian {
    mean: Vec<f64>,
    covariance: Vec<f64>,
}

impl Gaussian {
    /// Creates a distribution from a mean `[dim]` and a covariance `[dim, dim]`, row-major, such as a published `mu`
    /// and `sigma`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the lengths do not fit; [`Error::NonFinite`] for NaN or infinity;
    /// [`Error::Covariance`] if the covariance is not symmetric.
    pub fn new(mean: Vec<f64>, covariance: Vec<f64>) -> Result<Self> {
        let dim = mean.len();
        if dim == 0 || covariance.len() != dim * dim {
            return Err(Error::shape("covariance", format!("{dim} x {dim} numbers, at least one"), [covariance.len()]));
        }
        if let Some(bad) = mean.iter().chain(&covariance).find(|x| !x.is_finite()) {
            return Err(Error::NonFinite {
                what: "a number of the mean or covariance".into(),
                found: *bad,
                hint: "compute the statistics again",
            });
        }
        let largest = covariance.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
        for i in 0..dim {
            for j in 0..i {
                let (below, above) = (covariance[i * dim + j], covariance[j * dim + i]);
                if (below - above).abs() > NOISE * largest {
                    let reason = format!("entry ({i}, {j}) is {below}, but ({j}, {i}) is {above}");
                    return Err(Error::Covariance(reason));
                }
            }
        }
        Ok(Self { mean, covariance })
    }

    /// Adds a number to the diagonal of the covariance. [`frechet_distance`] does not need it; other implementations
    /// add 1e-6.
    #[must_use]
    pub fn with_ridge(mut self, ridge: f64) -> Self {
        self.covariance.iter_mut().step_by(self.mean.len() + 1).for_each(|x| *x += ridge);
        self
    }

    /// Returns the mean, `[dim]`.
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// Returns the covariance, `[dim, dim]`, row-major.
    pub fn covariance(&self) -> &[f64] {
        &self.covariance
    }

    /// Computes the `count` directions of largest variance, the leading eigenvectors of the covariance: `[dim, count]`,
    /// row-major, by falling variance. They have unit length, and the entry of largest size is positive.
    ///
    /// # Errors
    /// [`Error::Shape`] for more directions than features; [`Error::Covariance`] if the eigenvalues do not converge.
    pub fn principal_directions(&self, count: usize) -> Result<Vec<f64>> {
        let dim = self.mean.len();
        if count > dim {
            return Err(Error::shape("directions", format!("at most {dim}, the number of features"), [count]));
        }
        let covariance = MatRef::from_row_major_slice(&self.covariance, dim, dim);
        let eigen = covariance.self_adjoint_eigen(Side::Lower).map_err(no_convergence)?;
        let mut directions = vec![0.0; dim * count];
        for k in 0..count {
            // Eigenvalues rise.
            let column: Vec<f64> = eigen.U().col(dim - 1 - k).iter().copied().collect();
            let largest = column.iter().fold(0.0_f64, |most, x| if x.abs() > most.abs() { *x } else { most });
            for (i, value) in column.iter().enumerate() {
                directions[i * count + k] = value * largest.signum();
            }
        }
        Ok(directions)
    }

    fn trace(&self) -> f64 {
        self.covariance.iter().step_by(self.mean.len() + 1).sum()
    }
}

/// Computes the squared Frechet distance of two normal distributions (Heusel et al. 2017, equation 6; Dowson and Landau
/// 1982):
///
/// ```text
/// |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)
/// ```
///
/// The last trace is the sum of the square roots of the eigenvalues of `R^T C2 R` with `C1 = R R^T`, both symmetric: no
/// general matrix root and no added diagonal. At full rank it agrees with a 40-digit calculation to `1e-12`; with fewer
/// rows than features any computation from covariances loses half of the digits, here to about `1e-6`.
///
/// The distance depends on the number of rows behind the statistics: compare only distances from equal numbers of rows.
///
/// # Errors
/// [`Error::Shape`] if the two differ in dimension; [`Error::Covariance`] if a covariance has a negative eigenvalue
/// beyond rounding.
pub fn frechet_distance(a: &Gaussian, b: &Gaussian) -> Result<f64> {
    let dim = a.mean.len();
    if b.mean.len() != dim {
        return Err(Error::shape("second mean", format!("{dim} numbers, as the first"), [b.mean.len()]));
    }
    let shift: f64 = a.mean.iter().zip(&b.mean).map(|(a, b)| (a - b).powi(2)).sum();
    let distance = shift + a.trace() + b.trace() - 2.0 * trace_of_root(&a.covariance, &b.covariance, dim)?;
    // Rounding can bring the distance of equal sets below zero, by about 1e-6 of the trace.
    Ok(distance.max(0.0))
}

/// Computes `tr (A B)^(1/2)`.
fn trace_of_root(a: &[f64], b: &[f64], dim: usize) -> Result<f64> {
    let [a, b] = [a, b].map(|matrix| MatRef::from_row_major_slice(matrix, dim, dim));
    let eigen = a.self_adjoint_eigen(Side::Lower).map_err(no_convergence)?;
    let values: Vec<f64> = eigen.S().column_vector().iter().copied().collect();
    let scales = roots(&values)?;
    // A = R R^T.
    let mut root = eigen.U().to_owned();
    for (column, scale) in root.col_iter_mut().zip(&scales) {
        column.iter_mut().for_each(|x| *x *= scale);
    }
    let product = root.transpose() * b * &root;
    Ok(roots(&product.self_adjoint_eigenvalues(Side::Lower).map_err(no_convergence)?)?.iter().sum())
}

/// Returns the square roots of eigenvalues; negative ones within rounding count as 0.
fn roots(values: &[f64]) -> Result<Vec<f64>> {
    let largest = values.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    match values.iter().find(|v| **v < -NOISE * largest) {
        Some(negative) => {
            Err(Error::Covariance(format!("it has the negative eigenvalue {negative} (the largest is {largest})")))
        }
        None => Ok(values.iter().map(|v| v.max(0.0).sqrt()).collect()),
    }
}

fn no_convergence(_: EvdError) -> Error {
    Error::Covariance("its eigenvalues do not converge".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIM: usize = 7;

    /// Returns deterministic rows with correlated columns.
    fn rows(count: usize, salt: usize) -> Vec<f32> {
        let noise = |k: usize| ((k * 7919 + salt * 31_337) % 10_007) as f32 / 5003.5 - 1.0;
        (0..count * DIM).map(|k| noise(k) + 0.5 * noise(k / DIM * DIM) + (k % DIM) as f32).collect()
    }

    fn stats(rows: &[f32]) -> FeatureStats {
        let mut stats = FeatureStats::new(DIM);
        stats.push(rows).expect("finite rows");
        stats
    }

    fn diagonal(mean: &[f64], variances: &[f64]) -> Gaussian {
        let n = mean.len();
        let mut covariance = vec![0.0; n * n];
        covariance.iter_mut().step_by(n + 1).zip(variances).for_each(|(c, v)| *c = *v);
        Gaussian::new(mean.to_vec(), covariance).expect("diagonal")
    }

    fn distance(a: &FeatureStats, b: &FeatureStats) -> f64 {
        frechet_distance(&a.gaussian().expect("rows"), &b.gaussian().expect("rows")).expect("distance")
    }

    #[test]
    fn principal_directions_are_eigenvectors() {
        // Variances of 3, 1 and 2 along the axes of a frame that is turned by 45 degrees in the first two coordinates.
        let root = 0.5_f64.sqrt();
        let frame = [[root, root, 0.0], [root, -root, 0.0], [0.0, 0.0, 1.0]];
        let variances = [3.0, 1.0, 2.0];
        let entry = |i: usize, j: usize| (0..3).map(|k| variances[k] * frame[k][i] * frame[k][j]).sum::<f64>();
        let covariance = (0..9).map(|at| entry(at / 3, at % 3)).collect();
        let gaussian = Gaussian::new(vec![0.0; 3], covariance).expect("symmetric");
        let found = gaussian.principal_directions(2).expect("converges");
        let expected = [root, 0.0, root, 0.0, 0.0, 1.0];
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{found} for {expected}");
        }
        assert!(gaussian.principal_directions(4).is_err(), "three features");
    }

    #[test]
    fn is_zero_for_equal_sets_and_the_shift_for_moved_ones() {
        let original = rows(101, 1);
        let moved: Vec<f32> = original.iter().enumerate().map(|(k, x)| x + (k % DIM) as f32).collect();
        assert!(distance(&stats(&original), &stats(&original)) < 1e-12, "a set against itself");
        let shift = (0..DIM).map(|k| (k * k) as f64).sum::<f64>();
        let found = distance(&stats(&original), &stats(&moved));
        assert!((found - shift).abs() < 1e-5, "moved by a vector of squared norm {shift}: {found}");
    }

    #[test]
    fn has_the_closed_form_of_diagonal_gaussians() {
        let a = diagonal(&[1.0, 2.0, 3.0], &[4.0, 0.25, 0.0]);
        let b = diagonal(&[0.0, 2.0, 5.0], &[9.0, 1.0, 1e-12]);
        let exact = 5.0 + 1.0 + 0.25 + 1e-12;
        let found = frechet_distance(&a, &b).expect("distance");
        assert!((found - exact).abs() < 1e-12, "sum of (m1 - m2)^2 + (s1 - s2)^2 is {exact}, found {found}");
    }

    #[test]
    fn is_symmetric_and_independent_of_row_order_and_splits() {
        let (a, b) = (rows(613, 1), rows(300, 2));
        let whole = distance(&stats(&a), &stats(&b));
        assert!((whole - distance(&stats(&b), &stats(&a))).abs() < 1e-10, "exchanged sets");
        let backwards: Vec<f32> = a.rchunks(DIM).flatten().copied().collect();
        assert!((whole - distance(&stats(&backwards), &stats(&b))).abs() < 1e-10, "rows in reverse");
        let mut parts = FeatureStats::new(DIM);
        for (first, last) in [(600, 613), (0, 1), (1, 600)] {
            parts.merge(&stats(&a[first * DIM..last * DIM])).expect("same dimension");
        }
        assert_eq!(parts.count(), 613, "all rows arrived");
        assert!((whole - distance(&parts, &stats(&b))).abs() < 1e-10, "merged from three parts");
    }

    #[test]
    fn is_precise_far_from_zero() {
        let near = rows(200, 3);
        let far: Vec<f32> = near.iter().map(|x| (x * 64.0).round() / 64.0 + 65_536.0).collect();
        let near: Vec<f32> = far.iter().map(|x| x - 65_536.0).collect();
        let (near, far) = (stats(&near).gaussian().expect("rows"), stats(&far).gaussian().expect("rows"));
        let worst = near.covariance().iter().zip(far.covariance()).fold(0.0_f64, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst < 1e-9, "covariance of rows moved by 65536 differs by {worst}");
    }

    #[test]
    fn is_stable_with_fewer_rows_than_features() {
        let few = stats(&rows(4, 1));
        assert!(distance(&few, &few) < 1e-6, "rank 3 of 7 against itself: {}", distance(&few, &few));
        let other = stats(&rows(5, 2));
        let (there, back) = (distance(&few, &other), distance(&other, &few));
        assert!((there - back).abs() < 1e-5 * there, "rank-deficient sets exchanged: {there} and {back}");
    }

    #[test]
    fn errors_name_the_input() {
        let mut broken = rows(9, 1);
        broken[5 * DIM + 2] = f32::NAN;
        let mut stats = stats(&rows(3, 1));
        let message = stats.push(&broken).expect_err("a NaN").to_string();
        assert!(message.contains("number 2 of row 8"), "{message}");
        assert_eq!(stats.count(), 3, "nothing was added");
        assert!(stats.push(&broken[..DIM + 1]).is_err(), "a row and a bit");
        assert!(FeatureStats::new(DIM).gaussian().is_err(), "no rows");
        assert!(stats.merge(&FeatureStats::new(DIM + 1)).is_err(), "another dimension");
        assert!(Gaussian::new(vec![0.0; 2], vec![1.0, 0.5, 0.0, 1.0]).is_err(), "not symmetric");
        let indefinite = diagonal(&[0.0, 0.0], &[1.0, -0.5]);
        let message = frechet_distance(&indefinite, &indefinite).expect_err("not a covariance").to_string();
        assert!(message.contains("-0.5"), "{message}");
    }
}
