//! Fidelity and diversity from balls around features.

use burn::tensor::Device;
use rayon::prelude::*;

use super::neighbors::{Block, NeighborIndex};
use super::rows::check_rows;
use crate::Result;

/// Distances in single precision within this fraction of a radius are recomputed in double precision.
const DOUBT: f32 = 1e-4;

/// Set of features and the balls that it covers: around each row, up to its `k`-th nearest other row.
#[derive(Debug, Clone)]
pub struct Manifold<'a> {
    index: NeighborIndex<'a>,
    dim: usize,
    /// Squared radius of each ball.
    radii: Vec<f64>,
}

/// Positions of queries relative to a [`Manifold`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// Number of balls that contain each query, borders included.
    pub balls: Vec<usize>,
    /// For each row, `true` if its ball contains any query.
    pub reached: Vec<bool>,
}

impl<'a> Manifold<'a> {
    /// Creates the balls of `rows`, `[n, dim]` in row-major order; matrix products run on `device`.
    ///
    /// # Errors
    /// The errors of [`NeighborIndex::new`]; [`Error::Config`](crate::Error::Config) if `k` is 0;
    /// [`Error::Shape`](crate::Error::Shape) for `k` rows or fewer.
    pub fn new(rows: &'a [f32], dim: usize, k: usize, device: &Device) -> Result<Self> {
        let index = NeighborIndex::new(rows, dim, device)?;
        index.check_count(k, k + 1)?;
        // The nearest neighbor of a row is the row itself.
        let nearest = index.nearest_own(k + 1)?;
        let radii = (0..nearest.count()).map(|i| nearest.distances(i)[k].powi(2)).collect();
        Ok(Self { index, dim, radii })
    }

    /// Returns the squared radius of each row's ball.
    pub fn radii(&self) -> &[f64] {
        &self.radii
    }

    /// Locates `queries`, `[m, dim]`, in the balls.
    ///
    /// # Errors
    /// The errors of [`NeighborIndex::nearest`], except for those of `k`.
    pub fn locate(&self, queries: &[f32]) -> Result<Membership> {
        check_rows("queries", queries, self.dim, 0)?;
        let [located, _] = self.meet(queries, None)?;
        Ok(located)
    }

    /// Locates the rows of `other` in these balls, and these rows in the balls of `other`; every distance is computed
    /// once.
    ///
    /// # Errors
    /// The errors of [`Manifold::locate`].
    pub fn compare(&self, other: &Manifold<'_>) -> Result<[Membership; 2]> {
        self.meet(other.index.rows(), Some(&other.radii))
    }

    /// Locates queries in these balls, and these rows in the balls around queries, if there are any.
    fn meet(&self, queries: &[f32], radii: Option<&[f64]>) -> Result<[Membership; 2]> {
        let query = |i: usize| &queries[i * self.dim..][..self.dim];
        let count = queries.len() / self.dim;
        let squares: Vec<f32> = (0..count).into_par_iter().map(|i| self.index.centered_square(query(i))).collect();
        let empty = |own: usize, others: usize| Membership { balls: vec![0; own], reached: vec![false; others] };
        let [mut here, mut there] = [empty(count, self.radii.len()), empty(self.radii.len(), count)];
        self.index.scores(queries, &mut |Block { first_query, first_row, rows, scores }| {
            let found = scores.par_chunks_exact(rows).enumerate().map(|(i, scores)| {
                let i = first_query + i;
                let of_query = radii.map(|radii| radii[i]);
                let hit = |(row, (score, radius)): (usize, (&f32, &f64))| {
                    let (distance, row) = (score + squares[i], first_row + row);
                    let inside = |radius: f64| {
                        let limit = radius as f32;
                        // Cancellation, and with it the rounding, is of the order of the squared lengths.
                        match (distance - limit).abs() > DOUBT * (limit + squares[i]) {
                            true => distance <= limit,
                            false => self.index.square(query(i), row) <= radius,
                        }
                    };
                    let hits = [inside(*radius), of_query.is_some_and(inside)];
                    hits.contains(&true).then_some((row, hits))
                };
                scores.iter().zip(&self.radii[first_row..]).enumerate().filter_map(hit).collect::<Vec<_>>()
            });
            let found: Vec<Vec<(usize, [bool; 2])>> = found.collect();
            for (i, hits) in (first_query..).zip(found) {
                for (row, [of_row, of_query]) in hits {
                    here.balls[i] += usize::from(of_row);
                    here.reached[row] |= of_row;
                    there.balls[row] += usize::from(of_query);
                    there.reached[i] |= of_query;
                }
            }
        })?;
        Ok([here, there])
    }
}

/// Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020). All lie in `[0, 1]`
/// except density, which can exceed 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrecisionRecall {
    /// Fraction of generated rows in any ball of the real rows: fidelity.
    pub precision: f64,
    /// Fraction of real rows in any ball of the generated rows: diversity.
    pub recall: f64,
    /// Mean number of real rows' balls that contain a generated row, divided by `k`: precision that outliers do not
    /// inflate.
    pub density: f64,
    /// Fraction of real rows whose ball contains any generated row.
    pub coverage: f64,
}

impl PrecisionRecall {
    /// Number of neighbors for [`PrecisionRecall::precision`] and [`PrecisionRecall::recall`] in the guided-diffusion
    /// evaluator.
    pub const NEIGHBORS: usize = 3;

    /// Compares `generated` with `real` rows, `[n, dim]` each, by balls of `k` neighbors.
    ///
    /// The results depend on the number of rows: compare only those of equal numbers.
    ///
    /// # Errors
    /// The errors of [`Manifold::new`] and [`Manifold::locate`].
    pub fn of(real: &[f32], generated: &[f32], dim: usize, k: usize, device: &Device) -> Result<Self> {
        let [real, generated] = [Manifold::new(real, dim, k, device)?, Manifold::new(generated, dim, k, device)?];
        let [Membership { balls, reached }, Membership { balls: recalled, .. }] = real.compare(&generated)?;
        let share = |count: usize, of: usize| count as f64 / of as f64;
        Ok(Self {
            precision: share(balls.iter().filter(|balls| **balls > 0).count(), balls.len()),
            recall: share(recalled.iter().filter(|balls| **balls > 0).count(), recalled.len()),
            density: share(balls.iter().sum(), k * balls.len()),
            coverage: share(reached.iter().filter(|reached| **reached).count(), reached.len()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::rng::Rng;

    const DIM: usize = 4;

    fn rows(count: usize, purpose: &str, spread: f64) -> Vec<f32> {
        let mut rng = Rng::new(1, purpose, 0);
        (0..count * DIM).map(|_| (rng.normal() * spread) as f32 + 50.0).collect()
    }

    fn coverage(real: &[f32], generated: &[f32], k: usize) -> PrecisionRecall {
        PrecisionRecall::of(real, generated, DIM, k, &Device::default()).expect("finite rows")
    }

    #[test]
    fn a_set_covers_itself() {
        let real = rows(300, "real", 1.0);
        let found = coverage(&real, &real, 3);
        assert_eq!((found.precision, found.recall, found.coverage), (1.0, 1.0, 1.0), "{found:?}");
        assert!(found.density >= 1.0, "each row lies in its own ball and in those of its neighbors: {found:?}");
    }

    #[test]
    fn unrelated_rows_are_not_covered() {
        let far: Vec<f32> = rows(200, "far", 1.0).iter().map(|x| x + 1e3).collect();
        let found = coverage(&rows(300, "real", 1.0), &far, 3);
        let nothing = PrecisionRecall { precision: 0.0, recall: 0.0, density: 0.0, coverage: 0.0 };
        assert_eq!(found, nothing);
    }

    #[test]
    fn low_diversity_has_high_precision_and_low_recall() {
        let (real, narrow) = (rows(400, "real", 1.0), rows(300, "narrow", 0.3));
        let found = coverage(&real, &narrow, 3);
        assert!(found.precision > 0.9 && found.recall < 0.5 && found.coverage < 0.5, "{found:?}");
    }

    #[test]
    fn equals_the_definition_in_any_order() {
        let (real, generated) = (rows(150, "real", 1.0), rows(130, "generated", 1.2));
        let square =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>();
        let radius = |set: &[f32], row: &[f32], k: usize| {
            let mut all: Vec<f64> = set.chunks(DIM).map(|other| square(row, other)).collect();
            all.sort_by(f64::total_cmp);
            all[k]
        };
        let share = |of: &[f32], balls: &[f32], k: usize| {
            let inside = |row: &&[f32]| balls.chunks(DIM).any(|ball| square(row, ball) <= radius(balls, ball, k));
            of.chunks(DIM).filter(inside).count() as f64 / (of.len() / DIM) as f64
        };
        for k in [1, 3, 5] {
            let found = coverage(&real, &generated, k);
            assert_eq!(found.precision, share(&generated, &real, k), "precision, {k} neighbors");
            assert_eq!(found.recall, share(&real, &generated, k), "recall, {k} neighbors");
            let reached = |ball: &&[f32]| generated.chunks(DIM).any(|row| square(row, ball) <= radius(&real, ball, k));
            let coverage_of_definition = real.chunks(DIM).filter(reached).count() as f64 / 150.0;
            assert_eq!(found.coverage, coverage_of_definition, "coverage, {k} neighbors");
            let turned: Vec<f32> = generated.rchunks(DIM).flatten().copied().collect();
            assert_eq!(found, coverage(&real, &turned, k), "rows in reverse");
        }
    }

    #[test]
    fn errors_name_the_input() {
        let real = rows(5, "real", 1.0);
        let device = Device::default();
        let error = |k| PrecisionRecall::of(&real, &real, DIM, k, &device).expect_err("impossible");
        assert!(matches!(error(0), Error::Config { ref name, .. } if name == "number of neighbors"), "{}", error(0));
        let few = error(5);
        assert!(matches!(few, Error::Shape { ref found, .. } if *found == [5, DIM]), "{few}");
        assert!(few.to_string().contains("6 rows or more, for 5 neighbors"), "{few}");
        let mut broken = real.clone();
        broken[7] = f32::NAN;
        assert!(PrecisionRecall::of(&real, &broken, DIM, 3, &device).is_err(), "a NaN");
        assert!(PrecisionRecall::of(&real, &[], DIM, 3, &device).is_err(), "no rows");
    }
}
