//! Layers that the models share, with fields named as in PyTorch's checkpoints.
//!
//! [`Conv2d`], [`GroupNorm`] and [`LayerNorm`] shadow Burn's layers of the same names because they run the fused
//! kernels of [`ops`] where there are any. They hold no more than the models need: [`GroupNorm`] is fixed at 32 groups
//! and an epsilon of 1e-6, and [`Conv2d`] has square kernels and always a bias.

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
    /// Creates a convolution that keeps the size of the map: stride 1, zero padding. Weights start at zero.
    pub fn same(channels: [usize; 2], kernel: usize, device: &Device) -> Self {
        let pad = kernel / 2;
        Self::new(channels, kernel, ConvSpec { stride: 1, padding: [pad; 4] }, device)
    }

    /// Creates a convolution that halves the map as VAR's encoder does: a row and a column of zeros at the end, then
    /// 3x3 with stride 2. Weights start at zero.
    pub fn halve(channels: usize, device: &Device) -> Self {
        Self::new([channels; 2], 3, ConvSpec { stride: 2, padding: [0, 1, 0, 1] }, device)
    }

    /// Creates a convolution with a square kernel and any stride and padding. Weights start at zero.
    pub fn new([input, output]: [usize; 2], kernel: usize, spec: ConvSpec, device: &Device) -> Self {
        Self {
            weight: Initializer::Zeros.init([output, input, kernel, kernel], device),
            bias: Initializer::Zeros.init([output], device),
            stride: spec.stride,
            padding: spec.padding,
        }
    }

    /// Convolves `[batch, in, height, width]` to `[batch, out, height', width']`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let spec = ConvSpec { stride: self.stride, padding: self.padding };
        ops::conv2d(x, self.weight.val(), Some(self.bias.val()), spec)
    }
}

/// Group norm with 32 groups and epsilon 1e-6, as in VAR's tokenizer.
#[derive(Module, Debug)]
pub struct GroupNorm {
    /// `[channels]`.
    pub weight: Param<Tensor<1>>,
    /// `[channels]`.
    pub bias: Param<Tensor<1>>,
}

impl GroupNorm {
    /// Number of groups; the number of channels must be a multiple of it.
    pub const GROUPS: usize = 32;
    const EPSILON: f64 = 1e-6;

    /// Creates a norm with weight one and bias zero.
    pub fn new(channels: usize, device: &Device) -> Self {
        Self { weight: Initializer::Ones.init([channels], device), bias: Initializer::Zeros.init([channels], device) }
    }

    /// Normalizes `[batch, channels, height, width]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        ops::group_norm(x, self.weight.val(), self.bias.val(), Self::GROUPS, Self::EPSILON)
    }

    /// Normalizes `[batch, channels, height, width]`, then applies SiLU.
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
    /// Creates a norm with weight one and bias zero.
    pub fn new(channels: usize, epsilon: f64, device: &Device) -> Self {
        let weight = Initializer::Ones.init([channels], device);
        Self { weight, bias: zeros([channels], device), epsilon }
    }

    /// Normalizes `[batch, length, channels]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        ops::layer_norm(x, self.weight.val(), self.bias.val(), self.epsilon)
    }
}

/// Applies a linear layer to the last axis, `[.., in]` to `[.., out]`.
pub(crate) fn apply<const D: usize>(linear: &Linear, x: Tensor<D>) -> Tensor<D> {
    ops::linear(x, linear.weight.val(), linear.bias.as_ref().map(Param::val))
}

/// Applies a linear layer as [`apply`], for networks whose published results came from Burn's own product.
#[cfg(feature = "metrics")]
pub(crate) fn generic(linear: &Linear, x: Tensor<2>) -> Tensor<2> {
    ops::generic_linear(x, linear.weight.val(), linear.bias.as_ref().map(Param::val))
}

/// Creates a linear layer of zeros, allocated on first use.
pub(crate) fn linear(input: usize, output: usize, bias: bool, device: &Device) -> Linear {
    LinearConfig::new(input, output).with_bias(bias).with_initializer(Initializer::Zeros).init(device)
}

/// Creates an embedding table of zeros, allocated on first use.
pub(crate) fn embedding(count: usize, width: usize, device: &Device) -> Embedding {
    EmbeddingConfig::new(count, width).with_initializer(Initializer::Zeros).init(device)
}

/// Creates a parameter of zeros, allocated on first use.
pub(crate) fn zeros<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    Initializer::Zeros.init(shape, device)
}

/// Normalizes rows to unit length; a zero row stays zero (epsilon 1e-12, as PyTorch's `normalize`).
pub(crate) fn unit_rows(rows: Tensor<2>) -> Tensor<2> {
    let length = rows.clone().square().sum_dim(1).sqrt().clamp_min(1e-12);
    rows / length
}
