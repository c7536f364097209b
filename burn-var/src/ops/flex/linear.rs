use core::ops::Range;

use rayon::prelude::*;

use super::{
    bridge::{Array, Kernel},
    matrix::{Shared, View, multiply, transpose},
    scratch::Scratch,
    simd::add,
};

/// Rows of a piece of a product, about.
const ROWS: usize = 256;
/// Fewest columns of a piece.
const COLUMNS: usize = 64;
/// Pieces for which columns are cut where there are few rows.
const PIECES: usize = 8;

/// `x weight + bias` over the last axis; an absent bias is empty.
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
            // Turned once: every piece of rows reads all of it.
            let mut turned = Scratch::new(inputs * outputs);
            transpose(View::new(weight.values(), [inputs, outputs], outputs), &mut turned);
            Array::new(product(grads, View::new(&turned, [outputs, inputs], inputs), None), x.shape())
        });
        let weight_grad = want_weight.then(|| {
            let x = View::new(x.values(), [rows, inputs], inputs).transposed();
            Array::new(product(x, grads, None), weight.shape())
        });
        let bias_grad = want_bias.then(|| Array::new(column_sums(&grad, outputs), [outputs]));
        [x_grad, weight_grad, bias_grad]
    }
}

/// `a b + bias`, piece by piece on all threads.
pub(super) fn product(a: View<'_>, b: View<'_>, bias: Option<&[f32]>) -> Vec<f32> {
    let ([rows, _], [_, columns]) = (a.shape(), b.shape());
    let mut out: Vec<f32> = Vec::with_capacity(rows * columns);
    let shared = Shared::new(out.as_mut_ptr());
    pieces(rows, columns).into_par_iter().for_each(|(down, across)| {
        if let Some(bias) = bias {
            for row in down.clone() {
                // SAFETY: this part of the row lies inside the output and belongs to this piece alone.
                unsafe {
                    let from = bias[across.clone()].as_ptr();
                    from.copy_to_nonoverlapping(shared.at(row * columns + across.start), across.len());
                }
            }
        }
        let first = shared.at(down.start * columns + across.start);
        // SAFETY: as above; with a bias all of it has been written.
        unsafe { multiply(first, columns, a.rows(down), b.columns(across), bias.is_some()) };
    });
    // SAFETY: the pieces cover the output.
    unsafe { out.set_len(rows * columns) };
    out
}

/// Cuts a matrix, by its size alone, into pieces that threads can share.
fn pieces(rows: usize, columns: usize) -> Vec<(Range<usize>, Range<usize>)> {
    let cut = |len: usize, parts: usize| {
        let step = len.div_ceil(parts.max(1)).max(1);
        (0..len).step_by(step).map(move |first| first..len.min(first + step))
    };
    let down = rows.div_ceil(ROWS);
    let across = PIECES.div_ceil(down.max(1)).min(columns / COLUMNS).max(1);
    cut(rows, down).flat_map(|rows| cut(columns, across).map(move |columns| (rows.clone(), columns))).collect()
}

/// The sum of each column of rows of `columns` values.
fn column_sums(grad: &Array, columns: usize) -> Vec<f32> {
    let parts = grad.values().par_chunks((ROWS * columns).max(1)).map(|part| {
        let mut sum = vec![0.0; columns];
        part.chunks_exact(columns).for_each(|row| add(row, &mut sum));
        sum
    });
    let parts = parts.collect::<Vec<_>>();
    let mut total = vec![0.0; columns];
    parts.iter().for_each(|part| add(part, &mut total));
    total
}
