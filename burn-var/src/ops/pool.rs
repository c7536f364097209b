use burn::tensor::ops::{AvgPoolOptions, MaxPoolOptions};
use burn::tensor::{Tensor, module};

#[cfg(feature = "flex")]
use super::flex;

/// The largest number of each 3x3 window: `[batch, channels, height, width]`, windows `stride` apart; `pad` pixels of
/// minus infinity, 0 or 1, lie around.
pub fn max_pool_3x3(x: Tensor<4>, stride: usize, pad: usize) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if flex::is_plain(&x) {
        return flex::pool(x, flex::Pool::Max { stride, pad });
    }
    module::max_pool2d(x, MaxPoolOptions::new([3; 2]).with_stride([stride; 2]).with_padding([pad; 2]))
}

/// The mean of the 3x3 window around each pixel: `[batch, channels, height, width]`; what lies outside is not counted.
pub fn mean_pool_3x3(x: Tensor<4>) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if flex::is_plain(&x) {
        return flex::pool(x, flex::Pool::Mean);
    }
    let options = AvgPoolOptions::new([3; 2]).with_stride([1; 2]).with_padding([1; 2]);
    module::avg_pool2d(x, options.with_count_include_pad(false))
}
