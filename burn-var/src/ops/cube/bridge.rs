//! Operations on GPUs with a backward pass of their own, written with tensors off the graph.

use core::{fmt::Debug, marker::PhantomData};

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::{BalancedCheckpointing, CheckpointStrategy, NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    BackendTensor, Cube, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind, GradientCheckpointingStrategy,
    autodiff::Autodiff,
};
use burn::tensor::Tensor;

/// Node of the autodiff graph with its value.
type Tracked = FloatTensor<Autodiff<Cube>>;

/// Differentiable operation on `N` tensors, which are given off the graph.
pub(super) trait Recorded<const N: usize>: Clone + Debug + Send + 'static {
    /// Values that the backward pass needs from the forward pass.
    type Saved: Clone + Debug + Send + 'static;

    /// Computes the output, and the values to keep for the backward pass.
    fn forward(&self, inputs: [DispatchTensor; N]) -> (DispatchTensor, Self::Saved);

    /// Computes the gradients of the inputs for which `wanted` is set, from that of the output.
    fn backward(&self, saved: Self::Saved, grad: DispatchTensor, wanted: [bool; N]) -> [Option<DispatchTensor>; N];
}

/// Runs an operation on tensors of a GPU, at least one of which is on the graph.
pub(super) fn run<K: Recorded<N>, const N: usize, const D: usize>(kernel: K, inputs: [DispatchTensor; N]) -> Tensor<D> {
    let merge = |context: DispatchAutodiffContext, input: &DispatchTensor| context.merge(input.autodiff);
    let autodiff = inputs.iter().fold(DispatchAutodiffContext::Disabled, merge);
    let inputs = inputs.map(tracked);
    let output = match autodiff {
        DispatchAutodiffContext::Enabled(GradientCheckpointingStrategy::Balanced) => {
            record::<_, BalancedCheckpointing, N>(kernel, inputs)
        }
        _ => record::<_, NoCheckpointing, N>(kernel, inputs),
    };
    let kind = DispatchTensorKind::Autodiff(Box::new(DispatchTensorKind::Cube(BackendTensor::Autodiff(output))));
    Tensor::from_dispatch(DispatchTensor { kind, autodiff })
}

fn tracked(tensor: DispatchTensor) -> Tracked {
    match cube(tensor) {
        BackendTensor::Autodiff(tensor) => tensor,
        tensor => Tracked::new(tensor.float()),
    }
}

/// Returns the tensor of a GPU.
pub(super) fn cube(tensor: DispatchTensor) -> BackendTensor<Cube> {
    // With a single backend enabled some of these patterns are exhaustive.
    #[allow(unreachable_patterns)]
    match tensor.kind {
        DispatchTensorKind::Autodiff(inner) => match *inner {
            DispatchTensorKind::Cube(tensor) => tensor,
            _ => unreachable!("only tensors of a GPU come here"),
        },
        DispatchTensorKind::Cube(tensor) => tensor,
        _ => unreachable!("only tensors of a GPU come here"),
    }
}

/// Wraps a tensor off the graph.
pub(super) fn off_graph(value: FloatTensor<Cube>) -> DispatchTensor {
    let kind = DispatchTensorKind::Cube(BackendTensor::Float(value));
    DispatchTensor { kind, autodiff: DispatchAutodiffContext::Disabled }
}

fn record<K: Recorded<N>, C: CheckpointStrategy, const N: usize>(kernel: K, inputs: [Tracked; N]) -> Tracked {
    let nodes = inputs.each_ref().map(Tracked::node);
    let (output, saved) = kernel.forward(inputs.map(|input| off_graph(input.into_primitive())));
    let output = cube(output).float();
    match (Step::<K>(PhantomData)).prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(step) => step.finish((kernel, saved), output),
        OpsKind::UnTracked(step) => step.finish(output),
    }
}

/// Backward step of an operation.
#[derive(Debug)]
struct Step<K>(PhantomData<K>);

impl<K: Recorded<N>, const N: usize> Backward<Cube, N> for Step<K> {
    type State = (K, K::Saved);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = off_graph(grads.consume::<Cube>(&ops.node));
        let (kernel, saved) = ops.state;
        let wanted = ops.parents.each_ref().map(Option::is_some);
        for (parent, grad) in ops.parents.into_iter().zip(kernel.backward(saved, grad, wanted)) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<Cube>(parent.id, cube(grad).float());
            }
        }
    }
}
