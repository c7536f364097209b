use core::ops::Range;

use rayon::prelude::*;

use super::{
    bridge::{Array, Kernel},
    matrix::{Shared, View, multiply, transpose_in_parallel},
    packed::multiply_packed,
    scratch::Scratch,
    simd::{add, has_avx512, has_fma, vectorized},
};

/// Minimum rows and columns per piece of a product; columns are those of the widest block.
const ROWS: usize = 64;
const COLUMNS: usize = 64;
/// Pieces of a product per thread: more of them balance the work better, fewer of them repack less.
const PIECES: usize = 4;
/// Number of terms per partial sum: not longer than those of the `gemm` crate, which adds its own parts in the same
/// way.
const DEPTH: usize = 512;
/// Maximum number of rows for which the columns are read in place.
const FEW_ROWS: usize = 10;
/// Maximum number of rows for which the `gemm` crate is slower, without and with AVX-512, for which it has its own
/// kernel.
const SOME_ROWS: [usize; 2] = [512, 48];
/// Number of rows per partial column sum.
const SUMMED: usize = 256;

/// Linear layer, `x weight + bias` over the last axis; an absent bias is empty.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Linear;

impl Kernel<3> for Linear {
    /// The input and the weight.
    type Saved = [Array; 2];

    fn forward(&self, [x, weight, bias]: [Array; 3]) -> (Array, [Array; 2]) {
        let [inputs, outputs] = weight.dims();
        let mut shape = x.shape();
        let last = shape.num_dims() - 1;
        assert_eq!(shape[last], inputs, "linear: channels of the input, weight {:?}", weight.shape());
        shape[last] = outputs;
        let bias = Some(bias.values()).filter(|bias| !bias.is_empty());
        assert!(bias.is_none_or(|bias| bias.len() == outputs), "linear: length of the bias");
        let rows = x.values().len() / inputs.max(1);
        let x_view = View::new(x.values(), [rows, inputs], inputs);
        let out = product(x_view, View::new(weight.values(), [inputs, outputs], outputs), bias);
        (Array::new(out, shape), [x, weight])
    }

    fn backward(&self, [x, weight]: [Array; 2], grad: Array, wanted: [bool; 3]) -> [Option<Array>; 3] {
        let [inputs, outputs] = weight.dims();
        let rows = x.values().len() / inputs.max(1);
        let grads = View::new(grad.values(), [rows, outputs], outputs);
        let [want_x, want_weight, want_bias] = wanted;
        let x_grad = want_x.then(|| {
            // Transposed once, since every piece of rows reads all of it.
            let mut transposed = Scratch::new(inputs * outputs);
            transpose_in_parallel(View::new(weight.values(), [inputs, outputs], outputs), &mut transposed);
            Array::new(product(grads, View::new(&transposed, [outputs, inputs], inputs), None), x.shape())
        });
        let weight_grad = want_weight.then(|| {
            let x = View::new(x.values(), [rows, inputs], inputs).transposed();
            Array::new(product(x, grads, None), weight.shape())
        });
        let bias_grad = want_bias.then(|| Array::new(column_sums(&grad, outputs), [outputs]));
        [x_grad, weight_grad, bias_grad]
    }
}

/// Computes `a b + bias`, piece by piece on all threads. Each row depends on that row of `a` alone, to the bit, and not
/// on the number of rows: an image is the same in every batch.
pub(super) fn product(a: View<'_>, b: View<'_>, bias: Option<&[f32]>) -> Vec<f32> {
    let ([rows, _], [_, columns]) = (a.shape(), b.shape());
    let mut out: Vec<f32> = Vec::with_capacity(rows * columns);
    let shared = Shared::new(out.as_mut_ptr());
    pieces(rows, columns, rayon::current_num_threads()).into_par_iter().for_each(|(down, across)| {
        let first = shared.at(down.start * columns + across.start);
        let bias = bias.map(|bias| &bias[across.clone()]);
        // SAFETY: these rows and columns of the output belong to no other piece.
        unsafe { piece(first, columns, a.rows(down), b.columns(across), bias) };
    });
    // SAFETY: the pieces cover the output.
    unsafe { out.set_len(rows * columns) };
    out
}

/// Writes `a b + bias` to rows that are `row_stride` values apart.
///
/// # Safety
/// `out` must be valid for writes of all those rows, and nothing else may access them meanwhile.
pub(super) unsafe fn piece(out: *mut f32, row_stride: usize, a: View<'_>, b: View<'_>, bias: Option<&[f32]>) {
    if let Some(bias) = bias {
        for row in 0..a.shape()[0] {
            // SAFETY: a row of the output.
            unsafe { bias.as_ptr().copy_to_nonoverlapping(out.wrapping_add(row * row_stride), bias.len()) };
        }
    }
    // SAFETY: guaranteed by the caller; with a bias all of it has been written.
    unsafe { multiply_by_parts(out, row_stride, a, b, bias.is_some()) };
}

/// Computes `out = a b`, or `out += a b` to `accumulate`, with the method that suits the number of rows. All methods
/// sum [`DEPTH`] terms from zero, in order and with one rounding per term, and add this to the previous sum.
///
/// # Safety
/// See [`multiply`].
pub(super) unsafe fn multiply_by_parts(
    out: *mut f32,
    row_stride: usize,
    a: View<'_>,
    b: View<'_>,
    mut accumulate: bool,
) {
    let [rows, depth] = a.shape();
    let multiply = match a.is_contiguous() && b.is_contiguous() && has_fma() {
        true if rows <= FEW_ROWS => multiply_few_rows,
        true if rows <= SOME_ROWS[usize::from(has_avx512())] => multiply_packed,
        _ => multiply,
    };
    for first in (0..depth.max(1)).step_by(DEPTH) {
        let part = first..depth.min(first + DEPTH);
        // SAFETY: guaranteed by the caller.
        unsafe { multiply(out, row_stride, a.columns(part.clone()), b.rows(part), accumulate) };
        accumulate = true;
    }
}

/// Splits a matrix into pieces for `threads`, without splitting a sum: among the splits into [`PIECES`] per thread, the
/// one with the least memory traffic. Rows are read once for every piece across, columns once for every piece down;
/// columns count twice, since they come from memory and rows from the cache.
fn pieces(rows: usize, columns: usize, threads: usize) -> Vec<(Range<usize>, Range<usize>)> {
    let cut = |len: usize, parts: usize, grain: usize| {
        let step = len.div_ceil(parts.max(1)).max(1).next_multiple_of(grain);
        (0..len).step_by(step).map(move |first| first..len.min(first + step))
    };
    let wanted = (PIECES * threads).next_power_of_two();
    let most = |len: usize, least: usize| (len / least).clamp(1, wanted);
    let ways = (0..=wanted.ilog2()).map(|power| {
        let down = (1 << power).min(most(rows, ROWS));
        (down, (wanted >> power).min(most(columns, COLUMNS)))
    });
    let cost = |&(down, across): &(usize, usize)| {
        // Fewer pieces leave threads without work.
        (wanted / (down * across), rows * across + 2 * columns * down)
    };
    let (down, across) = ways.min_by_key(cost).unwrap_or((1, 1));
    // A few columns beyond full blocks would take as long as a block.
    let across = cut(columns, across, COLUMNS).collect::<Vec<_>>();
    cut(rows, down, 1).flat_map(|rows| across.iter().map(move |columns| (rows.clone(), columns.clone()))).collect()
}

/// Computes `out = a b`, or `out += a b` to `accumulate`, for so few rows that repacking the columns of `b` does not
/// pay.
///
/// # Safety
/// See [`multiply`].
unsafe fn multiply_few_rows(out: *mut f32, row_stride: usize, a: View<'_>, b: View<'_>, accumulate: bool) {
    let ([rows, depth], [_, columns]) = (a.shape(), b.shape());
    let mut sums = Scratch::new(rows * columns);
    sums.fill(0.0);
    for first in (0..depth).step_by(4) {
        for (row, sums) in sums.chunks_exact_mut(columns.max(1)).enumerate() {
            let x = &a.row(row)[first..];
            match depth - first {
                1 => add_one(x[0], b.row(first), sums),
                2 => add_two([x[0], x[1]], [0, 1].map(|i| b.row(first + i)), sums),
                3 => {
                    add_two([x[0], x[1]], [0, 1].map(|i| b.row(first + i)), sums);
                    add_one(x[2], b.row(first + 2), sums);
                }
                _ => add_four([x[0], x[1], x[2], x[3]], [0, 1, 2, 3].map(|i| b.row(first + i)), sums),
            }
        }
    }
    for (row, sums) in sums.chunks_exact(columns.max(1)).enumerate() {
        // SAFETY: a row of the output, which the caller guarantees.
        let out = out.wrapping_add(row * row_stride);
        match accumulate {
            true => add(sums, unsafe { core::slice::from_raw_parts_mut(out, columns) }),
            false => unsafe { sums.as_ptr().copy_to_nonoverlapping(out, columns) },
        }
    }
}

vectorized! {
    fn add_one(x: f32, row: &[f32], sums: &mut [f32]) {
        for (sum, &b) in sums.iter_mut().zip(row) {
            *sum = x.mul_add(b, *sum);
        }
    }

    fn add_two(x: [f32; 2], rows: [&[f32]; 2], sums: &mut [f32]) {
        for ((sum, &b0), &b1) in sums.iter_mut().zip(rows[0]).zip(rows[1]) {
            *sum = x[1].mul_add(b1, x[0].mul_add(b0, *sum));
        }
    }

    fn add_four(x: [f32; 4], rows: [&[f32]; 4], sums: &mut [f32]) {
        for ((((sum, &b0), &b1), &b2), &b3) in sums.iter_mut().zip(rows[0]).zip(rows[1]).zip(rows[2]).zip(rows[3]) {
            *sum = x[3].mul_add(b3, x[2].mul_add(b2, x[1].mul_add(b1, x[0].mul_add(b0, *sum))));
        }
    }
}

/// Sums each column of rows of `columns` values.
fn column_sums(grad: &Array, columns: usize) -> Vec<f32> {
    let parts = grad.values().par_chunks((SUMMED * columns).max(1)).map(|part| {
        let mut sum = vec![0.0; columns];
        part.chunks_exact(columns).for_each(|row| add(row, &mut sum));
        sum
    });
    let parts = parts.collect::<Vec<_>>();
    let mut total = vec![0.0; columns];
    parts.iter().for_each(|part| add(part, &mut total));
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize, step: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * step) % 1009) as f32 / 504.5 - 1.0).collect()
    }

    #[test]
    fn a_row_does_not_depend_on_the_others() {
        for (depth, columns) in [(3, 5), (70, 200), (513, 65), (1500, 300)] {
            let (a, b, bias) = (numbers(700 * depth, 7919), numbers(depth * columns, 104_729), numbers(columns, 31));
            let weight = View::new(&b, [depth, columns], columns);
            for bias in [None, Some(&bias[..])] {
                let of = |rows: usize| product(View::new(&a, [rows, depth], depth), weight, bias);
                let all = of(700);
                for rows in
                    [1, 2, 3, 7, FEW_ROWS, FEW_ROWS + 1, SOME_ROWS[1], SOME_ROWS[1] + 1, 64, 129, 256, SOME_ROWS[0]]
                {
                    let found = of(rows);
                    let same = found.iter().zip(&all).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{rows} rows of {depth} x {columns}");
                }
            }
        }
    }

    #[test]
    fn pieces_cover_a_matrix_once() {
        for (rows, columns) in [(1, 1), (1, 4096), (63, 65), (512, 3072), (4160, 192), (1576, 1536), (0, 7), (5000, 3)]
        {
            let mut seen = vec![0; rows * columns];
            for (down, across) in pieces(rows, columns, 3) {
                down.for_each(|row| across.clone().for_each(|column| seen[row * columns + column] += 1));
            }
            assert!(seen.iter().all(|count| *count == 1), "{rows} x {columns}");
        }
        assert_eq!(pieces(4160, 768, 3).len(), 16, "a large matrix has work for all threads");
    }
}
