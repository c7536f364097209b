//! Encoder and decoder of VQ-GAN (Esser et al. 2021), as VAR uses them (`models/basic_vae.py` of its code).

use burn::module::Module;
use burn::tensor::module::interpolate;
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};
use burn::tensor::{Device, Tensor};

use crate::init::{Init, ParamInfo, fan_in_bound};
use crate::nn::{Conv2d, GroupNorm};
use crate::ops;

/// Sizes of an [`Encoder`] and a [`Decoder`].
#[derive(Debug, Clone)]
pub struct VqGanSizes {
    /// Channels of the images.
    pub image_channels: usize,
    /// Channels of each level, finest first, each a multiple of 32. Each level but the last halves the map.
    pub channels: Vec<usize>,
    /// Residual blocks per level in the encoder; the decoder has one more.
    pub num_res_blocks: usize,
    /// Channels of the latent.
    pub z_channels: usize,
}

/// Returns the initial values of a parameter of these networks: PyTorch's defaults, with biases of zero.
pub(crate) fn untrained(param: &ParamInfo<'_>) -> Init {
    match param.shape {
        [_, rest @ ..] if !rest.is_empty() => fan_in_bound(rest.iter().product()),
        _ => Init::Keep,
    }
}

/// Two 3x3 convolutions, each after group norm and SiLU, added to the input.
#[derive(Module, Debug)]
pub struct ResBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    nin_shortcut: Option<Conv2d>,
}

impl ResBlock {
    fn new(input: usize, output: usize, device: &Device) -> Self {
        Self {
            norm1: GroupNorm::new(input, device),
            conv1: Conv2d::same([input, output], 3, device),
            norm2: GroupNorm::new(output, device),
            conv2: Conv2d::same([output, output], 3, device),
            nin_shortcut: (input != output).then(|| Conv2d::same([input, output], 1, device)),
        }
    }

    /// Maps `[batch, input, height, width]` to `[batch, output, height, width]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let h = self.conv1.forward(self.norm1.forward_silu(x.clone()));
        let h = self.conv2.forward(self.norm2.forward_silu(h));
        match &self.nin_shortcut {
            Some(shortcut) => shortcut.forward(x) + h,
            None => x + h,
        }
    }
}

/// Self-attention over all positions of a map, one head, added to the input.
#[derive(Module, Debug)]
pub struct AttnBlock {
    norm: GroupNorm,
    qkv: Conv2d,
    proj_out: Conv2d,
}

impl AttnBlock {
    fn new(channels: usize, device: &Device) -> Self {
        Self {
            norm: GroupNorm::new(channels, device),
            qkv: Conv2d::same([channels, 3 * channels], 1, device),
            proj_out: Conv2d::same([channels, channels], 1, device),
        }
    }

    /// Maps `[batch, channels, height, width]` to the same shape.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        let qkv = self.qkv.forward(self.norm.forward(x.clone())).reshape([batch, 3 * channels, height * width]);
        let part = |i: usize| qkv.clone().narrow(1, i * channels, channels); // [batch, channels, positions]
        let scores = ops::matmul(ops::transpose(part(0)), part(1)) * (channels as f64).powf(-0.5); // [batch, query, key]
        let mixed = ops::matmul(part(2), ops::transpose(ops::softmax(scores))); // [batch, channels, query]
        x + self.proj_out.forward(mixed.reshape([batch, channels, height, width]))
    }
}

/// A single convolution, in a struct to match the paths of the checkpoints.
#[derive(Module, Debug)]
struct Resample {
    conv: Conv2d,
}

/// One level of the encoder or decoder.
#[derive(Module, Debug)]
struct Level {
    block: Vec<ResBlock>,
    /// One per block, on the coarsest level only.
    attn: Vec<AttnBlock>,
    downsample: Option<Resample>,
    upsample: Option<Resample>,
}

impl Level {
    fn new(input: usize, output: usize, blocks: usize, attention: bool, device: &Device) -> Self {
        Self {
            block: (0..blocks).map(|i| ResBlock::new(if i == 0 { input } else { output }, output, device)).collect(),
            attn: (0..if attention { blocks } else { 0 }).map(|_| AttnBlock::new(output, device)).collect(),
            downsample: None,
            upsample: None,
        }
    }

    fn forward(&self, mut x: Tensor<4>) -> Tensor<4> {
        for (i, block) in self.block.iter().enumerate() {
            x = block.forward(x);
            if let Some(attn) = self.attn.get(i) {
                x = attn.forward(x);
            }
        }
        if let Some(downsample) = &self.downsample {
            x = downsample.conv.forward(x);
        }
        if let Some(upsample) = &self.upsample {
            let [_, _, height, width] = x.dims();
            let options = InterpolateOptions::new(InterpolateMode::Nearest).with_output_size([2 * height, 2 * width]);
            x = upsample.conv.forward(interpolate(x, options));
        }
        x
    }
}

/// Blocks at the lowest resolution, at the end of the encoder and the start of the decoder.
#[derive(Module, Debug)]
struct Middle {
    block_1: ResBlock,
    attn_1: AttnBlock,
    block_2: ResBlock,
}

impl Middle {
    fn new(channels: usize, device: &Device) -> Self {
        Self {
            block_1: ResBlock::new(channels, channels, device),
            attn_1: AttnBlock::new(channels, device),
            block_2: ResBlock::new(channels, channels, device),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.block_2.forward(self.attn_1.forward(self.block_1.forward(x)))
    }
}

/// Encoder of images to latents.
#[derive(Module, Debug)]
pub struct Encoder {
    conv_in: Conv2d,
    down: Vec<Level>,
    mid: Middle,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    /// Creates the network with zero weights, to be initialized or loaded.
    pub fn new(sizes: &VqGanSizes, device: &Device) -> Self {
        let channels = &sizes.channels;
        let coarsest = channels.len() - 1;
        let mut input = channels[0];
        let down = channels.iter().enumerate().map(|(i, &output)| {
            let mut level = Level::new(input, output, sizes.num_res_blocks, i == coarsest, device);
            level.downsample = (i != coarsest).then(|| Resample { conv: Conv2d::halve(output, device) });
            input = output;
            level
        });
        Self {
            conv_in: Conv2d::same([sizes.image_channels, channels[0]], 3, device),
            down: down.collect(),
            mid: Middle::new(channels[coarsest], device),
            norm_out: GroupNorm::new(channels[coarsest], device),
            conv_out: Conv2d::same([channels[coarsest], sizes.z_channels], 3, device),
        }
    }

    /// Encodes `[batch, channels, height, width]` in `[-1, 1]` to `[batch, z_channels, height / f, width / f]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = self.down.iter().fold(self.conv_in.forward(x), |x, level| level.forward(x));
        self.conv_out.forward(self.norm_out.forward_silu(self.mid.forward(x)))
    }
}

/// Decoder of latents to images.
#[derive(Module, Debug)]
pub struct Decoder {
    conv_in: Conv2d,
    mid: Middle,
    /// In order of levels: the coarsest is the last and runs first.
    up: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    /// Creates the network with zero weights, to be initialized or loaded.
    pub fn new(sizes: &VqGanSizes, device: &Device) -> Self {
        let channels = &sizes.channels;
        let coarsest = channels.len() - 1;
        let up = channels.iter().enumerate().map(|(i, &output)| {
            let input = channels[(i + 1).min(coarsest)];
            let mut level = Level::new(input, output, sizes.num_res_blocks + 1, i == coarsest, device);
            level.upsample = (i != 0).then(|| Resample { conv: Conv2d::same([output, output], 3, device) });
            level
        });
        Self {
            conv_in: Conv2d::same([sizes.z_channels, channels[coarsest]], 3, device),
            mid: Middle::new(channels[coarsest], device),
            up: up.collect(),
            norm_out: GroupNorm::new(channels[0], device),
            conv_out: Conv2d::same([channels[0], sizes.image_channels], 3, device),
        }
    }

    /// Decodes `[batch, z_channels, height, width]` to `[batch, channels, f * height, f * width]`, about `[-1, 1]`, not
    /// clamped.
    pub fn forward(&self, z: Tensor<4>) -> Tensor<4> {
        self.forward_with_trunk(z).1
    }

    /// Decodes, and returns the input of the last convolution too, where the gradients for the adaptive weight of a GAN
    /// loss are taken.
    pub fn forward_with_trunk(&self, z: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let x = self.mid.forward(self.conv_in.forward(z));
        let x = self.up.iter().rev().fold(x, |x, level| level.forward(x));
        let trunk = self.norm_out.forward_silu(x);
        (trunk.clone(), self.conv_out.forward(trunk))
    }

    /// Returns the last convolution.
    pub fn conv_out(&self) -> &Conv2d {
        &self.conv_out
    }
}
