//! Draw of tokens from logits on a GPU.

use burn::tensor::{Device, Int, Tensor};

#[cfg(feature = "gpu")]
use super::cube;

/// Settings of [`draw`]; see [`crate::sampling::Sampler`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Draw {
    /// Rows per image.
    pub(crate) tokens: usize,
    /// Number of the scale, which the noise depends on.
    pub(crate) scale: u32,
    pub(crate) temperature: f32,
    pub(crate) top_k: usize,
    pub(crate) mass: Mass,
    /// Share of the probability that top-p counts up to.
    pub(crate) share: f32,
    pub(crate) values: Values,
}

/// Side from which top-p counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Mass {
    /// None: there is no top-p.
    All,
    /// From the least likely entry up.
    Ascending,
    /// From the most likely entry down.
    Descending,
}

/// Numbers that [`draw`] returns beside the tokens, one per logit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Values {
    /// None.
    None,
    /// Filtered logits: minus infinity where an entry is dropped.
    Filtered,
    /// Logarithms of the weights of [`more_smooth`](crate::sampling::Sampler::more_smooth), up to a sum.
    Mixture { ratio: f32, tau: f32 },
}

/// Returns true if a device, on the autodiff graph or off it, has a kernel for [`draw`] of a vocabulary.
pub(crate) fn draws(device: &Device, vocabulary: usize) -> bool {
    #[cfg(feature = "gpu")]
    {
        cube::draws(device, vocabulary)
    }
    #[cfg(not(feature = "gpu"))]
    {
        let _ = (device, vocabulary);
        false
    }
}

/// Filters and draws rows of logits, `[rows, vocabulary]` in `f32` off the autodiff graph, on a device that [`draws`]:
/// returns the ids, `[rows]`, `fault`, and the [`Values`].
///
/// `keys` are those of each image's noise, `[images, 2]` in `i32`. `fault`, `[1]`, gets 1 plus the number of an entry that is
/// not a number, if there is any.
pub(crate) fn draw(
    logits: Tensor<2>,
    keys: &Tensor<2, Int>,
    fault: Tensor<1, Int>,
    settings: Draw,
) -> (Tensor<1, Int>, Tensor<1, Int>, Tensor<2>) {
    #[cfg(feature = "gpu")]
    {
        cube::draw(logits, keys, fault, settings)
    }
    #[cfg(not(feature = "gpu"))]
    {
        let _ = (logits, keys, fault, settings);
        unreachable!("only GPUs draw")
    }
}
