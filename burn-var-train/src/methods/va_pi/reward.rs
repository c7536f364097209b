//! The reward of VA-pi, and the noise of its context.

use burn::tensor::{Bool, Int, Tensor};
use serde::{Deserialize, Serialize};

/// Error of pixels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PixelError {
    /// Mean of the squared differences.
    #[default]
    L2,
    /// Mean of the absolute differences.
    L1,
}

impl PixelError {
    /// Computes the error of each image, `[images]`, over all channels and pixels. Images are about `[-1, 1]`, not clamped:
    /// pixels out of range count.
    pub fn of(self, decoded: Tensor<4>, images: Tensor<4>) -> Tensor<1> {
        let difference = (decoded - images).flatten::<2>(1, 3);
        let each = match self {
            Self::L2 => difference.square(),
            Self::L1 => difference.abs(),
        };
        each.mean_dim(1).squeeze_dim(1)
    }
}

/// Replaces tokens of the context by random ones where `replaced` is true, `[batch, tokens]` each. The targets of the
/// cross-entropy stay the true tokens.
pub fn noisy_context(tokens: Tensor<2, Int>, replaced: Tensor<2, Bool>, random: Tensor<2, Int>) -> Tensor<2, Int> {
    tokens.mask_where(replaced, random)
}
