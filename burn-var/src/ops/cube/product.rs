//! Products of matrices that Burn does not offer: in `f32` on GPUs that would round to TF32, and of numbers of two bytes with
//! sums and results in `f32`; and the rounding of numbers to types that a GPU does not have.

use burn::backend::Dispatch;
use burn::backend::DispatchTensor;
use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::matmul::{MatmulStrategy, init_matmul_output};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::Scalar;
use cubek::matmul::definition::{MatmulElems, MatmulSetupError};
use cubek::matmul::launch::launch_ref;
use cubek::matmul::multi_level::Strategy;
use cubek::std::InputBinding;

use super::Kernels;
use super::bridge::{self, Recorded};
use crate::ops::precision::{Form, Precision, Rounding, What};
use crate::ops::transpose;

/// Multiplies matrices in `f32`, without tensor cores.
pub(super) fn exact(lhs: CubeTensor, rhs: CubeTensor) -> CubeTensor {
    let dtype = f32::elem_type_native();
    let out = init_matmul_output(&lhs, &rhs, lhs.dtype);
    let launch = |strategy: Strategy| -> Result<(), MatmulSetupError> {
        let [lhs, rhs] = [&lhs, &rhs].map(|input| InputBinding::new(input.clone().binding(), dtype));
        let mut dtypes = MatmulElems::from_single_dtype(dtype);
        launch_ref(&strategy.into(), &out.client, lhs, rhs, out.clone().binding(), &mut dtypes)
    };
    let launched = launch(Strategy::SimpleUnit(Default::default())).or_else(|_| launch(Strategy::Naive));
    launched
        .unwrap_or_else(|error| panic!("a product of {:?} and {:?}: {error:?}", lhs.meta.shape(), rhs.meta.shape()));
    out
}

/// Multiplies matrices of numbers of two bytes, with a result in `f32`.
pub(super) fn widened(lhs: CubeTensor, rhs: CubeTensor) -> CubeTensor {
    let shapes = [&lhs, &rhs].map(|input| input.meta.shape().clone());
    let product = burn_cubecl::kernel::matmul::matmul(lhs, rhs, None, MatmulStrategy::default(), DType::F32);
    product.unwrap_or_else(|error| panic!("a product of {shapes:?}: {error:?}"))
}

/// Product of two matrices on the graph.
#[derive(Debug, Clone, Copy)]
struct Product<const D: usize> {
    form: Form,
}

impl<const D: usize> Product<D> {
    /// Multiplies tensors off the graph that have been converted already.
    fn of(self, a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
        let [a, b] = [a, b].map(Tensor::into_dispatch);
        Tensor::from_dispatch(match self.form {
            Form::Cast(_) => Dispatch::widened(a, b),
            _ => Dispatch::exact(a, b),
        })
    }
}

impl<const D: usize> Recorded<2> for Product<D> {
    /// Both inputs, as they were multiplied.
    type Saved = [Tensor<D>; 2];

    fn forward(&self, inputs: [DispatchTensor; 2]) -> (DispatchTensor, Self::Saved) {
        let saved = inputs.map(|input| self.form.input(Tensor::<D>::from_dispatch(input)));
        let [a, b] = saved.clone();
        (self.of(a, b).into_dispatch(), saved)
    }

    fn backward(
        &self,
        [a, b]: Self::Saved,
        grad: DispatchTensor,
        [want_a, want_b]: [bool; 2],
    ) -> [Option<DispatchTensor>; 2] {
        let grad = self.form.input(Tensor::<D>::from_dispatch(grad));
        [
            want_a.then(|| self.of(grad.clone(), transpose(b)).into_dispatch()),
            want_b.then(|| self.of(transpose(a), grad).into_dispatch()),
        ]
    }
}

/// Multiplies matrices in [`Form::Exact`] or [`Form::Cast`].
pub(in crate::ops) fn product<const D: usize>(form: Form, a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    let (mut of_a, mut of_b) = (a.dims(), b.dims());
    for axis in 0..D - 2 {
        let longest = of_a[axis].max(of_b[axis]);
        (of_a[axis], of_b[axis]) = (longest, longest);
    }
    let spread = |x: Tensor<D>, dims: [usize; D]| if x.dims() == dims { x } else { x.expand(dims) };
    let (a, b) = (spread(a, of_a), spread(b, of_b));
    let product = Product { form };
    if a.device().is_autodiff() || b.device().is_autodiff() {
        return bridge::run(product, [a, b].map(Tensor::into_dispatch));
    }
    product.of(form.input(a), form.input(b))
}

impl Rounding {
    fn of(self, x: DispatchTensor, what: What) -> DispatchTensor {
        match self.precision {
            _ if self.what != what => x,
            Precision::Bf16 => Dispatch::round(x, 16),
            Precision::Exact | Precision::Tf32 | Precision::F16 => Dispatch::round(x, 13),
        }
    }
}

impl Recorded<1> for Rounding {
    type Saved = ();

    fn forward(&self, [x]: [DispatchTensor; 1]) -> (DispatchTensor, ()) {
        (self.of(x, What::Values), ())
    }

    fn backward(&self, (): (), grad: DispatchTensor, _: [bool; 1]) -> [Option<DispatchTensor>; 1] {
        [Some(self.of(grad, What::Gradient))]
    }
}

/// Rounds numbers or their gradient, to TF32 or `bf16`.
pub(in crate::ops) fn rounded<const D: usize>(x: Tensor<D>, rounding: Rounding) -> Tensor<D> {
    match x.device().is_autodiff() {
        true => bridge::run(rounding, [x.into_dispatch()]),
        false => Tensor::from_dispatch(rounding.of(x.into_dispatch(), What::Values)),
    }
}
