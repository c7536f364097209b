use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use crate::nn;

/// Layer norm with bounds on inputs, parameters and outputs (`SafeLayerNorm` in AID-VAR's code). No gradient passes a
/// value that is out of bounds.
#[derive(Module, Debug)]
pub struct SafeLayerNorm {
    /// `[channels]`, clamped to `[0.1, 2]`.
    pub weight: Param<Tensor<1>>,
    /// `[channels]`, clamped to `[-1, 1]`.
    pub bias: Param<Tensor<1>>,
}

impl SafeLayerNorm {
    /// Added to the variance, after the variance has been clamped to at least this value.
    const EPSILON: f64 = 1e-5;

    /// Creates a norm whose parameters are zero, to be initialized or loaded.
    pub fn new(channels: usize, device: &Device) -> Self {
        Self { weight: nn::zeros([channels], device), bias: nn::zeros([channels], device) }
    }

    /// Normalizes the last axis of `[batch, length, channels]` to values in `[-3, 3]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let x = x.clamp(-10.0, 10.0);
        let centered = x.clone() - x.mean_dim(2);
        let variance = centered.clone().square().mean_dim(2).clamp(Self::EPSILON, 100.0);
        let normalized = (centered / (variance + Self::EPSILON).sqrt()).clamp(-5.0, 5.0);
        let weight = self.weight.val().clamp(0.1, 2.0).unsqueeze();
        let bias = self.bias.val().clamp(-1.0, 1.0).unsqueeze();
        (normalized * weight + bias).clamp(-3.0, 3.0)
    }
}
