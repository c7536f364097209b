//! Matrix products on one thread, for some dozens to hundreds of rows, on CPUs that multiply and add in one instruction.
//!
//! The columns of `b` are brought into the order in which a small block of the output needs them, in parts that stay in
//! the second cache; the rows of `a` are read where they are. The `gemm` crate brings both into order and is as fast
//! from about 500 rows on, but takes up to twice as long for 50.

use super::{
    matrix::View,
    scratch::Scratch,
    simd::{has_avx512, vectorised},
};

/// Columns of a block of the output, a few vectors wide on every CPU.
const WIDTH: usize = 16;
/// Values of `b` at a time, half of a small second cache.
const PANEL_VALUES: usize = 1 << 15;

/// Where a product goes.
struct Output {
    first: *mut f32,
    row_stride: usize,
    accumulate: bool,
}

/// `out = a b`, or `out += a b` to `accumulate`. A number of it is the sum of its products in order, each added in one
/// rounding, whatever else there is to compute.
///
/// # Panics
/// When the values of a row of `a` or `b` lie apart.
///
/// # Safety
/// As [`multiply`](super::matrix::multiply).
pub(super) unsafe fn multiply_packed(out: *mut f32, row_stride: usize, a: View<'_>, b: View<'_>, accumulate: bool) {
    assert!(a.is_contiguous() && b.is_contiguous(), "a packed product reads rows");
    let [depth, columns] = b.shape();
    let step = (PANEL_VALUES / depth.max(1)).next_multiple_of(WIDTH).clamp(WIDTH, columns.next_multiple_of(WIDTH));
    let mut panels = Scratch::new(depth * step);
    for first in (0..columns).step_by(step) {
        let range = first..columns.min(first + step);
        pack(b.columns(range.clone()), &mut panels);
        let out = Output { first: out.wrapping_add(first), row_stride, accumulate };
        // As many sums as fill three quarters of the vector registers.
        match has_avx512() {
            true => blocks_of_12(a, &panels, range.len(), &out),
            false => blocks_of_6(a, &panels, range.len(), &out),
        }
    }
}

/// Copies a matrix to panels of [`WIDTH`] columns, one after the other, each row by row; beyond the last column are
/// zeros.
fn pack(from: View<'_>, to: &mut [f32]) {
    let [rows, columns] = from.shape();
    let panels = &mut to.as_chunks_mut::<WIDTH>().0[..rows * columns.div_ceil(WIDTH)];
    for row in 0..rows {
        let (full, rest) = from.row(row).as_chunks::<WIDTH>();
        for (panel, values) in full.iter().enumerate() {
            panels[panel * rows + row] = *values;
        }
        if !rest.is_empty() {
            let last = &mut panels[full.len() * rows + row];
            *last = [0.0; WIDTH];
            last[..rest.len()].copy_from_slice(rest);
        }
    }
}

vectorised! {
    fn blocks_of_6(a: View<'_>, panels: &[f32], columns: usize, out: &Output) {
        blocks::<6>(a, panels, columns, out);
    }

    fn blocks_of_12(a: View<'_>, panels: &[f32], columns: usize, out: &Output) {
        blocks::<12>(a, panels, columns, out);
    }
}

/// All rows of the output, for the columns in `panels`.
#[inline(always)]
fn blocks<const HEIGHT: usize>(a: View<'_>, panels: &[f32], columns: usize, out: &Output) {
    let [rows, depth] = a.shape();
    let mut row = 0;
    while row < rows {
        let block = Block { a, row, panels, columns, out };
        row += match rows - row {
            left if left >= HEIGHT => block.fill::<HEIGHT>(depth),
            4.. => block.fill::<4>(depth),
            2.. => block.fill::<2>(depth),
            _ => block.fill::<1>(depth),
        };
    }
}

/// Some rows of the output, for the columns in `panels`.
struct Block<'a> {
    a: View<'a>,
    row: usize,
    panels: &'a [f32],
    columns: usize,
    out: &'a Output,
}

impl Block<'_> {
    /// Fills `R` rows, and says how many those are.
    #[inline(always)]
    fn fill<const R: usize>(&self, depth: usize) -> usize {
        let rows: [&[f32]; R] = core::array::from_fn(|row| &self.a.row(self.row + row)[..depth]);
        let panels = self.panels.as_chunks::<WIDTH>().0;
        for column in (0..self.columns).step_by(WIDTH) {
            let panel = &panels[column / WIDTH * depth..][..depth];
            let mut sums = [[0.0; WIDTH]; R];
            for (depth, line) in panel.iter().enumerate() {
                for (sums, row) in sums.iter_mut().zip(&rows) {
                    // SAFETY: rows and panel have the same length. Checked, this takes a third longer.
                    let x = unsafe { *row.get_unchecked(depth) };
                    for (sum, y) in sums.iter_mut().zip(line) {
                        *sum = x.mul_add(*y, *sum);
                    }
                }
            }
            let out = self.out.first.wrapping_add(self.row * self.out.row_stride + column);
            match self.columns - column {
                WIDTH.. => self.write(out, &sums),
                // Out of line: the sums would have to live in memory for it, and not in registers.
                width => self.write_part(out, sums, width),
            }
        }
        R
    }

    #[inline(always)]
    fn write<const R: usize>(&self, out: *mut f32, sums: &[[f32; WIDTH]; R]) {
        for (row, sums) in sums.iter().enumerate() {
            // SAFETY: whoever asked for the product vouches for its rows.
            let out = unsafe { &mut *out.wrapping_add(row * self.out.row_stride).cast::<[f32; WIDTH]>() };
            match self.out.accumulate {
                true => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
                false => *out = *sums,
            }
        }
    }

    /// The first `width` columns only.
    #[inline(never)]
    fn write_part<const R: usize>(&self, out: *mut f32, sums: [[f32; WIDTH]; R], width: usize) {
        for (row, sums) in sums.iter().enumerate() {
            // SAFETY: as in `write`.
            let out = unsafe { core::slice::from_raw_parts_mut(out.wrapping_add(row * self.out.row_stride), width) };
            match self.out.accumulate {
                true => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
                false => out.copy_from_slice(&sums[..width]),
            }
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
                    assert_eq!(*between, 0.5, "what lies between rows stays as it is");
                }
            }
        }
    }
}
