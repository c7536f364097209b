use burn::tensor::ops::{AvgPoolOptions, MaxPoolOptions};
use burn::tensor::{Tensor, module};

#[cfg(feature = "flex")]
use super::flex;

/// Computes the maximum of each 3x3 window of `[batch, channels, height, width]`, with windows `stride` apart and
/// padding of `pad` pixels, 0 or 1, of minus infinity.
pub fn max_pool_3x3(x: Tensor<4>, stride: usize, pad: usize) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if flex::is_plain(&x) {
        return flex::pool(x, flex::Pool::Max { stride, pad });
    }
    module::max_pool2d(x, MaxPoolOptions::new([3; 2]).with_stride([stride; 2]).with_padding([pad; 2]))
}

/// Computes the mean of the 3x3 window around each pixel of `[batch, channels, height, width]`, over the pixels inside
/// the image.
pub fn mean_pool_3x3(x: Tensor<4>) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if flex::is_plain(&x) {
        return flex::pool(x, flex::Pool::Mean);
    }
    let options = AvgPoolOptions::new([3; 2]).with_stride([1; 2]).with_padding([1; 2]);
    module::avg_pool2d(x, options.with_count_include_pad(false))
}
