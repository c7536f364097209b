use core::{fmt::Debug, marker::PhantomData};
use std::sync::LazyLock;

use burn::{
    backend::{
        BackendTensor, DispatchAutodiffContext, DispatchDevice, DispatchTensor, DispatchTensorKind, Flex,
        GradientCheckpointingStrategy, TensorMetadata,
        autodiff::{
            Autodiff,
            checkpoint::{
                base::Checkpointer,
                strategy::{BalancedCheckpointing, CheckpointStrategy, NoCheckpointing},
            },
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        tensor::FloatTensor,
    },
    tensor::{Bytes, DType, Shape, Tensor},
};
use burn_flex::{FlexTensor, Layout};
use rayon::prelude::*;

/// Node of the autodiff graph with its value.
type Tracked = FloatTensor<Autodiff<Flex>>;

/// Contiguous `f32` tensor. Clones share the values.
#[derive(Clone, Debug)]
pub(in crate::ops) struct Array(FlexTensor);

impl Array {
    /// # Panics
    /// If the number of values is not the product of `shape`.
    pub(super) fn new(values: Vec<f32>, shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        assert_eq!(
            values.len(),
            shape.num_elements(),
            "a kernel returned the wrong number of values for shape {shape:?}"
        );
        Self(FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape), DType::F32))
    }

    pub(super) fn values(&self) -> &[f32] {
        self.0.storage()
    }

    /// Returns the values for changes in place, copied first if they are shared.
    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        self.0.storage_mut()
    }

    /// Calls `change` in parallel with the index and the values of every piece of `len` values, and returns its results
    /// in the order of the pieces. Reuses the memory of a tensor that is not shared.
    pub(super) fn update<R: Send>(
        mut self,
        len: usize,
        change: impl Fn(usize, &mut [f32]) -> R + Sync,
    ) -> (Self, Vec<R>) {
        let len = len.max(1);
        if let Some(values) = self.0.try_storage_mut() {
            let results = values.par_chunks_mut(len).enumerate().map(|(index, piece)| change(index, piece)).collect();
            return (self, results);
        }
        let from = self.values();
        let mut values = Vec::with_capacity(from.len());
        let pieces =
            values.spare_capacity_mut()[..from.len()].par_chunks_mut(len).zip(from.par_chunks(len)).enumerate();
        let results = pieces.map(|(index, (piece, from))| change(index, piece.write_copy_of_slice(from))).collect();
        // SAFETY: the pieces cover all values, and each has been written.
        unsafe { values.set_len(from.len()) };
        (Self::new(values, self.shape()), results)
    }

    pub(super) fn shape(&self) -> Shape {
        self.0.shape()
    }

    pub(super) fn dims<const D: usize>(&self) -> [usize; D] {
        self.0.shape().dims()
    }
}

impl<const D: usize> From<Tensor<D>> for Array {
    /// Returns the values, without the graph.
    ///
    /// # Panics
    /// If [`supports`] does not accept the tensor.
    fn from(tensor: Tensor<D>) -> Self {
        tracked(tensor.into_dispatch()).into_primitive().into()
    }
}

impl<const D: usize> From<Array> for Tensor<D> {
    fn from(array: Array) -> Self {
        let kind = DispatchTensorKind::Flex(BackendTensor::Float(array.0));
        Self::from_dispatch(DispatchTensor { kind, autodiff: DispatchAutodiffContext::Disabled })
    }
}

impl From<FlexTensor> for Array {
    fn from(tensor: FlexTensor) -> Self {
        Self(tensor.to_contiguous())
    }
}

/// Differentiable operation on `N` tensors.
pub(in crate::ops) trait Kernel<const N: usize>: Clone + Debug + Send + 'static {
    /// Values that the backward pass needs from the forward pass.
    type Saved: Clone + Debug + Send + 'static;

    /// Computes the output, and the values to keep for the backward pass.
    fn forward(&self, inputs: [Array; N]) -> (Array, Self::Saved);

    /// Computes only the output, for kernels that need less memory if nothing is kept.
    fn infer(&self, inputs: [Array; N]) -> Array {
        self.forward(inputs).0
    }

    /// Computes the gradients of the inputs for which `wanted` is set, given the gradient of the output.
    fn backward(&self, saved: Self::Saved, grad: Array, wanted: [bool; N]) -> [Option<Array>; N];
}

/// Enables the kernels. `BURN_VAR_KERNELS=generic` disables them, for comparison and to find out whether one of them
/// causes a problem.
static ENABLED: LazyLock<bool> =
    LazyLock::new(|| std::env::var_os("BURN_VAR_KERNELS").is_none_or(|it| it != "generic"));

/// Returns `true` if a tensor can be the input of a [`Kernel`].
pub(in crate::ops) fn supports<const D: usize>(tensor: &Tensor<D>) -> bool {
    // With a single backend enabled some of these patterns are exhaustive.
    #[allow(unreachable_patterns)]
    let flex = match tensor.device().as_dispatch() {
        DispatchDevice::Flex(_) => true,
        DispatchDevice::Autodiff(device) => matches!(**device, DispatchDevice::Flex(_)),
        _ => false,
    };
    flex && tensor.dtype() == DType::F32 && *ENABLED
}

/// Returns `true` if [`supports`] accepts a tensor and it is off the autodiff graph.
pub(in crate::ops) fn is_plain<const D: usize>(tensor: &Tensor<D>) -> bool {
    supports(tensor) && !tensor.device().is_autodiff()
}

/// Returns a placeholder for an absent input.
pub(in crate::ops) fn absent<const D: usize, const E: usize>(like: &Tensor<D>) -> Tensor<E> {
    Tensor::zeros([0; E], (&like.device().inner(), DType::F32))
}

/// Opens a span for profilers, disabled unless a subscriber listens.
pub(in crate::ops) fn span<K>(pass: &str) -> tracing::span::EnteredSpan {
    let name = core::any::type_name::<K>();
    let name = name.rsplit("::").next().unwrap_or(name);
    tracing::trace_span!("kernel", op = name, pass).entered()
}

/// Runs a kernel on tensors that [`supports`] accepts. Untracked tensors among tracked ones are constants.
pub(in crate::ops) fn run<K: Kernel<N>, const N: usize, const D: usize>(
    kernel: K,
    inputs: [DispatchTensor; N],
) -> Tensor<D> {
    let _span = span::<K>("forward");
    let autodiff =
        inputs.iter().fold(DispatchAutodiffContext::Disabled, |context, input| context.merge(input.autodiff));
    let kind = match autodiff {
        DispatchAutodiffContext::Disabled => {
            return kernel.infer(inputs.map(|input| Array::from(tracked(input).into_primitive()))).into();
        }
        DispatchAutodiffContext::Enabled(strategy) => {
            let inputs = inputs.map(tracked);
            let output = match strategy {
                GradientCheckpointingStrategy::Balanced => record::<_, BalancedCheckpointing, N>(kernel, inputs),
                GradientCheckpointingStrategy::Disabled => record::<_, NoCheckpointing, N>(kernel, inputs),
            };
            DispatchTensorKind::Autodiff(Box::new(DispatchTensorKind::Flex(BackendTensor::Autodiff(output))))
        }
    };
    Tensor::from_dispatch(DispatchTensor { kind, autodiff })
}

fn tracked(tensor: DispatchTensor) -> Tracked {
    #[allow(unreachable_patterns)]
    let tensor = match tensor.kind {
        DispatchTensorKind::Autodiff(inner) => match *inner {
            DispatchTensorKind::Flex(tensor) => tensor,
            _ => unreachable!("`supports` lets only Flex tensors pass"),
        },
        DispatchTensorKind::Flex(tensor) => tensor,
        _ => unreachable!("`supports` lets only Flex tensors pass"),
    };
    match tensor {
        BackendTensor::Autodiff(tensor) => tensor,
        tensor => Tracked::new(tensor.float()),
    }
}

fn record<K: Kernel<N>, C: CheckpointStrategy, const N: usize>(kernel: K, inputs: [Tracked; N]) -> Tracked {
    let nodes = inputs.each_ref().map(Tracked::node);
    let (output, saved) = kernel.forward(inputs.map(|input| input.into_primitive().into()));
    match (Step::<K>(PhantomData)).prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(step) => step.finish((kernel, saved), output.0),
        OpsKind::UnTracked(step) => step.finish(output.0),
    }
}

/// Backward step of a kernel.
#[derive(Debug)]
struct Step<K>(PhantomData<K>);

impl<K: Kernel<N>, const N: usize> Backward<Flex, N> for Step<K> {
    type State = (K, K::Saved);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let _span = span::<K>("backward");
        let grad = Array::from(grads.consume::<Flex>(&ops.node));
        let (kernel, saved) = ops.state;
        let wanted = ops.parents.each_ref().map(Option::is_some);
        for (parent, grad) in ops.parents.into_iter().zip(kernel.backward(saved, grad, wanted)) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<Flex>(parent.id, grad.0);
            }
        }
    }
}
