//! AdamW of many parameters at once.

#[cfg(not(feature = "gpu"))]
use core::convert::Infallible;

use burn::tensor::{Device, Tensor};

use super::AdamWStep;
#[cfg(feature = "gpu")]
use super::cube::{self, optimizer};

/// Clipping and moving averages of a [`JointUpdate`].
#[derive(Debug, Clone)]
pub struct Clipping {
    /// Factor of all gradients, before their norm is taken: one over the number of summed gradients, for a mean.
    pub share: f64,
    /// The largest norm of all gradients together; `None` clips nothing.
    pub max: Option<f64>,
    /// Share of the way that moving averages go towards the weights.
    pub follow: f64,
    /// Index of the step, from 0.
    pub step: u64,
    /// The numbers of the step before, which [`JointUpdate::run`] returned; [`Clipping::first`] before the first step.
    pub before: Tensor<1>,
}

impl Clipping {
    /// Returns [`Clipping::before`] of the first step.
    pub fn first(device: &Device) -> Tensor<1> {
        Tensor::from_data([0.0, -1.0, 0.0], device)
    }
}

/// A step of AdamW with gradient clipping and moving averages for all parameters of a module, in a few kernels: on GPUs. The
/// formulas are those of [`adamw`](super::adamw()), and nothing is read back.
///
/// From the first step whose gradients have a norm that is not finite, no update changes anything.
pub struct JointUpdate {
    #[cfg(feature = "gpu")]
    parts: Vec<(optimizer::Part, burn::backend::DispatchTensor, AdamWStep)>,
    #[cfg(not(feature = "gpu"))]
    parts: Infallible,
}

impl JointUpdate {
    /// Starts an update, if this build has its kernels.
    pub fn new() -> Option<Self> {
        #[cfg(feature = "gpu")]
        return Some(Self { parts: Vec::new() });
        #[cfg(not(feature = "gpu"))]
        None
    }

    /// Returns `true` if a tensor can be a parameter of an update: off the graph, in `f32`, on a GPU.
    pub fn takes<const D: usize>(tensor: &Tensor<D>) -> bool {
        #[cfg(feature = "gpu")]
        return cube::is_plain(tensor);
        #[cfg(not(feature = "gpu"))]
        {
            let _ = tensor;
            false
        }
    }

    /// Adds a parameter, whose tensors have one shape. `None` stands for moments of zero, as before the first step, or for a
    /// parameter without moving average.
    pub fn push<const D: usize>(
        &mut self,
        weights: Tensor<D>,
        grad: Tensor<D>,
        moments: Option<[Tensor<D>; 2]>,
        average: Option<Tensor<D>>,
        step: AdamWStep,
    ) {
        #[cfg(feature = "gpu")]
        {
            let moments = moments.unwrap_or_else(|| [weights.zeros_like(), weights.zeros_like()]);
            let part = optimizer::Part {
                weights: weights.into_dispatch(),
                moments: moments.map(Tensor::into_dispatch),
                average: average.map(Tensor::into_dispatch),
            };
            self.parts.push((part, grad.into_dispatch(), step));
        }
        #[cfg(not(feature = "gpu"))]
        {
            let _ = (weights, grad, moments, average, step);
            match self.parts {}
        }
    }

    /// Updates the parameters. Returns them, and beside them three numbers: the norm of all gradients before clipping, the
    /// first step whose norm was not finite, or -1, and that norm.
    pub fn run(self, clipping: &Clipping) -> (UpdatedParameters, Tensor<1>) {
        #[cfg(feature = "gpu")]
        {
            let (parts, norm) = optimizer::update(self.parts, clipping);
            (UpdatedParameters { parts: parts.into_iter() }, norm)
        }
        #[cfg(not(feature = "gpu"))]
        {
            let _ = clipping;
            match self.parts {}
        }
    }
}

/// Weights, both moments and the average of a parameter after an update.
pub type UpdatedParameter<const D: usize> = (Tensor<D>, [Tensor<D>; 2], Option<Tensor<D>>);

/// The parameters of a [`JointUpdate`], in the order in which they were added.
pub struct UpdatedParameters {
    #[cfg(feature = "gpu")]
    parts: std::vec::IntoIter<optimizer::Part>,
    #[cfg(not(feature = "gpu"))]
    parts: Infallible,
}

impl UpdatedParameters {
    /// Takes the next parameter, `None` after the last.
    pub fn take<const D: usize>(&mut self) -> Option<UpdatedParameter<D>> {
        #[cfg(feature = "gpu")]
        {
            let optimizer::Part { weights, moments, average } = self.parts.next()?;
            let weights = Tensor::from_dispatch(weights);
            Some((weights, moments.map(Tensor::from_dispatch), average.map(Tensor::from_dispatch)))
        }
        #[cfg(not(feature = "gpu"))]
        match self.parts {}
    }
}
