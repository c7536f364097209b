//! VAR's tokenizer: a multi-scale residual VQ-VAE (`models/vqvae.py`).

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use serde::{Deserialize, Serialize};

use super::quantizer::{Quantized, Quantizer};
use crate::error::require_positive;
use crate::generation::{Tokenizer, Vocabulary};
use crate::init::{Init, initialize};
use crate::math::Resize;
use crate::models::common::vqgan::{Decoder, Encoder, VqGanSizes, untrained};
use crate::nn::{Conv2d, GroupNorm};
use crate::ops::Precision;
use crate::scales::ScaleAt;
use crate::{Error, MapSize, Result, Scales, TokenPyramid};

/// Sizes of a [`VqVae`]. Fields are named as in VAR's code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VqVaeConfig {
    /// Channels of the images: 3 for color, 1 for grayscale.
    #[serde(default = "default_image_channels")]
    pub image_channels: usize,
    /// Channels of the finest level; a multiple of 32, the number of norm groups.
    pub ch: usize,
    /// Channels of each level, as a multiple of `ch`. Each level but the last halves the map.
    pub ch_mult: Vec<usize>,
    /// Residual blocks per level in the encoder; the decoder has one more.
    pub num_res_blocks: usize,
    /// Channels of the latent and of a code.
    pub z_channels: usize,
    /// Number of codes.
    pub vocab_size: usize,
    /// Sizes of the token maps; the last is the size of the latent.
    pub patch_nums: Scales,
    /// Residual ratio of phi, 0.5 in all published models.
    #[serde(default = "default_quant_resi")]
    pub quant_resi: f64,
    /// Number of phi convolutions: 4 in the public model, 1 shared by all scales, 0 for one per scale.
    #[serde(default = "default_share_quant_resi")]
    pub share_quant_resi: usize,
    /// Selects codes by cosine similarity instead of distance.
    #[serde(default)]
    pub using_znorm: bool,
    /// Kernel of the convolutions around the quantizer: 3 in the public model, or 1.
    #[serde(default = "default_quant_conv_ks")]
    pub quant_conv_ks: usize,
    /// Weight of the commitment loss.
    #[serde(default = "default_beta")]
    pub beta: f64,
}

fn default_image_channels() -> usize {
    3
}

/// Residual ratio below which phi is the identity; the original's constant.
const NO_SHARE: f64 = 1e-6;

fn default_quant_resi() -> f64 {
    0.5
}

fn default_share_quant_resi() -> usize {
    4
}

fn default_quant_conv_ks() -> usize {
    3
}

fn default_beta() -> f64 {
    0.25
}

impl VqVaeConfig {
    /// Returns the sizes of the public tokenizer, `vae_ch160v4096z32.pth`: 109.0 million parameters, 16 pixels per
    /// token. It serves 256 and 512 pixels alike, with [`Scales::VAR_256`] or [`Scales::VAR_512`].
    pub fn public(patch_nums: Scales) -> Self {
        Self {
            image_channels: 3,
            ch: 160,
            ch_mult: vec![1, 1, 2, 2, 4],
            num_res_blocks: 2,
            z_channels: 32,
            vocab_size: 4096,
            patch_nums,
            quant_resi: 0.5,
            share_quant_resi: 4,
            using_znorm: false,
            quant_conv_ks: 3,
            beta: 0.25,
        }
    }

    /// Returns the number of pixels per token along one axis.
    pub fn downsampling(&self) -> usize {
        1 << (self.ch_mult.len().max(1) - 1)
    }

    /// Returns the shape of the images, `[channels, height, width]`.
    pub fn image_shape(&self) -> [usize; 3] {
        self.image_shape_of(&self.patch_nums)
    }

    fn image_shape_of(&self, scales: &Scales) -> [usize; 3] {
        let MapSize { height, width } = scales.finest();
        [self.image_channels, height * self.downsampling(), width * self.downsampling()]
    }

    fn networks(&self) -> VqGanSizes {
        VqGanSizes {
            image_channels: self.image_channels,
            channels: self.ch_mult.iter().map(|factor| factor * self.ch).collect(),
            num_res_blocks: self.num_res_blocks,
            z_channels: self.z_channels,
        }
    }

    /// Returns the number of phi convolutions; 0 if phi is the identity.
    pub fn phis(&self) -> usize {
        match self.share_quant_resi {
            _ if self.quant_resi.abs() < NO_SHARE => 0,
            0 => self.patch_nums.len(),
            shared => shared,
        }
    }

    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field, what it is, and what would be accepted.
    pub fn validate(&self) -> Result<()> {
        let positive = [
            ("image_channels", self.image_channels),
            ("num_res_blocks", self.num_res_blocks),
            ("z_channels", self.z_channels),
            ("vocab_size", self.vocab_size),
        ];
        require_positive(&positive)?;
        if self.ch == 0 || !self.ch.is_multiple_of(GroupNorm::GROUPS) {
            return Err(Error::config("ch", self.ch, format!("a multiple of {}, the norm groups", GroupNorm::GROUPS)));
        }
        if self.ch_mult.is_empty() || self.ch_mult.contains(&0) || self.ch_mult.len() > 8 {
            return Err(Error::config("ch_mult", format!("{:?}", self.ch_mult), "1 to 8 levels, each at least 1"));
        }
        if self.quant_conv_ks.is_multiple_of(2) {
            return Err(Error::config("quant_conv_ks", self.quant_conv_ks, "an odd kernel, 1 or 3"));
        }
        for (name, value) in [("quant_resi", self.quant_resi), ("beta", self.beta)] {
            if !value.is_finite() {
                return Err(Error::config(name, value, "a finite number"));
            }
        }
        Ok(())
    }

    /// Creates a tokenizer with untrained weights: PyTorch's defaults, and small uniform codes, all drawn from `seed`.
    ///
    /// # Errors
    /// The errors of [`VqVaeConfig::validate`].
    pub fn init(&self, seed: u64, device: &Device) -> Result<VqVae> {
        let vocab = self.vocab_size as f64;
        Ok(initialize(self.init_zeros(device)?, seed, |param| match param.path {
            "quantize.embedding.weight" => Init::Uniform(1.0 / vocab),
            _ => untrained(param),
        }))
    }

    /// Creates a tokenizer whose weights take no memory until they are loaded.
    ///
    /// # Errors
    /// The errors of [`VqVaeConfig::validate`].
    pub fn init_zeros(&self, device: &Device) -> Result<VqVae> {
        self.validate()?;
        Ok(VqVae {
            encoder: Encoder::new(&self.networks(), device),
            quant_conv: Conv2d::same([self.z_channels; 2], self.quant_conv_ks, device),
            quantize: Quantizer::new(self, device),
            post_quant_conv: Conv2d::same([self.z_channels; 2], self.quant_conv_ks, device),
            decoder: Decoder::new(&self.networks(), device),
            config: self.clone(),
        })
    }
}

/// VAR's tokenizer.
#[derive(Module, Debug)]
pub struct VqVae {
    /// Encoder: images to features.
    pub encoder: Encoder,
    /// Convolution from features to the latent that is quantized.
    pub quant_conv: Conv2d,
    /// Quantizer: latent to tokens.
    pub quantize: Quantizer,
    /// Convolution from the canvas to the decoder's input.
    pub post_quant_conv: Conv2d,
    /// Decoder: features to images.
    pub decoder: Decoder,
    #[module(skip)]
    config: VqVaeConfig,
}

impl VqVae {
    /// Returns the sizes.
    pub fn config(&self) -> &VqVaeConfig {
        &self.config
    }

    /// Encodes images `[batch, channels, height, width]` in `[-1, 1]` to the latent before quantization, `[batch,
    /// z_channels, height / f, width / f]`. Accepts any multiple of the downsampling factor.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of channels, or a size that is not a multiple of the downsampling.
    pub fn latent(&self, images: Tensor<4>) -> Result<Tensor<4>> {
        let [batch, channels, height, width] = images.dims();
        let factor = self.config.downsampling();
        let fits = |side: usize| side > 0 && side.is_multiple_of(factor);
        if batch == 0 || channels != self.config.image_channels || !fits(height) || !fits(width) {
            let expected =
                format!("[batch, {}, multiple of {factor}, multiple of {factor}]", self.config.image_channels);
            return Err(Error::shape("images", expected, images.dims()));
        }
        Ok(self.quant_conv.forward(self.encoder.forward(images)))
    }

    /// Decodes a canvas to images, about `[-1, 1]` but not clamped; gradients pass.
    pub fn decode_raw(&self, canvas: Tensor<4>) -> Tensor<4> {
        self.decoder.forward(self.post_quant_conv.forward(canvas))
    }

    /// Runs the training pass: reconstructions of images, not clamped, and the quantizer's loss.
    ///
    /// # Errors
    /// The errors of [`VqVae::latent`].
    pub fn forward_train(&self, images: Tensor<4>) -> Result<(Tensor<4>, Quantized)> {
        let quantized = self.quantize.forward_train(self.latent(images)?, &self.config.patch_nums);
        Ok((self.decode_raw(quantized.canvas.clone()), quantized))
    }
}

impl Tokenizer for VqVae {
    fn scales(&self) -> &Scales {
        &self.config.patch_nums
    }

    fn vocabulary(&self) -> Vocabulary {
        Vocabulary::codes(self.config.vocab_size)
    }

    fn z_channels(&self) -> usize {
        self.config.z_channels
    }

    fn image_shape(&self, scales: &Scales) -> [usize; 3] {
        self.config.image_shape_of(scales)
    }

    fn device(&self) -> Device {
        self.codebook().device()
    }

    fn encode(&self, images: Tensor<4>, scales: &Scales) -> Result<TokenPyramid> {
        let shape = images.dims();
        let latent = Precision::Exact.scope(|| self.latent(images))?;
        let [_, _, height, width] = latent.dims();
        if scales.finest() != (MapSize { height, width }) {
            let expected = format!("images whose latent is {} tokens, the last of `{scales}`", scales.finest());
            return Err(Error::shape("images", expected, shape));
        }
        TokenPyramid::new(scales.clone(), self.quantize.quantize(latent, scales))
    }

    fn blank(&self, batch: usize, scales: &Scales) -> Tensor<4> {
        let MapSize { height, width } = scales.finest();
        Tensor::zeros([batch, self.config.z_channels, height, width], &self.device())
    }

    fn lookup(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        self.quantize.embedding.forward(ids)
    }

    fn codebook(&self) -> Tensor<2> {
        self.quantize.embedding.weight.val()
    }

    fn paint(&self, canvas: Tensor<4>, at: ScaleAt<'_>, codes: Tensor<3>) -> Tensor<4> {
        self.quantize.paint(canvas, codes, at.k(), at.scales())
    }

    fn next_input(&self, canvas: &Tensor<4>, at: ScaleAt<'_>) -> Tensor<4> {
        Resize::Area.apply(canvas.clone(), at.size())
    }

    fn decode(&self, canvas: Tensor<4>) -> Tensor<4> {
        self.decode_raw(canvas).clamp(-1.0, 1.0)
    }
}
