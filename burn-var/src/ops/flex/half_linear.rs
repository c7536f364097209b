use burn::{
    backend::{BackendTensor, DispatchTensorKind},
    tensor::{DType, Tensor, bf16, f16},
};
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::{
    bridge::{Array, span},
    linear::{piece, product},
    matrix::{Shared, View},
    scratch::Scratch,
};

/// Approximate number of values per block of weights, which stays in the cache of one core in single precision.
const BLOCK: usize = 1 << 17;
/// Number of rows from which arithmetic takes longer than reading the weights, so all weights are converted at once.
const MANY_ROWS: usize = 64;

/// Name of the profiling span.
struct HalfLinear;

/// Returns `true` if a tensor can be the weight of [`half_linear`].
pub(in crate::ops) fn is_half(weight: &Tensor<2>) -> bool {
    matches!(weight.dtype(), DType::F16 | DType::BF16)
        && matches!(weight.clone().into_dispatch().kind, DispatchTensorKind::Flex(_))
}

/// Computes `x weight + bias` over the last axis, off the graph, with weights in half precision.
pub(in crate::ops) fn half_linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let _span = span::<HalfLinear>("forward");
    let [inputs, outputs] = weight.dims();
    let mut shape = x.dims();
    assert_eq!(shape[D - 1], inputs, "linear: channels of the input, weight {:?}", weight.dims());
    shape[D - 1] = outputs;
    let (x, bias) = (Array::from(x), bias.map(Array::from));
    let bias = bias.as_ref().map(Array::values);
    assert!(bias.is_none_or(|bias| bias.len() == outputs), "linear: length of the bias");
    #[allow(unreachable_patterns, reason = "with a single backend there is no other")]
    let weight = match weight.into_dispatch().kind {
        DispatchTensorKind::Flex(BackendTensor::Float(weight)) => weight.to_contiguous(),
        _ => unreachable!("`is_half` lets only plain Flex tensors pass"),
    };
    let x = View::new(x.values(), [x.values().len() / inputs.max(1), inputs], inputs);
    let out = match weight.dtype() {
        DType::F16 => multiplied(x, weight.storage::<f16>(), HalfFloatSliceExt::convert_to_f32_slice, outputs, bias),
        _ => multiplied(x, weight.storage::<bf16>(), HalfFloatSliceExt::convert_to_f32_slice, outputs, bias),
    };
    Array::new(out, shape).into()
}

/// Converts half precision to single precision.
type Widen<H> = fn(&[H], &mut [f32]);

fn multiplied<H: Copy + Sync>(
    x: View<'_>,
    weight: &[H],
    widen: Widen<H>,
    outputs: usize,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let [rows, inputs] = x.shape();
    if rows < MANY_ROWS {
        return by_blocks(x, weight, widen, outputs, bias);
    }
    let mut single = Scratch::new(inputs * outputs);
    single.par_chunks_mut(BLOCK).zip(weight.par_chunks(BLOCK)).for_each(|(single, weight)| widen(weight, single));
    product(x, View::new(&single, [inputs, outputs], outputs), bias)
}

/// Multiplies block by block: each task converts the weights of some outputs to single precision, and multiplies while
/// they are in the cache.
fn by_blocks<H: Copy + Sync>(
    x: View<'_>,
    weight: &[H],
    widen: Widen<H>,
    outputs: usize,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let [rows, inputs] = x.shape();
    let columns = (BLOCK / inputs.max(1)).next_multiple_of(16).min(outputs.max(1));
    let mut out: Vec<f32> = Vec::with_capacity(rows * outputs);
    let shared = Shared::new(out.as_mut_ptr());
    (0..outputs.div_ceil(columns)).into_par_iter().for_each(|block| {
        let range = block * columns..outputs.min((block + 1) * columns);
        let mut single = Scratch::new(inputs * range.len());
        for (single, weight) in single.chunks_exact_mut(range.len()).zip(weight.chunks_exact(outputs)) {
            widen(&weight[range.clone()], single);
        }
        let block = View::new(&single, [inputs, range.len()], range.len());
        let bias = bias.map(|bias| &bias[range.clone()]);
        // SAFETY: these columns of the output belong to no other task.
        unsafe { piece(shared.at(range.start), outputs, x, block, bias) };
    });
    // SAFETY: the blocks cover the output.
    unsafe { out.set_len(rows * outputs) };
    out
}
