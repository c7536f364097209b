//! Matrix products on one thread, on CPUs with fused multiply-add.
//!
//! The columns of `b` are packed in the order in which a block of the output reads them, in panels that stay in the L2
//! cache; the rows of `a` are read in place. The `gemm` crate packs both, which takes up to twice as long for a few
//! dozen rows.

use pulp::{Simd, WithSimd};

use super::{
    block::{Blocks, LANES, dispatch, width},
    matrix::View,
    scratch::Scratch,
};

/// Number of values of `b` at a time, half of an L2 cache.
const PANEL_VALUES: usize = 1 << 16;

/// Computes `out = a b`, or `out += a b` to `accumulate`. Each output is the sum of its products in order, each added
/// with one rounding, whatever the other sizes.
///
/// # Panics
/// If the values of a row of `a` or `b` are not adjacent.
///
/// # Safety
/// See [`multiply`](super::matrix::multiply).
pub(super) unsafe fn multiply_packed(out: *mut f32, row_stride: usize, a: View<'_>, b: View<'_>, accumulate: bool) {
    assert!(a.is_contiguous() && b.is_contiguous(), "a packed product reads rows");
    dispatch(Product { out, row_stride, a, b, accumulate });
}

struct Product<'a> {
    out: *mut f32,
    row_stride: usize,
    a: View<'a>,
    b: View<'a>,
    accumulate: bool,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match width::<S>() {
            64 => self.multiply::<S, 64>(simd),
            _ => self.multiply::<S, LANES>(simd),
        }
    }
}

impl Product<'_> {
    /// Multiplies panel by panel, each as wide as a block.
    #[inline(always)]
    fn multiply<S: Simd, const WIDTH: usize>(self, simd: S) {
        let Self { out, row_stride, a, b, accumulate } = self;
        let ([rows, depth], [_, columns]) = (a.shape(), b.shape());
        if rows == 0 {
            return;
        }
        let step = (PANEL_VALUES / depth.max(1)).next_multiple_of(WIDTH).clamp(WIDTH, columns.next_multiple_of(WIDTH));
        let mut panels = Scratch::new(depth * step);
        for first in (0..columns).step_by(step) {
            let range = first..columns.min(first + step);
            pack::<WIDTH>(b.columns(range.clone()), &mut panels);
            let panel = |column: usize| panels[(column - first) / WIDTH * WIDTH * depth..].as_ptr();
            let full = range.end - range.len() % LANES;
            let block = |column: usize, columns: usize| Blocks {
                rows,
                depth,
                columns,
                a: a.as_ptr(),
                a_strides: a.strides(),
                b: panel(column).wrapping_add((column - first) % WIDTH),
                b_stride: WIDTH,
                out: out.wrapping_add(column),
                out_stride: row_stride,
                accumulate,
            };
            for column in (first..full).step_by(WIDTH) {
                // SAFETY: the views hold `a` and `b`, and the caller guarantees the output.
                unsafe { block(column, WIDTH.min(full - column)).multiply(simd) };
            }
            if full < range.end {
                let mut rest = Scratch::new(rows * LANES);
                let out_of_line =
                    Blocks { out: rest.as_mut_ptr(), out_stride: LANES, accumulate: false, ..block(full, LANES) };
                // SAFETY: the view holds `a`, and the scratch the rest of the columns, padded with zeros.
                unsafe { out_of_line.multiply(simd) };
                for (row, sums) in rest.as_chunks::<LANES>().0.iter().enumerate() {
                    for (column, sum) in (full..range.end).zip(sums) {
                        // SAFETY: a position of the output, which the caller guarantees.
                        unsafe {
                            let out = out.add(row * row_stride + column);
                            *out = if accumulate { *out + sum } else { *sum };
                        }
                    }
                }
            }
        }
    }
}

/// Copies a matrix to panels of `WIDTH` columns, each row-major; zeros fill the last panel.
fn pack<const WIDTH: usize>(from: View<'_>, to: &mut [f32]) {
    let [rows, columns] = from.shape();
    let panels = &mut to.as_chunks_mut::<WIDTH>().0[..rows * columns.div_ceil(WIDTH)];
    for row in 0..rows {
        let (full, rest) = from.row(row).as_chunks::<WIDTH>();
        for (panel, values) in full.iter().enumerate() {
            panels[panel * rows + row] = *values;
        }
        if !rest.is_empty() {
            let last = &mut panels[full.len() * rows + row];
            last[..rest.len()].copy_from_slice(rest);
            last[rest.len()..].fill(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_gives_the_sums_in_order() {
        let numbers = |len: usize, step: usize| -> Vec<f32> {
            (0..len).map(|i| ((i * step) % 1009) as f32 / 504.5 - 1.0).collect()
        };
        for (rows, depth, columns) in [(1, 1, 1), (6, 3, 16), (7, 0, 17), (5, 64, 70), (25, 600, 33), (23, 30, 1300)] {
            let (a, b) = (numbers(rows * (depth + 2), 7919), numbers(depth * (columns + 3), 104_729));
            let (a, b) = (View::new(&a, [rows, depth], depth + 2), View::new(&b, [depth, columns], columns + 3));
            for start in [None, Some(0.5)] {
                let stride = columns + 1;
                let mut out = vec![0.5; rows * stride];
                // SAFETY: the rows lie in `out`.
                unsafe { multiply_packed(out.as_mut_ptr(), stride, a, b, start.is_some()) };
                for (row, found) in out.chunks_exact(stride).enumerate() {
                    let (between, found) = found.split_last().expect("a row");
                    for (column, &found) in found.iter().enumerate() {
                        let terms = (0..depth).map(|i| (a.row(row)[i], b.row(i)[column]));
                        let sum = terms.fold(0.0_f32, |sum, (a, b)| a.mul_add(b, sum));
                        let wanted = start.map_or(sum, |start| start + sum);
                        assert_eq!(found, wanted, "{rows} x {depth} x {columns}, row {row}, column {column}");
                    }
                    assert_eq!(*between, 0.5, "the gap between rows is not written");
                }
            }
        }
    }
}
