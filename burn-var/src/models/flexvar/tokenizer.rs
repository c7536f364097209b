//! FlexVAE, FlexVAR's tokenizer (`models/vq_llama.py` of its code): the VQ-16 of LlamaGen, whose latent is quantized at any
//! size.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use serde::{Deserialize, Serialize};

use crate::generation::{Tokenizer, Vocabulary};
use crate::init::initialize;
use crate::math::Resize;
use crate::models::common::vq_model::{QuantizedMap, VqModel, VqModelConfig};
use crate::ops::{Precision, transpose};
use crate::scales::ScaleAt;
use crate::{MapSize, Result, Scales, TokenPyramid};

/// Sizes of a [`FlexVae`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlexVaeConfig {
    /// Sizes of the networks and the codebook.
    pub vq: VqModelConfig,
    /// Default scale schedule. The weights depend on none.
    pub patch_nums: Scales,
}

impl FlexVaeConfig {
    /// Returns the sizes of the public tokenizer, `FlexVAE.pth`: 72.0 million parameters, 16 pixels per token, and 8912
    /// codes (in every script of the authors, and in the file).
    pub fn public(patch_nums: Scales) -> Self {
        Self { vq: VqModelConfig::vq16(8912, 32), patch_nums }
    }

    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// [`crate::Error::Config`] naming the field, what it is, and what would be accepted.
    pub fn validate(&self) -> Result<()> {
        self.vq.validate()
    }

    /// Returns the shape of the images of the default schedule, `[channels, height, width]`.
    pub fn image_shape(&self) -> [usize; 3] {
        self.vq.image_shape(self.patch_nums.finest())
    }

    /// Creates a tokenizer with untrained weights, drawn from `seed`: PyTorch's defaults, and codes in random directions.
    ///
    /// # Errors
    /// The errors of [`FlexVaeConfig::validate`].
    pub fn init(&self, seed: u64, device: &Device) -> Result<FlexVae> {
        Ok(initialize(self.init_zeros(device)?, seed, |param| self.vq.untrained(param)))
    }

    /// Creates a tokenizer whose weights take no memory until they are loaded.
    ///
    /// # Errors
    /// The errors of [`FlexVaeConfig::validate`].
    pub fn init_zeros(&self, device: &Device) -> Result<FlexVae> {
        Ok(FlexVae { vq: self.vq.init_zeros(device)?, config: self.clone() })
    }
}

/// FlexVAR's tokenizer. Each scale is the latent, area-resized to the scale and quantized by itself; its canvas is the map
/// of the last scale's code vectors, and decodes to an image of that size.
#[derive(Module, Debug)]
pub struct FlexVae {
    /// Networks and codebook.
    pub vq: VqModel,
    #[module(skip)]
    config: FlexVaeConfig,
}

impl FlexVae {
    /// Returns the sizes.
    pub fn config(&self) -> &FlexVaeConfig {
        &self.config
    }

    /// Encodes images `[batch, channels, height, width]` in `[-1, 1]` to the continuous latent, `[batch, z_channels, height
    /// / f, width / f]`. Accepts any multiple of the downsampling factor.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] for another number of channels, or a size that is not a multiple of the downsampling.
    pub fn latent(&self, images: Tensor<4>) -> Result<Tensor<4>> {
        self.vq.latent(images, &self.config.vq)
    }

    /// Quantizes a latent of any size at one scale: ids `[batch, tokens]`.
    pub fn quantize(&self, latent: Tensor<4>, size: MapSize) -> Tensor<2, Int> {
        self.vq.quantize.quantize(Resize::Area.apply(latent, size))
    }

    /// Quantizes a latent of any size at one scale with gradients.
    pub fn quantize_train(&self, latent: Tensor<4>, size: MapSize) -> QuantizedMap {
        self.vq.quantize.forward_train(Resize::Area.apply(latent, size))
    }

    /// Decodes a map of code vectors of any size to images, about `[-1, 1]` but not clamped; gradients pass.
    pub fn decode_raw(&self, codes: Tensor<4>) -> Tensor<4> {
        self.vq.decode_raw(codes)
    }
}

impl Tokenizer for FlexVae {
    fn scales(&self) -> &Scales {
        &self.config.patch_nums
    }

    fn vocabulary(&self) -> Vocabulary {
        Vocabulary::codes(self.config.vq.codebook_size)
    }

    #[allow(clippy::misnamed_getters, reason = "a canvas has the channels of a code")]
    fn z_channels(&self) -> usize {
        self.config.vq.codebook_embed_dim
    }

    fn image_shape(&self, scales: &Scales) -> [usize; 3] {
        self.config.vq.image_shape(scales.finest())
    }

    fn device(&self) -> Device {
        self.vq.quantize.embedding.weight.val().device()
    }

    /// Encodes images of any size that is a multiple of the downsampling: a scale is the latent's area-resized map, also
    /// where the latent is larger than the last scale, as in the authors' training on 512 pixels.
    fn encode(&self, images: Tensor<4>, scales: &Scales) -> Result<TokenPyramid> {
        let latent = Precision::Exact.scope(|| self.latent(images))?;
        let maps = scales.iter().map(|at| self.quantize(latent.clone(), at.size())).collect();
        TokenPyramid::new(scales.clone(), maps)
    }

    fn blank(&self, batch: usize, scales: &Scales) -> Tensor<4> {
        let MapSize { height, width } = scales.size(0);
        Tensor::zeros([batch, self.z_channels(), height, width], &self.device())
    }

    fn lookup(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        self.vq.quantize.lookup(ids)
    }

    fn codebook(&self) -> Tensor<2> {
        self.vq.quantize.codes()
    }

    /// Replaces the canvas by the codes: a map of the scale's own size.
    fn paint(&self, _canvas: Tensor<4>, at: ScaleAt<'_>, codes: Tensor<3>) -> Tensor<4> {
        let ([batch, _, channels], MapSize { height, width }) = (codes.dims(), at.size());
        transpose(codes).reshape([batch, channels, height, width])
    }

    fn next_input(&self, canvas: &Tensor<4>, at: ScaleAt<'_>) -> Tensor<4> {
        Resize::Bicubic.apply(canvas.clone(), at.size())
    }

    /// Decodes a canvas of any size to images of that size times the downsampling.
    fn decode(&self, canvas: Tensor<4>) -> Tensor<4> {
        self.decode_raw(canvas).clamp(-1.0, 1.0)
    }
}
