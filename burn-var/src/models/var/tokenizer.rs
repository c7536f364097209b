//! VAR's tokenizer: a multi-scale residual VQ-VAE (`models/vqvae.py`).

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use serde::{Deserialize, Serialize};

use super::{Decoder, Encoder, Quantized, Quantizer, Tokenizer};
use crate::error::require_positive;
use crate::init::{Start, fan_in_bound, initialise};
use crate::nn::{Conv2d, GroupNorm};
use crate::{Error, MapSize, Result, Scales, TokenPyramid};

/// The sizes of a [`VqVae`]. Fields are named as in VAR's code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VqVaeConfig {
    /// Channels of the pictures: 3 for colour, 1 for grey.
    #[serde(default = "default_image_channels")]
    pub image_channels: usize,
    /// Channels of the finest level; a multiple of 32, the number of norm groups.
    pub ch: usize,
    /// Channels of each level, as a multiple of `ch`. Each level but the last halves the map.
    pub ch_mult: Vec<usize>,
    /// Residual blocks a level in the encoder; the decoder has one more.
    pub num_res_blocks: usize,
    /// Channels of the latent and of a code.
    pub z_channels: usize,
    /// Number of codes.
    pub vocab_size: usize,
    /// Sizes of the token maps; the last is the size of the latent.
    pub patch_nums: Scales,
    /// Share of the convolution in phi, 0.5 in all published models.
    #[serde(default = "default_quant_resi")]
    pub quant_resi: f64,
    /// Number of phi convolutions: 4 in the public model, 1 shared by all scales, 0 for one a scale.
    #[serde(default = "default_share_quant_resi")]
    pub share_quant_resi: usize,
    /// Choose codes by cosine instead of distance.
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

/// A smaller share of the phi convolutions is none, and they do not exist; the original's constant.
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
    /// The public tokenizer, `vae_ch160v4096z32.pth`: 109.0 million parameters, 16 pixels a token. It serves 256 and
    /// 512 pixels alike, with [`Scales::VAR_256`] or [`Scales::VAR_512`].
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

    /// Pixels a token, along one axis.
    pub fn downsampling(&self) -> usize {
        1 << (self.ch_mult.len().max(1) - 1)
    }

    /// Shape of the pictures, `[channels, height, width]`.
    pub fn picture_shape(&self) -> [usize; 3] {
        let MapSize { height, width } = self.patch_nums.finest();
        [self.image_channels, height * self.downsampling(), width * self.downsampling()]
    }

    /// Channels of each level.
    pub(super) fn channels(&self) -> Vec<usize> {
        self.ch_mult.iter().map(|factor| factor * self.ch).collect()
    }

    /// Number of phi convolutions; none where they have no share.
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

    /// A tokenizer with untrained weights: PyTorch's defaults, and small uniform codes, all drawn from `seed`.
    ///
    /// # Errors
    /// As [`VqVaeConfig::validate`].
    pub fn init(&self, seed: u64, device: &Device) -> Result<VqVae> {
        let vocab = self.vocab_size as f64;
        Ok(initialise(self.init_zeros(device)?, seed, |slot| match slot.shape {
            _ if slot.path == "quantize.embedding.weight" => Start::Uniform(1.0 / vocab),
            [_, rest @ ..] if !rest.is_empty() => fan_in_bound(rest.iter().product()),
            _ => Start::Keep,
        }))
    }

    /// A tokenizer whose weights take no memory until they are loaded.
    ///
    /// # Errors
    /// As [`VqVaeConfig::validate`].
    pub fn init_zeros(&self, device: &Device) -> Result<VqVae> {
        self.validate()?;
        Ok(VqVae {
            encoder: Encoder::new(self, device),
            quant_conv: Conv2d::same([self.z_channels; 2], self.quant_conv_ks, device),
            quantize: Quantizer::new(self, device),
            post_quant_conv: Conv2d::same([self.z_channels; 2], self.quant_conv_ks, device),
            decoder: Decoder::new(self, device),
            config: self.clone(),
        })
    }
}

/// VAR's tokenizer.
#[derive(Module, Debug)]
pub struct VqVae {
    /// Pictures to features.
    pub encoder: Encoder,
    /// Features to the latent that is quantised.
    pub quant_conv: Conv2d,
    /// Latent to tokens.
    pub quantize: Quantizer,
    /// Canvas to the decoder's input.
    pub post_quant_conv: Conv2d,
    /// Features to pictures.
    pub decoder: Decoder,
    #[module(skip)]
    config: VqVaeConfig,
}

impl VqVae {
    /// The sizes it was made with.
    pub fn config(&self) -> &VqVaeConfig {
        &self.config
    }

    /// Pictures `[batch, channels, height, width]` in `[-1, 1]` to the latent before quantisation,
    /// `[batch, z_channels, height / f, width / f]`. Any size that the encoder can halve to a whole map is accepted.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of channels, or a size that is no multiple of the downsampling.
    pub fn encode(&self, images: Tensor<4>) -> Result<Tensor<4>> {
        let [batch, channels, height, width] = images.dims();
        let factor = self.config().downsampling();
        let fits = |side: usize| side > 0 && side.is_multiple_of(factor);
        if batch == 0 || channels != self.config().image_channels || !fits(height) || !fits(width) {
            let expected =
                format!("[batch, {}, multiple of {factor}, multiple of {factor}]", self.config().image_channels);
            return Err(Error::shape("images", expected, images.dims()));
        }
        Ok(self.quant_conv.forward(self.encoder.forward(images)))
    }

    /// Pictures to token ids over another ladder than the model's own; its last map must have the latent's size.
    ///
    /// # Errors
    /// [`Error::Shape`] if pictures and ladder do not fit.
    pub fn tokenize_with(&self, images: Tensor<4>, scales: &Scales) -> Result<TokenPyramid> {
        let shape = images.dims();
        let latent = self.encode(images)?;
        let [_, _, height, width] = latent.dims();
        if scales.finest() != (MapSize { height, width }) {
            let expected = format!("pictures whose latent is {} tokens, the last of `{scales}`", scales.finest());
            return Err(Error::shape("images", expected, shape));
        }
        TokenPyramid::new(scales.clone(), self.quantize.quantize(latent, scales))
    }

    /// The canvas as pictures, about `[-1, 1]` but not clamped; gradients pass.
    pub fn decode_raw(&self, canvas: Tensor<4>) -> Tensor<4> {
        self.decoder.forward(self.post_quant_conv.forward(canvas))
    }

    /// The training pass: pictures to reconstructions (not clamped) and the quantizer's loss.
    ///
    /// # Errors
    /// As [`VqVae::encode`].
    pub fn forward_train(&self, images: Tensor<4>) -> Result<(Tensor<4>, Quantized)> {
        let quantized = self.quantize.forward_train(self.encode(images)?, &self.config().patch_nums);
        Ok((self.decode_raw(quantized.canvas.clone()), quantized))
    }
}

impl Tokenizer for VqVae {
    fn scales(&self) -> &Scales {
        &self.config().patch_nums
    }

    fn vocab_size(&self) -> usize {
        self.config().vocab_size
    }

    fn z_channels(&self) -> usize {
        self.config().z_channels
    }

    fn picture_shape(&self) -> [usize; 3] {
        self.config().picture_shape()
    }

    fn tokenize(&self, images: Tensor<4>) -> Result<TokenPyramid> {
        self.tokenize_with(images, self.scales())
    }

    fn blank(&self, batch: usize) -> Tensor<4> {
        let MapSize { height, width } = self.scales().finest();
        Tensor::zeros([batch, self.z_channels(), height, width], &self.quantize.embedding.weight.val().device())
    }

    fn lookup(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        self.quantize.embedding.forward(ids)
    }

    fn codebook(&self) -> Tensor<2> {
        self.quantize.embedding.weight.val()
    }

    fn paint(&self, canvas: Tensor<4>, k: usize, codes: Tensor<3>) -> Tensor<4> {
        canvas + self.quantize.contribution(codes, k, self.scales())
    }

    fn next_input(&self, canvas: &Tensor<4>, k: usize) -> Tensor<4> {
        crate::resize::Resize::Area.apply(canvas.clone(), self.scales().size(k))
    }

    fn decode(&self, canvas: Tensor<4>) -> Tensor<4> {
        self.decode_raw(canvas).clamp(-1.0, 1.0)
    }
}
