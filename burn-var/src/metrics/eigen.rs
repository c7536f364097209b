//! Eigendecomposition of a symmetric matrix on the host, in double precision.
//!
//! Burn has none. Householder reflections to tridiagonal form, then implicit QL with Wilkinson shifts: the classical
//! backward-stable pair (Golub and Van Loan, Matrix Computations, 8.3), `O(n^3)`, no sweeps over the whole matrix.

/// Most QL steps spent on one eigenvalue; in practice it is 1 to 3.
const MAX_STEPS: usize = 80;

/// `matrix = sum_i values[i] v_i v_i^T`, in no particular order.
pub(super) struct Eigen {
    /// The eigenvalues.
    pub(super) values: Vec<f64>,
    /// Row `i` is the eigenvector of `values[i]`, of length 1.
    pub(super) vectors: Vec<f64>,
}

/// Eigenvalues and eigenvectors of the symmetric `matrix` (`n x n`, finite); `None` if the iteration does not converge.
pub(super) fn decompose(matrix: Vec<f64>, n: usize) -> Option<Eigen> {
    let (mut tri, reflectors) = Tridiagonal::reduce(matrix, n);
    let mut vectors = reflectors.product(n);
    tri.diagonalise(|i, c, s| rotate_rows(&mut vectors, n, i, c, s))?;
    Some(Eigen { values: tri.diagonal, vectors })
}

/// Eigenvalues only: an order of magnitude faster than [`decompose`].
pub(super) fn eigenvalues(matrix: Vec<f64>, n: usize) -> Option<Vec<f64>> {
    let (mut tri, _) = Tridiagonal::reduce(matrix, n);
    tri.diagonalise(|_, _, _| ())?;
    Some(tri.diagonal)
}

/// A symmetric tridiagonal matrix; `off[i]` couples `i` and `i + 1`, and the last entry is unused.
struct Tridiagonal {
    diagonal: Vec<f64>,
    off: Vec<f64>,
}

/// `H_k = I - beta_k v_k v_k^T`; `v_k` is row `k` of `rows`, zero up to and including column `k`.
struct Reflectors {
    rows: Vec<f64>,
    beta: Vec<f64>,
}

impl Tridiagonal {
    fn reduce(mut a: Vec<f64>, n: usize) -> (Self, Reflectors) {
        let mut off = vec![0.0; n];
        let mut beta = vec![0.0; n];
        let mut p = vec![0.0; n];
        for k in 0..n.saturating_sub(1) {
            let (head, tail) = a.split_at_mut((k + 1) * n);
            let v = &mut head[k * n + k + 1..];
            let norm = dot(v, v).sqrt();
            off[k] = if v[0] > 0.0 { -norm } else { norm };
            if norm == 0.0 {
                continue;
            }
            // `v[0]` and `-off[k]` have one sign, so nothing cancels.
            v[0] -= off[k];
            beta[k] = 2.0 / dot(v, v);
            let p = &mut p[k + 1..];
            for (row, p) in tail.chunks_exact(n).zip(p.iter_mut()) {
                *p = beta[k] * dot(&row[k + 1..], v);
            }
            let half = 0.5 * beta[k] * dot(p, v);
            p.iter_mut().zip(v.iter()).for_each(|(p, v)| *p -= half * v);
            for (i, row) in tail.chunks_exact_mut(n).enumerate() {
                let (vi, pi) = (v[i], p[i]);
                for ((x, v), p) in row[k + 1..].iter_mut().zip(v.iter()).zip(p.iter()) {
                    *x -= vi * p + pi * v;
                }
            }
        }
        let diagonal = (0..n).map(|i| a[i * n + i]).collect();
        (Self { diagonal, off }, Reflectors { rows: a, beta })
    }

    /// Turns `diagonal` into the eigenvalues; `rotation(i, c, s)` hears of every rotation of the planes `i`, `i + 1`.
    fn diagonalise(&mut self, mut rotation: impl FnMut(usize, f64, f64)) -> Option<()> {
        let Self { diagonal: d, off: e } = self;
        let n = d.len();
        // Relative to the whole matrix: relative to its neighbours, an entry of a null space would never be small.
        let norm = d.iter().zip(e.iter()).fold(0.0_f64, |m, (d, e)| m.max(d.abs() + e.abs()));
        for l in 0..n {
            let mut steps = 0;
            loop {
                let small = |m: &usize| e[*m].abs() <= f64::EPSILON * norm;
                let m = (l..n - 1).find(small).unwrap_or(n - 1);
                if m == l {
                    break;
                }
                steps += 1;
                if steps > MAX_STEPS {
                    return None;
                }
                let half_gap = (d[l + 1] - d[l]) / (2.0 * e[l]);
                let shift = d[l] - e[l] / (half_gap + half_gap.hypot(1.0).copysign(half_gap));
                let (mut g, mut s, mut c, mut p) = (d[m] - shift, 1.0, 1.0, 0.0);
                let mut split = false;
                for i in (l..m).rev() {
                    let (f, b) = (s * e[i], c * e[i]);
                    let r = f64::hypot(f, g);
                    e[i + 1] = r;
                    if r == 0.0 {
                        // The matrix has come apart here: go on with its lower part.
                        d[i + 1] -= p;
                        e[m] = 0.0;
                        split = true;
                        break;
                    }
                    (s, c) = (f / r, g / r);
                    g = d[i + 1] - p;
                    let q = (d[i] - g) * s + 2.0 * c * b;
                    p = s * q;
                    d[i + 1] = g + p;
                    g = c * q - b;
                    rotation(i, c, s);
                }
                if !split {
                    d[l] -= p;
                    e[l] = g;
                    e[m] = 0.0;
                }
            }
        }
        Some(())
    }
}

impl Reflectors {
    /// `(H_0 H_1 ... )^T`, row-major: its rows become the eigenvectors.
    fn product(&self, n: usize) -> Vec<f64> {
        let mut q = vec![0.0; n * n];
        q.iter_mut().step_by(n + 1).for_each(|x| *x = 1.0);
        // From the last reflector to the first, only rows and columns behind `k` differ from the identity.
        for k in (0..n.saturating_sub(1)).rev() {
            let v = &self.rows[k * n + k + 1..(k + 1) * n];
            for row in q[(k + 1) * n..].chunks_exact_mut(n) {
                let row = &mut row[k + 1..];
                let scale = self.beta[k] * dot(row, v);
                row.iter_mut().zip(v).for_each(|(x, v)| *x -= scale * v);
            }
        }
        q
    }
}

fn rotate_rows(rows: &mut [f64], n: usize, i: usize, c: f64, s: f64) {
    let (low, high) = rows[i * n..(i + 2) * n].split_at_mut(n);
    for (a, b) in low.iter_mut().zip(high) {
        (*a, *b) = (c * *a - s * *b, s * *a + c * *b);
    }
}

/// Scalar product in eight partial sums, so that it vectorises.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a_blocks, b_blocks) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f64 = a_blocks.remainder().iter().zip(b_blocks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_blocks.zip(b_blocks) {
        for ((s, a), b) in sums.iter_mut().zip(a).zip(b) {
            *s += a * b;
        }
    }
    sums.iter().sum::<f64>() + tail
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Symmetric, entries in [-1, 1).
    fn symmetric(n: usize) -> Vec<f64> {
        let entry = |i: usize, j: usize| ((i * 7919 + j * 104_729 + 13) % 2003) as f64 / 1001.5 - 1.0;
        (0..n * n).map(|k| entry((k / n).min(k % n), (k / n).max(k % n))).collect()
    }

    #[test]
    fn rebuilds_the_matrix_from_orthonormal_vectors() {
        for n in [1, 2, 3, 17, 50] {
            let matrix = symmetric(n);
            let Eigen { values, vectors } = decompose(matrix.clone(), n).expect("converges");
            for i in 0..n {
                for j in 0..n {
                    let entry: f64 = (0..n).map(|k| values[k] * vectors[k * n + i] * vectors[k * n + j]).sum();
                    assert!((entry - matrix[i * n + j]).abs() < 1e-12, "n {n}: entry ({i}, {j}) is {entry}");
                    let product = dot(&vectors[i * n..(i + 1) * n], &vectors[j * n..(j + 1) * n]);
                    assert!((product - f64::from(i == j)).abs() < 1e-13, "n {n}: vectors {i} and {j}: {product}");
                }
            }
            let mut alone = eigenvalues(matrix, n).expect("converges");
            let mut together = values;
            alone.sort_by(f64::total_cmp);
            together.sort_by(f64::total_cmp);
            assert_eq!(alone, together, "n {n}: the eigenvalues with and without vectors");
        }
    }

    #[test]
    fn knows_the_second_difference_matrix() {
        let n = 31;
        let matrix = (0..n * n)
            .map(|k| match usize::abs_diff(k / n, k % n) {
                0 => 2.0,
                1 => -1.0,
                _ => 0.0,
            })
            .collect();
        let mut values = eigenvalues(matrix, n).expect("converges");
        values.sort_by(f64::total_cmp);
        for (i, value) in values.iter().enumerate() {
            let exact = 2.0 - 2.0 * ((i + 1) as f64 * std::f64::consts::PI / (n + 1) as f64).cos();
            assert!((value - exact).abs() < 1e-14 * 4.0, "eigenvalue {i}: {value}, exact {exact}");
        }
    }

    #[test]
    fn takes_matrices_without_rank() {
        assert_eq!(eigenvalues(vec![0.0; 25], 5), Some(vec![0.0; 5]), "the zero matrix");
        for (n, rank) in [(128, 8), (64, 1), (96, 20)] {
            let rows = symmetric(n);
            let gram = |k: usize| (0..rank).map(|r| rows[r * n + k / n] * rows[r * n + k % n]).sum();
            let mut values = eigenvalues((0..n * n).map(gram).collect(), n).expect("converges");
            values.sort_by(f64::total_cmp);
            assert!(values[n - rank] > 1e-3, "rank {rank} of {n}: {:?}", &values[n - rank..]);
            let null = values[..n - rank].iter().fold(0.0_f64, |m, v| m.max(v.abs()));
            assert!(null < 1e-11, "rank {rank} of {n}: the null space has {null}");
        }
        let u = [1.0, -2.0, 3.0, 0.5];
        let matrix = (0..16).map(|k| u[k / 4] * u[k % 4]).collect();
        let mut values = eigenvalues(matrix, 4).expect("converges");
        values.sort_by(f64::total_cmp);
        assert!((values[3] - dot(&u, &u)).abs() < 1e-14 * 15.0, "the one eigenvalue of rank 1: {values:?}");
        assert!(values[..3].iter().all(|v| v.abs() < 1e-14), "the null space of rank 1: {values:?}");
    }
}
