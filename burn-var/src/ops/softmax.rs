use burn::tensor::{Tensor, activation};

/// Softmax over the last axis.
///
/// Entries of `-inf` get weight zero; a row of nothing else is NaN, as in PyTorch.
pub fn softmax<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activation::softmax(x, D - 1)
}
