//! Precision of products: of matrices, linear layers, attention and convolutions.

use core::cell::Cell;
use core::future::Future;
use core::pin::pin;
use core::task::Poll;

use burn::tensor::{DType, Device, Tensor, TensorData};
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

#[cfg(feature = "gpu")]
use super::cube;
#[cfg(feature = "flex")]
use super::flex;
use crate::weights::FloatType;

/// Type that the inputs of products are rounded to. Weights, activations and sums are in `f32` in each; norms, softmax and
/// losses are not touched.
///
/// A precision holds for the thread that calls [`Precision::scope`], and [`Precision::Exact`] outside of all scopes. A
/// gradient has the precision that its forward pass had, wherever it is computed.
///
/// A device that does not multiply in a type computes in `f32` with inputs that are rounded to it: slower, and equal up to
/// the order of sums. The CPU is one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// `f32`: products do not use the tensor cores of a GPU that would round their inputs.
    #[default]
    Exact,
    /// TF32: 10 bits of mantissa, the range of `f32`.
    Tf32,
    /// `f16`: 10 bits of mantissa, and no number above 65,504.
    F16,
    /// `bf16`: 7 bits of mantissa, the range of `f32`.
    Bf16,
}

thread_local! {
    static CURRENT: Cell<Precision> = const { Cell::new(Precision::Exact) };
}

/// Sets the precision of the thread until it is dropped.
struct Scope {
    before: Precision,
}

impl Scope {
    fn open(precision: Precision) -> Self {
        Self { before: CURRENT.replace(precision) }
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}

impl Precision {
    /// All precisions, from the most exact to the least.
    pub const ALL: [Self; 4] = [Self::Exact, Self::Tf32, Self::F16, Self::Bf16];

    /// Returns the precision of the calling thread.
    pub fn current() -> Self {
        CURRENT.get()
    }

    /// Runs `work` in this precision. Scopes can be nested; the innermost counts.
    pub fn scope<R>(self, work: impl FnOnce() -> R) -> R {
        let _scope = Scope::open(self);
        work()
    }

    /// Runs `work` in this precision, whichever threads poll it.
    pub async fn scope_async<R>(self, work: impl Future<Output = R>) -> R {
        let mut work = pin!(work);
        core::future::poll_fn(move |context| -> Poll<R> { self.scope(|| work.as_mut().poll(context)) }).await
    }

    /// Returns the precision that suits sampling on a device: [`Precision::Bf16`] on a GPU that would otherwise round to TF32,
    /// and [`Precision::Exact`] elsewhere.
    pub fn for_sampling(device: &Device) -> Self {
        if rounds_to_tf32(device) { Self::Bf16 } else { Self::Exact }
    }

    /// Returns the precision that suits training on a device: [`Precision::Tf32`] on a GPU that has it, and
    /// [`Precision::Exact`] elsewhere.
    pub fn for_training(device: &Device) -> Self {
        if rounds_to_tf32(device) { Self::Tf32 } else { Self::Exact }
    }

    /// Returns the type in which a device is best given weights that are multiplied in this precision: one of two bytes if
    /// it multiplies in that type. The products are the same to the bit; a weight in `f32` would be converted at each use.
    #[cfg_attr(not(feature = "image"), allow(dead_code, reason = "for the pipeline"))]
    pub(crate) fn of_weights(self, device: &Device) -> FloatType {
        #[cfg(feature = "gpu")]
        if let Some(abilities) = cube::abilities_of(device) {
            return match self {
                Self::F16 if abilities.f16 => FloatType::F16,
                Self::Bf16 if abilities.bf16 => FloatType::Bf16,
                _ => FloatType::F32,
            };
        }
        let _ = device;
        FloatType::F32
    }

    /// Returns the name, as in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Tf32 => "tf32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// Rounds a number to the nearest of this precision, to the even one of two.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::Exact => x,
            Self::Tf32 if x.is_finite() => {
                let bits = x.to_bits();
                f32::from_bits((bits + 0x0fff + (bits >> 13 & 1)) & !0x1fff)
            }
            Self::Tf32 => x,
            Self::F16 => f16::from_f32(x).to_f32(),
            Self::Bf16 => bf16::from_f32(x).to_f32(),
        }
    }
}

impl core::fmt::Display for Precision {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

/// Returns `true` for a GPU that rounds the inputs of `f32` products to TF32.
fn rounds_to_tf32(device: &Device) -> bool {
    #[cfg(feature = "gpu")]
    return cube::abilities_of(device).is_some_and(|abilities| abilities.tf32);
    #[cfg(not(feature = "gpu"))]
    {
        let _ = device;
        false
    }
}

/// Multiplies matrices, `[.., rows, inner]` by `[.., inner, columns]`, in the [`Precision`] of the thread. Axes before the
/// last two are equal, or 1 in one of them.
pub fn matmul<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    Form::of(&a).product(a, b)
}

/// Multiplies matrices as [`matmul`], in `f32` whatever the precision: for products that choose tokens or move pixels, and
/// for measures.
pub fn exact_matmul<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    Precision::Exact.scope(|| matmul(a, b))
}

/// Way in which a device multiplies in a precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Burn's own product, with the inputs as they are.
    Plain,
    /// By kernels that do not round to TF32.
    #[cfg(feature = "gpu")]
    Exact,
    /// With inputs in a type of two bytes.
    #[cfg(feature = "gpu")]
    Cast(DType),
    /// With inputs that are rounded but stay in `f32`.
    Rounded(Precision),
}

impl Form {
    /// Returns the form of products with a tensor, in the precision of the thread.
    pub(super) fn of<const D: usize>(x: &Tensor<D>) -> Self {
        let precision = Precision::current();
        if x.dtype() != DType::F32 {
            return Self::Plain;
        }
        #[cfg(feature = "gpu")]
        if let Some(abilities) = cube::abilities_of(&x.device()) {
            return match precision {
                Precision::Exact if abilities.tf32 => Self::Exact,
                Precision::Exact => Self::Plain,
                Precision::Tf32 if abilities.tf32 => Self::Plain,
                Precision::F16 if abilities.f16 => Self::Cast(DType::F16),
                Precision::Bf16 if abilities.bf16 => Self::Cast(DType::BF16),
                _ => Self::Rounded(precision),
            };
        }
        match precision {
            Precision::Exact => Self::Plain,
            _ => Self::Rounded(precision),
        }
    }

    /// Returns the form of products with a weight: one that is stored in a type of two bytes is multiplied in that type on a
    /// GPU, whatever the precision.
    pub(super) fn with_weight<const D: usize>(x: &Tensor<D>, weight: &Tensor<2>) -> Self {
        #[cfg(feature = "gpu")]
        if matches!(weight.dtype(), DType::F16 | DType::BF16) && x.dtype() == DType::F32 && cube::is_gpu(x) {
            return Self::Cast(weight.dtype());
        }
        let _ = weight;
        Self::of(x)
    }

    /// Multiplies matrices, see [`matmul`].
    #[allow(clippy::disallowed_methods, reason = "the one place where it is chosen how to multiply")]
    pub(super) fn product<const D: usize>(self, a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Plain => a.matmul(b),
            #[cfg(feature = "gpu")]
            Self::Exact | Self::Cast(_) => cube::product(self, a, b),
            Self::Rounded(_) => self.output(self.input(a).matmul(self.input(b))),
        }
    }

    /// Converts an input of an operation that is linear in it.
    pub(super) fn input<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            #[cfg(feature = "gpu")]
            Self::Cast(dtype) => x.cast(dtype),
            Self::Rounded(precision) => rounded(x, Rounding { precision, what: What::Values }),
            _ => x,
        }
    }

    /// Converts the output of an operation whose inputs have been [converted](Form::input).
    pub(super) fn output<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            #[cfg(feature = "gpu")]
            Self::Cast(_) => x.cast(DType::F32),
            Self::Rounded(precision) => rounded(x, Rounding { precision, what: What::Gradient }),
            _ => x,
        }
    }
}

/// Operation that rounds to a precision.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounding {
    pub(super) precision: Precision,
    pub(super) what: What,
}

/// The pass that rounds; the other one is the identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// The forward pass.
    Values,
    /// The backward pass.
    Gradient,
}

/// Rounds numbers or their gradient. A tensor that is no `f32`, such as a stored weight, stays as it is.
fn rounded<const D: usize>(x: Tensor<D>, rounding: Rounding) -> Tensor<D> {
    if x.dtype() != DType::F32 || (rounding.what == What::Gradient && !x.device().is_autodiff()) {
        return x;
    }
    #[cfg(feature = "flex")]
    if flex::supports(&x) {
        return flex::run(rounding, [x.into_dispatch()]);
    }
    #[cfg(feature = "gpu")]
    if cube::has_kernels(&x) && rounding.precision != Precision::F16 {
        return cube::rounded(x, rounding);
    }
    match rounding.what {
        What::Values => by_the_host(x, rounding.precision),
        // Burn has no operation whose gradient alone could be rounded.
        What::Gradient => x,
    }
}

/// Rounds numbers on the host, for devices without a kernel: adds what rounding changes, so that a gradient passes.
fn by_the_host<const D: usize>(x: Tensor<D>, precision: Precision) -> Tensor<D> {
    let tracked = x.device().is_autodiff();
    let values = if tracked { x.clone().inner() } else { x.clone() };
    let device = values.device();
    let change = |x: f32| if x.is_finite() { precision.round(x) - x } else { 0.0 };
    let change: Vec<f32> = values.into_data().iter::<f32>().map(change).collect();
    let change = Tensor::<D>::from_data(TensorData::new(change, x.dims()), &device);
    x + if tracked { Tensor::from_inner(change) } else { change }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_rounded_to_the_nearest() {
        let step = |bits: i32| f32::powi(2.0, -bits);
        for (precision, bits) in [(Precision::Tf32, 10), (Precision::F16, 10), (Precision::Bf16, 7)] {
            let unit = step(bits);
            for (x, expected) in [
                (1.0, 1.0),
                (1.0 + 0.49 * unit, 1.0),
                (1.0 + 0.51 * unit, 1.0 + unit),
                (1.0 + 0.5 * unit, 1.0),
                (1.0 + 1.5 * unit, 1.0 + 2.0 * unit),
                (2.0 - 0.25 * unit, 2.0),
                (-3.0 - 1.2 * unit, -3.0 - 2.0 * unit),
                (0.0, 0.0),
                (f32::INFINITY, f32::INFINITY),
            ] {
                assert_eq!(precision.round(x), expected, "{precision:?} of {x}");
            }
            assert!(precision.round(f32::NAN).is_nan());
        }
        assert_eq!(Precision::F16.round(70_000.0), f32::INFINITY);
        assert_eq!(Precision::Tf32.round(f32::MAX), f32::INFINITY, "above the largest");
        assert_eq!(Precision::Exact.round(0.1), 0.1);
    }

    #[test]
    fn a_scope_ends_with_its_work() {
        assert_eq!(Precision::current(), Precision::Exact);
        let inner = Precision::Bf16.scope(|| {
            let inner = Precision::Tf32.scope(Precision::current);
            assert_eq!(Precision::current(), Precision::Bf16, "the inner scope is over");
            let other = std::thread::scope(|scope| scope.spawn(Precision::current).join().expect("a thread"));
            assert_eq!(other, Precision::Exact, "another thread has a precision of its own");
            inner
        });
        assert_eq!(inner, Precision::Tf32);
        let panic = std::panic::catch_unwind(|| Precision::F16.scope(|| panic!("in the scope")));
        assert!(panic.is_err());
        assert_eq!(Precision::current(), Precision::Exact, "a panic ends the scope, too");
    }

    #[test]
    fn a_future_has_its_precision_at_each_poll() {
        let mut polls = 0;
        let work = core::future::poll_fn(|_| {
            polls += 1;
            assert_eq!(Precision::current(), Precision::Bf16);
            if polls < 3 { Poll::Pending } else { Poll::Ready(()) }
        });
        let mut work = pin!(Precision::Bf16.scope_async(work));
        let mut context = core::task::Context::from_waker(core::task::Waker::noop());
        while work.as_mut().poll(&mut context).is_pending() {
            assert_eq!(Precision::current(), Precision::Exact, "between two polls");
        }
    }
}
