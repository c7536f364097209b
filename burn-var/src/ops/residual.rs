use burn::tensor::Tensor;

#[cfg(feature = "flex")]
use super::flex;

/// Adds a gated residual branch: `x + branch * gate`.
///
/// # Shapes
/// - `x`, `branch` and output: `[batch, length, channels]`
/// - `gate`: `[batch, 1, channels]`
pub fn gated_residual(x: Tensor<3>, branch: Tensor<3>, gate: Tensor<3>) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if flex::supports(&x) && flex::supports(&branch) && flex::supports(&gate) {
        return flex::run(flex::GatedResidual, [x, branch, gate].map(Tensor::into_dispatch));
    }
    x + branch * gate
}
