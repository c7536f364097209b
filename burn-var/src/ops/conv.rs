#[cfg(any(feature = "gpu", test))]
use burn::tensor::Slice;
use burn::tensor::{Tensor, module, ops::ConvOptions};

#[cfg(feature = "flex")]
use super::flex;
use super::precision::Form;
#[cfg(any(feature = "gpu", test))]
use super::{matmul, permute, transpose};

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

/// Computes a two-dimensional cross-correlation, which PyTorch calls convolution, without dilation or groups, in the
/// [`Precision`](super::Precision) of the thread.
///
/// # Shapes
/// - `x`: `[batch, channels_in, height, width]`
/// - `weight`: `[channels_out, channels_in, kernel_height, kernel_width]`
/// - `bias`: `[channels_out]`
/// - output: `[batch, channels_out, height_out, width_out]`
pub fn conv2d(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, spec: ConvSpec) -> Tensor<4> {
    let form = Form::of(&x);
    let sums = match form {
        Form::Plain => return plain(x, weight, bias, spec),
        // Burn has no convolution that does not round on tensor cores, forward and backward.
        #[cfg(feature = "gpu")]
        Form::Exact => by_products(x, weight, spec),
        _ => form.output(plain(form.input(x), form.input(weight), None, spec)),
    };
    match bias {
        Some(bias) => sums + bias.reshape([1, -1, 1, 1]),
        None => sums,
    }
}

/// Computes a convolution as the device does by itself.
#[allow(clippy::disallowed_methods, reason = "the one place that uses it")]
fn plain(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, spec: ConvSpec) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if flex::supports(&x) && flex::supports(&weight) && bias.as_ref().is_none_or(flex::supports) {
        let bias = bias.unwrap_or_else(|| Tensor::zeros([weight.dims()[0]], (&x.device().inner(), x.dtype())));
        return flex::run(flex::Conv2d(spec), [x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()]);
    }
    let [top, bottom, left, right] = spec.padding;
    let options = ConvOptions::new_with_padding([spec.stride; 2], [(top, bottom), (left, right)], [1, 1], 1);
    module::conv2d(x, weight, bias, options)
}

/// Computes a convolution as a sum of products of matrices, one for each position of the kernel.
#[cfg(any(feature = "gpu", test))]
fn by_products(x: Tensor<4>, weight: Tensor<4>, ConvSpec { stride, padding }: ConvSpec) -> Tensor<4> {
    let ([batch, input, height, width], [output, _, rows, columns]) = (x.dims(), weight.dims());
    let [top, bottom, left, right] = padding;
    let out_height = (height + top + bottom - rows) / stride + 1;
    let out_width = (width + left + right - columns) / stride + 1;
    let x = if padding == [0; 4] { x } else { x.pad((left, right, top, bottom), 0.0) };
    let x = permute(x, [0, 2, 3, 1]); // [batch, height, width, channels]
    let cut = |first: usize, count: usize| {
        let end = first + (count - 1) * stride + 1;
        Slice::new(first as isize, Some(end as isize), stride as isize)
    };
    let mut sum: Option<Tensor<2>> = None;
    for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
        let seen = x.clone().slice([Slice::full(), cut(row, out_height), cut(column, out_width), Slice::full()]);
        let part = weight.clone().narrow(2, row, 1).narrow(3, column, 1).reshape([output, input]);
        let product = matmul(seen.reshape([batch * out_height * out_width, input]), transpose(part));
        sum = Some(match sum {
            Some(sum) => sum + product,
            None => product,
        });
    }
    let sum = sum.unwrap_or_else(|| Tensor::zeros([batch * out_height * out_width, output], &x.device()));
    permute(sum.reshape([batch, out_height, out_width, output]), [0, 3, 1, 2])
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::*;

    #[test]
    fn a_convolution_is_a_sum_of_products() {
        let device = Device::default().autodiff();
        let forms: [fn(Tensor<4>, Tensor<4>, ConvSpec) -> Tensor<4>; 2] =
            [|x, weight, spec| conv2d(x, weight, None, spec), by_products];
        for (kernel, spec) in [
            (1, ConvSpec::same(1)),
            (3, ConvSpec::same(3)),
            (3, ConvSpec::halve()),
            (2, ConvSpec { stride: 2, padding: [0; 4] }),
        ] {
            let [x, weight] = [[2, 3, 8, 6], [4, 3, kernel, kernel]]
                .map(|dims| Tensor::<4>::random(dims, Distribution::Default, &device).require_grad());
            let [expected, found] = forms.map(|convolve| {
                let y = convolve(x.clone(), weight.clone(), spec);
                let grads = (y.clone() * y.clone()).sum().backward();
                let [of_x, of_weight] = [&x, &weight].map(|of| of.grad(&grads).expect("a gradient"));
                [y.inner(), of_x, of_weight]
            });
            for (expected, found) in expected.into_iter().zip(found) {
                assert_eq!(expected.dims(), found.dims(), "kernel {kernel}, {spec:?}");
                let error = (expected.clone() - found).abs().max().into_scalar::<f32>();
                let size = expected.abs().max().into_scalar::<f32>();
                assert!(error <= 1e-6 * size, "kernel {kernel}, {spec:?}: off by {error:e} of {size}");
            }
        }
    }
}
