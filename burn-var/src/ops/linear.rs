#[cfg(feature = "gpu")]
use burn::tensor::DType;
use burn::tensor::{Tensor, module};

#[cfg(feature = "gpu")]
use super::cube;
#[cfg(feature = "flex")]
use super::flex;

/// Applies a linear layer, `x weight + bias`, to the last axis.
///
/// A weight in half precision, to save memory, is converted to the type of `x`, in which sums are computed. On a GPU `x` is
/// rounded to the type of the weight instead, and so is the product: sums are computed in `f32` there, too, and the weight,
/// which is the larger of both, is read as it is.
///
/// # Shapes
/// - `x`: `[.., inputs]`
/// - `weight`: `[inputs, outputs]`, Burn's layout and the transpose of PyTorch's
/// - `bias`: `[outputs]`, of the type of `x`
/// - output: `[.., outputs]`
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if flex::supports(&x) && flex::supports(&weight) && bias.as_ref().is_none_or(flex::supports) {
        let bias = bias.unwrap_or_else(|| flex::absent(&x));
        return flex::run(flex::Linear, [x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()]);
    }
    #[cfg(feature = "flex")]
    if flex::is_plain(&x) && flex::is_half(&weight) && bias.as_ref().is_none_or(flex::is_plain) {
        return flex::half_linear(x, weight, bias);
    }
    #[cfg(feature = "gpu")]
    if matches!(weight.dtype(), DType::F16 | DType::BF16) && x.dtype() == DType::F32 && cube::is_gpu(&x) {
        let product = module::linear(x.cast(weight.dtype()), weight, None).cast(DType::F32);
        return match bias {
            Some(bias) => product + bias.unsqueeze(),
            None => product,
        };
    }
    if weight.dtype() != x.dtype() {
        let weight = weight.cast(x.dtype());
        return linear(x, weight, bias);
    }
    module::linear(x, weight, bias)
}
