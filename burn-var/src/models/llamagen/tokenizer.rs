//! LlamaGen's tokenizer (`tokenizer/tokenizer_image/vq_model.py` of its code): one map of tokens per image.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use serde::{Deserialize, Serialize};

use super::transformer::raster_size;
use crate::generation::{Tokenizer, Vocabulary};
use crate::init::initialize;
use crate::models::common::vq_model::{QuantizedMap, VqModel, VqModelConfig};
use crate::ops::{Precision, transpose};
use crate::scales::ScaleAt;
use crate::{Error, MapSize, Result, Scales, TokenPyramid};

/// Sizes of a [`LlamaGenVq`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlamaGenVqConfig {
    /// Sizes of the networks and the codebook.
    pub vq: VqModelConfig,
    /// Default scale schedule, a raster. The weights serve rasters of any size.
    pub patch_nums: Scales,
}

impl LlamaGenVqConfig {
    /// Returns the sizes of the public tokenizer `vq_ds16_c2i.pt`: 71.9 million parameters, 16 pixels per token, and 16384
    /// codes of 8 channels. The authors report an rFID of 2.19 at 256 pixels, 0.94 at 384 and 0.70 at 512.
    pub fn vq16(patch_nums: Scales) -> Self {
        Self { vq: VqModelConfig::vq16(16384, 8), patch_nums }
    }

    /// Returns the sizes of the public tokenizer `vq_ds8_c2i.pt`: 70.1 million parameters, 8 pixels per token, rFID 0.59.
    pub fn vq8(patch_nums: Scales) -> Self {
        Self { vq: VqModelConfig { ch_mult: vec![1, 2, 2, 4], ..VqModelConfig::vq16(16384, 8) }, patch_nums }
    }

    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field, what it is, and what would be accepted.
    pub fn validate(&self) -> Result<()> {
        raster_size(&self.patch_nums)?;
        self.vq.validate()
    }

    /// Returns the shape of the images of the default schedule, `[channels, height, width]`.
    pub fn image_shape(&self) -> [usize; 3] {
        self.vq.image_shape(self.patch_nums.finest())
    }

    /// Creates a tokenizer with untrained weights, drawn from `seed`: PyTorch's defaults, and codes in random directions.
    ///
    /// # Errors
    /// The errors of [`LlamaGenVqConfig::validate`].
    pub fn init(&self, seed: u64, device: &Device) -> Result<LlamaGenVq> {
        Ok(initialize(self.init_zeros(device)?, seed, |param| self.vq.untrained(param)))
    }

    /// Creates a tokenizer whose weights take no memory until they are loaded.
    ///
    /// # Errors
    /// The errors of [`LlamaGenVqConfig::validate`].
    pub fn init_zeros(&self, device: &Device) -> Result<LlamaGenVq> {
        self.validate()?;
        Ok(LlamaGenVq { vq: self.vq.init_zeros(device)?, config: self.clone() })
    }
}

/// LlamaGen's tokenizer. Its canvas is the map of code vectors, zero where no token is drawn yet.
#[derive(Module, Debug)]
pub struct LlamaGenVq {
    /// Networks and codebook.
    pub vq: VqModel,
    #[module(skip)]
    config: LlamaGenVqConfig,
}

impl LlamaGenVq {
    /// Returns the sizes.
    pub fn config(&self) -> &LlamaGenVqConfig {
        &self.config
    }

    /// Encodes images `[batch, channels, height, width]` in `[-1, 1]` to the continuous latent, `[batch, z_channels, height
    /// / f, width / f]`. Accepts any multiple of the downsampling factor.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of channels, or a size that is not a multiple of the downsampling.
    pub fn latent(&self, images: Tensor<4>) -> Result<Tensor<4>> {
        self.vq.latent(images, &self.config.vq)
    }

    /// Quantizes a latent with gradients.
    pub fn quantize_train(&self, latent: Tensor<4>) -> QuantizedMap {
        self.vq.quantize.forward_train(latent)
    }

    /// Returns the map of the code vectors of ids, `[batch, tokens]` row by row: `[batch, z_channels, height, width]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the number of tokens is not that of the map.
    pub fn map_of(&self, ids: Tensor<2, Int>, size: MapSize) -> Result<Tensor<4>> {
        let [batch, tokens] = ids.dims();
        if tokens != size.area() {
            return Err(Error::shape("token ids", format!("[batch, {}]", size.area()), [batch, tokens]));
        }
        let codes = transpose(self.lookup(ids));
        Ok(codes.reshape([batch, self.z_channels(), size.height, size.width]))
    }

    /// Decodes a map of code vectors of any size to images, about `[-1, 1]` but not clamped; gradients pass.
    pub fn decode_raw(&self, codes: Tensor<4>) -> Tensor<4> {
        self.vq.decode_raw(codes)
    }
}

impl Tokenizer for LlamaGenVq {
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

    /// Encodes images to one id per token of a raster.
    ///
    /// # Errors
    /// [`Error::Config`] for a schedule of whole maps; [`Error::Shape`] for images of another size.
    fn encode(&self, images: Tensor<4>, scales: &Scales) -> Result<TokenPyramid> {
        raster_size(scales)?;
        let (shape, expected) = (images.dims(), self.image_shape(scales));
        if shape[1..] != expected {
            return Err(Error::shape(
                "images",
                format!("[batch, {}]", expected.map(|n| n.to_string()).join(", ")),
                shape,
            ));
        }
        let latent = Precision::Exact.scope(|| self.latent(images))?;
        TokenPyramid::from_sequence(scales.clone(), self.vq.quantize.quantize(latent))
    }

    fn blank(&self, batch: usize, scales: &Scales) -> Tensor<4> {
        let MapSize { height, width } = scales.finest();
        Tensor::zeros([batch, self.z_channels(), height, width], &self.device())
    }

    fn lookup(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        self.vq.quantize.lookup(ids)
    }

    fn codebook(&self) -> Tensor<2> {
        self.vq.quantize.codes()
    }

    /// Writes one code vector to its place.
    fn paint(&self, canvas: Tensor<4>, at: ScaleAt<'_>, codes: Tensor<3>) -> Tensor<4> {
        let [batch, channels, _, width] = canvas.dims();
        let (row, column) = (at.k() / width, at.k() % width);
        canvas
            .slice_assign([0..batch, 0..channels, row..row + 1, column..column + 1], transpose(codes).unsqueeze_dim(3))
    }

    /// Returns zeros: the transformer reads ids.
    fn next_input(&self, canvas: &Tensor<4>, _at: ScaleAt<'_>) -> Tensor<4> {
        let [batch, channels, ..] = canvas.dims();
        Tensor::zeros([batch, channels, 1, 1], &canvas.device())
    }

    /// Decodes a canvas of any size to images of that size times the downsampling.
    fn decode(&self, canvas: Tensor<4>) -> Tensor<4> {
        self.decode_raw(canvas).clamp(-1.0, 1.0)
    }

    /// Returns the code vectors of all tokens but the last.
    fn teacher_input(&self, tokens: &TokenPyramid) -> Tensor<3> {
        self.lookup(tokens.sequence().narrow(1, 0, tokens.scales().tokens() - 1))
    }
}
