//! Operations on maps of code vectors and on logits.

use burn::tensor::Tensor;

#[cfg(feature = "gpu")]
use super::cube;
use super::{ConvSpec, Precision, conv2d, transpose};
use crate::MapSize;

/// Turns code vectors in row-major order, `[batch, tokens, channels]`, to a map, `[batch, channels, height, width]`.
pub fn map_of_codes(codes: Tensor<3>, size: MapSize) -> Tensor<4> {
    let ([batch, _, channels], MapSize { height, width }) = (codes.dims(), size);
    // A view, which the kernel of the resize that follows reads; otherwise a copy, which every other operation reads faster.
    #[cfg(feature = "gpu")]
    if cube::is_plain(&codes) {
        return super::permute(codes.reshape([batch, height, width, channels]), [0, 3, 1, 2]);
    }
    transpose(codes).reshape([batch, channels, height, width])
}

/// Resizes maps, `[batch, channels, height, width]`, by constant matrices for the rows and the columns, `[to, from]`, if the
/// device has a kernel for it.
pub(crate) fn resize(x: &Tensor<4>, matrices: impl FnOnce() -> [Tensor<2>; 2]) -> Option<Tensor<4>> {
    #[cfg(feature = "gpu")]
    {
        /// Largest map that a unit of a GPU adds up alone.
        const AREA: usize = 32 * 32;
        let [_, _, height, width] = x.dims();
        if cube::is_plain(x) && height * width <= AREA {
            let [rows, columns] = matrices();
            return Some(cube::resize(x.clone(), rows, columns));
        }
    }
    let _ = (x, matrices);
    None
}

/// Computes `canvas + (1 - ratio) * map + ratio * conv(map)` with a convolution that keeps the size of the map, in `f32`
/// whatever the precision: the canvas decides the tokens.
///
/// # Shapes
/// - `canvas`, `map` and output: `[batch, channels, height, width]`
/// - `weight`: `[channels, channels, kernel, kernel]`, with an odd `kernel`
/// - `bias`: `[channels]`
pub fn add_mixed(canvas: Tensor<4>, map: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>, ratio: f64) -> Tensor<4> {
    #[cfg(feature = "gpu")]
    if cube::is_plain(&map) && cube::is_plain(&canvas) && cube::is_plain(&weight) {
        return cube::add_mixed(canvas, map, weight, bias, ratio);
    }
    canvas + mixed(map, weight, bias, ratio)
}

/// Computes `(1 - ratio) * map + ratio * conv(map)` as [`add_mixed`].
pub fn mixed(map: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>, ratio: f64) -> Tensor<4> {
    let spec = ConvSpec::same(weight.dims()[2]);
    let filtered = Precision::Exact.scope(|| conv2d(map.clone(), weight, Some(bias), spec));
    map * (1.0 - ratio) + filtered * ratio
}

/// Computes `(1 + strength) * toward - strength * away`, all of one shape.
pub fn extrapolate(toward: Tensor<3>, away: Tensor<3>, strength: f64) -> Tensor<3> {
    #[cfg(feature = "gpu")]
    if cube::is_plain(&toward) && cube::is_plain(&away) {
        return cube::extrapolate(toward, away, strength);
    }
    toward * (1.0 + strength) - away * strength
}
