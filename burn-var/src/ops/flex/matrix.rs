//! Matrix products on one thread, through the `gemm` crate.

use core::ops::Range;

use rayon::prelude::*;

/// Borrowed matrix.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    values: &'a [f32],
    shape: [usize; 2],
    strides: [usize; 2],
}

impl<'a> View<'a> {
    /// Creates a row-major matrix whose rows are `row_stride` values apart.
    pub(super) fn new(values: &'a [f32], [rows, columns]: [usize; 2], row_stride: usize) -> Self {
        let needed = if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row_stride + columns };
        assert!(values.len() >= needed, "{} values do not hold {rows} rows of {columns}", values.len());
        Self { values, shape: [rows, columns], strides: [row_stride, 1] }
    }

    pub(super) fn shape(&self) -> [usize; 2] {
        self.shape
    }

    pub(super) fn as_ptr(&self) -> *const f32 {
        self.values.as_ptr()
    }

    /// Returns the stride between rows, and between columns.
    pub(super) fn strides(&self) -> [usize; 2] {
        self.strides
    }

    pub(super) fn rows(self, range: Range<usize>) -> Self {
        let values = &self.values[range.start * self.strides[0]..];
        Self { values, shape: [range.len(), self.shape[1]], ..self }
    }

    /// Returns `true` if the values of a row are adjacent.
    pub(super) fn is_contiguous(&self) -> bool {
        self.strides[1] == 1
    }

    /// Returns a row of a matrix that [is contiguous](View::is_contiguous).
    pub(super) fn row(&self, row: usize) -> &'a [f32] {
        debug_assert!(self.is_contiguous(), "the values of a row are not adjacent");
        &self.values[row * self.strides[0]..][..self.shape[1]]
    }

    pub(super) fn columns(self, range: Range<usize>) -> Self {
        self.transposed().rows(range).transposed()
    }

    pub(super) fn transposed(self) -> Self {
        let ([rows, columns], [down, right]) = (self.shape, self.strides);
        Self { shape: [columns, rows], strides: [right, down], ..self }
    }
}

/// Computes `out = a b`, or `out += a b` to `accumulate`; the rows of `out` are `row_stride` values apart.
///
/// # Safety
/// `out` must be valid for writes (and reads, to accumulate) of all those rows, and nothing else may access them
/// meanwhile.
pub(super) unsafe fn multiply(out: *mut f32, row_stride: usize, a: View<'_>, b: View<'_>, accumulate: bool) {
    let ([m, k], [_, n]) = (a.shape, b.shape);
    assert_eq!(k, b.shape[0], "inner sizes of a product");
    let [a_down, a_right] = a.strides.map(|stride| stride as isize);
    let [b_down, b_right] = b.strides.map(|stride| stride as isize);
    // SAFETY: the views have checked their bounds, the caller guarantees the output.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            row_stride as isize,
            accumulate,
            a.values.as_ptr(),
            a_right,
            a_down,
            b.values.as_ptr(),
            b_right,
            b_down,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Memory of an output that several threads fill, each its own part.
pub(super) struct Shared(*mut f32);

// SAFETY: sharing the pointer is safe; code that writes through it must ensure that writes do not overlap.
unsafe impl Sync for Shared {}

impl Shared {
    pub(super) fn new(first: *mut f32) -> Self {
        Self(first)
    }

    /// A method, so that closures borrow the struct and not the pointer, which is not `Sync`.
    pub(super) fn at(&self, index: usize) -> *mut f32 {
        self.0.wrapping_add(index)
    }
}

/// Computes [`multiply`] into a slice of adjacent rows.
pub(super) fn multiply_into(out: &mut [f32], a: View<'_>, b: View<'_>, accumulate: bool) {
    let [rows, columns] = [a.shape[0], b.shape[1]];
    assert!(out.len() >= rows * columns, "{} values do not hold {rows} rows of {columns}", out.len());
    // SAFETY: the slice holds all rows and is borrowed by this call alone.
    unsafe { multiply(out.as_mut_ptr(), columns, a, b, accumulate) }
}

/// Side of the tiles of a transposition: one cache line.
const TILE: usize = 16;

/// Copies a matrix transposed, without gaps, tile by tile.
pub(super) fn transpose(from: View<'_>, to: &mut [f32]) {
    let ([rows, columns], [stride, _]) = (from.shape, from.strides);
    for first in (0..columns).step_by(TILE) {
        for top in (0..rows).step_by(TILE) {
            for column in first..columns.min(first + TILE) {
                let line = &mut to[column * rows..][top..rows.min(top + TILE)];
                for (row, value) in (top..).zip(line) {
                    *value = from.values[row * stride + column];
                }
            }
        }
    }
}

/// Computes [`transpose`] on all threads.
pub(super) fn transpose_in_parallel(from: View<'_>, to: &mut [f32]) {
    let [rows, columns] = from.shape();
    to.par_chunks_mut((TILE * rows).max(1)).enumerate().for_each(|(index, lines)| {
        let first = index * TILE;
        transpose(from.columns(first..columns.min(first + TILE)), lines);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_with_gaps_and_transposes() {
        // [1 2 3; 4 5 6] in rows of 4
        let a = [1., 2., 3., 9., 4., 5., 6.];
        let a = View::new(&a, [2, 3], 4);
        let b = [1., 0., 2., 0., 1., -1.];
        let b = View::new(&b, [2, 3], 3).transposed();
        let mut out = [100.0; 4];
        multiply_into(&mut out, a, b, false);
        assert_eq!(out, [7., -1., 16., -1.], "a bT");
        multiply_into(&mut out, a, b, true);
        assert_eq!(out, [14., -2., 32., -2.], "a bT added to itself");
    }

    #[test]
    fn transpose_of_more_than_a_block() {
        let (rows, columns, stride) = (19, 37, 41);
        let from: Vec<f32> = (0..rows * stride).map(|i| i as f32).collect();
        let mut to = vec![0.0; rows * columns];
        transpose(View::new(&from, [rows, columns], stride), &mut to);
        let mut also = vec![0.0; rows * columns];
        transpose_in_parallel(View::new(&from, [rows, columns], stride), &mut also);
        assert_eq!(to, also, "on all threads");
        for row in 0..rows {
            for column in 0..columns {
                assert_eq!(to[column * rows + row], (row * stride + column) as f32, "entry {row}, {column}");
            }
        }
    }
}
