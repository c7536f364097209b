use burn::tensor::{Tensor, activation};

#[cfg(feature = "flex")]
use super::flex;

/// Computes the sigmoid linear unit, `x * sigmoid(x)`.
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if flex::supports(&x) {
        return flex::run(flex::Pointwise::Silu, [x.into_dispatch()]);
    }
    activation::silu(x)
}

/// Computes `silu(gate) * x`, the gate of a feed-forward layer with SwiGLU.
///
/// # Shapes
/// - `gate`, `x` and output: the same, any
pub fn swiglu<const D: usize>(gate: Tensor<D>, x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if flex::supports(&gate) && flex::supports(&x) {
        return flex::run(flex::SwiGlu, [gate.into_dispatch(), x.into_dispatch()]);
    }
    activation::silu(gate) * x
}

/// Computes the rectified linear unit, `max(x, 0)`.
pub fn relu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if flex::supports(&x) {
        return flex::run(flex::Pointwise::Relu, [x.into_dispatch()]);
    }
    activation::relu(x)
}

/// Computes GELU, `x * Phi(x)` with the standard normal distribution function `Phi`: PyTorch's default.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if flex::supports(&x) {
        return flex::run(flex::Pointwise::Gelu, [x.into_dispatch()]);
    }
    // Not `activation::gelu`, whose backward pass is that of the tanh form (Burn 0.22).
    x.clone() * (((x * core::f64::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5)
}

/// Computes GELU in its tanh form, `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`: PyTorch's
/// `approximate="tanh"`.
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if flex::supports(&x) {
        return flex::run(flex::Pointwise::GeluTanh, [x.into_dispatch()]);
    }
    // Not `activation::gelu_approximate`, whose power with a number as exponent costs more than two products.
    let inner = (x.clone() + x.clone() * x.clone() * x.clone() * 0.044715) * (2.0 / core::f64::consts::PI).sqrt();
    x * 0.5 * (inner.tanh() + 1.0)
}
