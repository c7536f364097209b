use burn::tensor::Tensor;

#[cfg(feature = "gpu")]
use super::cube;

/// Returns `true` if the device adds the squares of several tensors in one kernel, see [`sum_of_squares`].
pub fn sums_together<const D: usize>(tensor: &Tensor<D>) -> bool {
    #[cfg(feature = "gpu")]
    return cube::is_plain(tensor);
    #[cfg(not(feature = "gpu"))]
    {
        let _ = tensor;
        false
    }
}

/// Computes the sum of the squares of all numbers, `[1]`; `None` without a tensor.
pub fn sum_of_squares(tensors: &[Tensor<1>]) -> Option<Tensor<1>> {
    #[cfg(feature = "gpu")]
    if tensors.iter().all(sums_together) {
        return cube::sum_of_squares(tensors);
    }
    let squares = tensors.iter().map(|tensor| tensor.clone().square().sum());
    squares.reduce(|sum, square| sum + square)
}
