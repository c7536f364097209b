//! Small helpers for tensors that the methods share.

use burn::tensor::Tensor;

use crate::Result;

/// Reads one number from its device; `action` says in an error what it was read for.
pub(crate) fn scalar(value: &Tensor<1>, action: &'static str) -> Result<f64> {
    let value = value.clone().try_into_scalar::<f32>().map_err(burn_var::Error::device(action))?;
    Ok(f64::from(value))
}

/// Returns the gradient of `loss` at `leaf`, off the graph: zeros if the loss does not depend on it.
pub(crate) fn gradient<const D: usize>(leaf: &Tensor<D>, loss: Tensor<1>) -> Tensor<D> {
    leaf.grad(&loss.backward()).unwrap_or_else(|| leaf.clone().inner().zeros_like())
}

/// Returns the mean of tensors of one shape, `None` if there are none.
pub(crate) fn mean<const D: usize>(tensors: Vec<Tensor<D>>) -> Option<Tensor<D>> {
    match tensors.len() {
        0 | 1 => tensors.into_iter().next(),
        count => tensors.into_iter().reduce(|a, b| a + b).map(|sum| sum / count as f64),
    }
}
