use burn::tensor::{Tensor, module};

#[cfg(feature = "flex")]
use super::flex;
use super::precision::Form;

/// Applies a linear layer, `x weight + bias`, to the last axis, in the [`Precision`](super::Precision) of the thread.
///
/// A weight in half precision, to save memory, is converted to the type of `x`, in which sums are computed. On a GPU `x` is
/// rounded to the type of the weight instead, whatever the precision: sums are computed in `f32` there, too, and the weight,
/// which is the larger of both, is read as it is.
///
/// # Shapes
/// - `x`: `[.., inputs]`
/// - `weight`: `[inputs, outputs]`, Burn's layout and the transpose of PyTorch's
/// - `bias`: `[outputs]`, of the type of `x`
/// - output: `[.., outputs]`
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    let form = Form::with_weight(&x, &weight);
    let product = match form {
        Form::Plain => return plain(x, weight, bias),
        Form::Rounded(_) => form.output(plain(form.input(x), form.input(weight), None)),
        #[cfg(feature = "gpu")]
        Form::Exact | Form::Cast(_) => {
            let ([inputs, outputs], mut shape) = (weight.dims(), x.dims());
            let rows = shape[..D - 1].iter().product::<usize>();
            shape[D - 1] = outputs;
            form.product(x.reshape([rows, inputs]), weight).reshape(shape)
        }
    };
    match bias {
        Some(bias) => product + bias.unsqueeze(),
        None => product,
    }
}

/// Applies a linear layer as the device does by itself.
fn plain<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if flex::supports(&x) && flex::supports(&weight) && bias.as_ref().is_none_or(flex::supports) {
        let bias = bias.unwrap_or_else(|| flex::absent(&x));
        return flex::run(flex::Linear, [x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()]);
    }
    #[cfg(feature = "flex")]
    if flex::is_plain(&x) && flex::is_half(&weight) && bias.as_ref().is_none_or(flex::is_plain) {
        return flex::half_linear(x, weight, bias);
    }
    if weight.dtype() != x.dtype() {
        let weight = weight.cast(x.dtype());
        return plain(x, weight, bias);
    }
    burns_own(x, weight, bias)
}

/// Applies a linear layer as [`linear`], but by Burn's own product where that is exact: its last digits are others.
#[cfg(feature = "metrics")]
pub(crate) fn generic_linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    match Form::of(&x) {
        Form::Plain => burns_own(x, weight, bias),
        _ => linear(x, weight, bias),
    }
}

#[allow(clippy::disallowed_methods, reason = "the one place that uses it")]
fn burns_own<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    module::linear(x, weight, bias)
}
