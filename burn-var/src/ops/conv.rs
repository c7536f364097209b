use burn::tensor::{Tensor, module, ops::ConvOptions};

#[cfg(feature = "flex")]
use super::flex;

/// Geometry of [`conv2d`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvSpec {
    /// Stride in both directions, at least 1.
    pub stride: usize,
    /// Rows or columns of zeros at the top, bottom, left and right.
    pub padding: [usize; 4],
}

impl ConvSpec {
    /// Creates the geometry that keeps height and width for an odd `kernel`: stride 1, padding 0 for 1x1, 1 for 3x3.
    pub const fn same(kernel: usize) -> Self {
        Self { stride: 1, padding: [kernel / 2; 4] }
    }

    /// Creates the geometry that halves an even size with a 3x3 kernel: stride 2, one row of zeros at the bottom and
    /// one column at the right.
    pub const fn halve() -> Self {
        Self { stride: 2, padding: [0, 1, 0, 1] }
    }
}

/// Computes a two-dimensional cross-correlation, which PyTorch calls convolution, without dilation or groups.
///
/// # Shapes
/// - `x`: `[batch, channels_in, height, width]`
/// - `weight`: `[channels_out, channels_in, kernel_height, kernel_width]`
/// - `bias`: `[channels_out]`
/// - output: `[batch, channels_out, height_out, width_out]`
pub fn conv2d(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, spec: ConvSpec) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if flex::supports(&x) && flex::supports(&weight) && bias.as_ref().is_none_or(flex::supports) {
        let bias = bias.unwrap_or_else(|| Tensor::zeros([weight.dims()[0]], (&x.device().inner(), x.dtype())));
        return flex::run(flex::Conv2d(spec), [x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()]);
    }
    let [top, bottom, left, right] = spec.padding;
    let options = ConvOptions::new_with_padding([spec.stride; 2], [(top, bottom), (left, right)], [1, 1], 1);
    module::conv2d(x, weight, bias, options)
}
