use burn::tensor::{Tensor, activation};

#[cfg(feature = "flex")]
use super::flex;

/// Computes the softmax over the last axis.
///
/// Entries of `-inf` get weight zero; a row of only `-inf` is NaN, as in PyTorch.
pub fn softmax<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if flex::supports(&x) {
        return flex::run(flex::Softmax, [x.into_dispatch()]);
    }
    activation::softmax(x, D - 1)
}
