//! The few layers that the models share. Their fields are named as in PyTorch's checkpoints.

use burn::module::{Initializer, Module, Param};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use crate::ops::{self, ConvSpec};

/// Two-dimensional convolution, `[batch, in, height, width]` to `[batch, out, height', width']`.
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[out, in, kernel, kernel]`.
    pub weight: Param<Tensor<4>>,
    /// `[out]`.
    pub bias: Param<Tensor<1>>,
    stride: usize,
    padding: [usize; 4],
}

impl Conv2d {
    /// A convolution that keeps the size of the map: stride 1, zeros around. Weights start as zeros.
    pub fn same(channels: [usize; 2], kernel: usize, device: &Device) -> Self {
        let pad = kernel / 2;
        Self::new(channels, kernel, ConvSpec { stride: 1, padding: [pad; 4] }, device)
    }

    /// Halves the map as VAR's encoder does: a row and a column of zeros at the end, then 3x3 with stride 2.
    pub fn halve(channels: usize, device: &Device) -> Self {
        Self::new([channels; 2], 3, ConvSpec { stride: 2, padding: [0, 1, 0, 1] }, device)
    }

    /// A square kernel with any stride and padding. Weights start as zeros.
    pub fn new([input, output]: [usize; 2], kernel: usize, spec: ConvSpec, device: &Device) -> Self {
        Self {
            weight: Initializer::Zeros.init([output, input, kernel, kernel], device),
            bias: Initializer::Zeros.init([output], device),
            stride: spec.stride,
            padding: spec.padding,
        }
    }

    /// `[batch, in, height, width]` to `[batch, out, height', width']`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let spec = ConvSpec { stride: self.stride, padding: self.padding };
        ops::conv2d(x, self.weight.val(), Some(self.bias.val()), spec)
    }
}

/// Group norm with the 32 groups and the epsilon of VAR's tokenizer.
#[derive(Module, Debug)]
pub struct GroupNorm {
    /// `[channels]`.
    pub weight: Param<Tensor<1>>,
    /// `[channels]`.
    pub bias: Param<Tensor<1>>,
}

impl GroupNorm {
    /// Number of groups; channels must be a multiple of it.
    pub const GROUPS: usize = 32;
    const EPSILON: f64 = 1e-6;

    /// Scale one, shift zero.
    pub fn new(channels: usize, device: &Device) -> Self {
        Self { weight: Initializer::Ones.init([channels], device), bias: Initializer::Zeros.init([channels], device) }
    }

    /// Normalises `[batch, channels, height, width]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        ops::group_norm(x, self.weight.val(), self.bias.val(), Self::GROUPS, Self::EPSILON)
    }

    /// Normalises, then SiLU.
    pub fn forward_silu(&self, x: Tensor<4>) -> Tensor<4> {
        ops::group_norm_silu(x, self.weight.val(), self.bias.val(), Self::GROUPS, Self::EPSILON)
    }
}

/// Layer norm over the last axis.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[channels]`.
    pub weight: Param<Tensor<1>>,
    /// `[channels]`.
    pub bias: Param<Tensor<1>>,
    epsilon: f64,
}

impl LayerNorm {
    /// Scale one, shift zero.
    pub fn new(channels: usize, epsilon: f64, device: &Device) -> Self {
        let weight = Initializer::Ones.init([channels], device);
        Self { weight, bias: zeros([channels], device), epsilon }
    }

    /// Normalises `[batch, length, channels]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        ops::layer_norm(x, self.weight.val(), self.bias.val(), self.epsilon)
    }
}

/// `[.., in]` to `[.., out]`.
pub(crate) fn apply<const D: usize>(linear: &Linear, x: Tensor<D>) -> Tensor<D> {
    ops::linear(x, linear.weight.val(), linear.bias.as_ref().map(Param::val))
}

/// A linear layer of zeros, not allocated before it is filled or used.
pub(crate) fn linear(input: usize, output: usize, bias: bool, device: &Device) -> Linear {
    LinearConfig::new(input, output).with_bias(bias).with_initializer(Initializer::Zeros).init(device)
}

/// An embedding table of zeros, not allocated before it is filled or used.
pub(crate) fn embedding(count: usize, width: usize, device: &Device) -> Embedding {
    EmbeddingConfig::new(count, width).with_initializer(Initializer::Zeros).init(device)
}

/// A parameter of zeros, not allocated before it is filled or used.
pub(crate) fn zeros<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    Initializer::Zeros.init(shape, device)
}
