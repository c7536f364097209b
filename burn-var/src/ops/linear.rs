use burn::tensor::{Tensor, module};

#[cfg(feature = "flex")]
use super::flex;

/// Linear layer: `x weight + bias` over the last axis.
///
/// # Shapes
/// - `x`: `[.., inputs]`
/// - `weight`: `[inputs, outputs]`, Burn's layout and the transpose of PyTorch's
/// - `bias`: `[outputs]`
/// - output: `[.., outputs]`
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if flex::supports(&x) && flex::supports(&weight) && bias.as_ref().is_none_or(flex::supports) {
        let bias = bias.unwrap_or_else(|| flex::absent(&x));
        return flex::run(flex::Linear, [x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()]);
    }
    module::linear(x, weight, bias)
}
