//! The vision transformer of DINO (Caron et al. 2021), for the published weights and for smaller models of the same
//! family.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::require_positive;
use crate::init::{Init, initialize};
use crate::math::Resize;
use crate::nn::{self, Conv2d, LayerNorm};
use crate::ops::{self, ConvSpec, QueryKeys};
use crate::{Error, MapSize, Result};

/// Sizes of a [`Vit`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
    /// Height and width to which [`Vit::prepare`] resizes images, a multiple of the patch size.
    pub image_size: usize,
    /// Channels of the images: 3 for color, 1 for grayscale.
    pub image_channels: usize,
    /// Height and width of a patch.
    pub patch_size: usize,
    /// Width.
    pub embed_dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads; must divide the width.
    pub num_heads: usize,
    /// Hidden width of the feed-forward, as a multiple of the width.
    #[serde(default = "default_mlp_ratio")]
    pub mlp_ratio: f64,
    /// Epsilon of the layer norms.
    #[serde(default = "default_norm_eps")]
    pub norm_eps: f64,
    /// Mean of each channel, subtracted from images in `[0, 1]`.
    #[serde(default = "imagenet_mean")]
    pub mean: Vec<f64>,
    /// Standard deviation of each channel, by which the difference is divided.
    #[serde(default = "imagenet_std")]
    pub std: Vec<f64>,
}

fn default_mlp_ratio() -> f64 {
    4.0
}

fn default_norm_eps() -> f64 {
    1e-6
}

fn imagenet_mean() -> Vec<f64> {
    vec![0.485, 0.456, 0.406]
}

fn imagenet_std() -> Vec<f64> {
    vec![0.229, 0.224, 0.225]
}

impl VitConfig {
    /// Returns the sizes of DINO ViT-S/16: the encoder of the AID-VAR papers, 21.7 million parameters.
    pub fn dino_small_16() -> Self {
        Self {
            image_size: 224,
            image_channels: 3,
            patch_size: 16,
            embed_dim: 384,
            depth: 12,
            num_heads: 6,
            mlp_ratio: default_mlp_ratio(),
            norm_eps: default_norm_eps(),
            mean: imagenet_mean(),
            std: imagenet_std(),
        }
    }

    /// Returns the number of patches along each side of an image of `image_size`.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Returns the hidden width of the feed-forward.
    pub fn hidden(&self) -> usize {
        (self.embed_dim as f64 * self.mlp_ratio).round() as usize
    }

    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field, what it is, and what would be accepted.
    pub fn validate(&self) -> Result<()> {
        let positive = [
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
            ("embed_dim", self.embed_dim),
            ("depth", self.depth),
            ("num_heads", self.num_heads),
        ];
        require_positive(&positive)?;
        if ![1, 3].contains(&self.image_channels) {
            return Err(Error::config("image_channels", self.image_channels, "1 (grayscale) or 3 (red, green, blue)"));
        }
        if !self.image_size.is_multiple_of(self.patch_size) {
            let expected = format!("a multiple of patch_size {}", self.patch_size);
            return Err(Error::config("image_size", self.image_size, expected));
        }
        if !self.embed_dim.is_multiple_of(self.num_heads) {
            let expected = format!("a divisor of embed_dim {}", self.embed_dim);
            return Err(Error::config("num_heads", self.num_heads, expected));
        }
        if !(self.mlp_ratio.is_finite() && self.hidden() > 0) {
            return Err(Error::config("mlp_ratio", self.mlp_ratio, "a positive number"));
        }
        for (name, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() != self.image_channels || values.iter().any(|value| !value.is_finite()) {
                let expected = format!("{} numbers, one per channel", self.image_channels);
                return Err(Error::config(name, format!("{values:?}"), expected));
            }
        }
        match self.std.iter().find(|std| **std <= 0.0) {
            Some(std) => Err(Error::config("std", std, "positive numbers")),
            None => Ok(()),
        }
    }

    /// Creates a transformer with DINO's initial weights, drawn from `seed`: normal with standard deviation 0.02,
    /// biases zero.
    ///
    /// # Errors
    /// The errors of [`VitConfig::validate`].
    pub fn init(&self, seed: u64, device: &Device) -> Result<Vit> {
        Ok(initialize(self.init_zeros(device)?, seed, |param| match param.shape.len() {
            1 => Init::Keep,
            _ => Init::Normal(0.02),
        }))
    }

    /// Creates a transformer whose weights take no memory until they are loaded.
    ///
    /// # Errors
    /// The errors of [`VitConfig::validate`].
    pub fn init_zeros(&self, device: &Device) -> Result<Vit> {
        self.validate()?;
        let (width, patch) = (self.embed_dim, self.patch_size);
        let patches = ConvSpec { stride: patch, padding: [0; 4] };
        Ok(Vit {
            cls_token: nn::zeros([1, 1, width], device),
            pos_embed: nn::zeros([1, 1 + self.grid() * self.grid(), width], device),
            patch_embed: PatchEmbed { proj: Conv2d::new([self.image_channels, width], patch, patches, device) },
            blocks: (0..self.depth).map(|_| Block::new(self, device)).collect(),
            norm: LayerNorm::new(width, self.norm_eps, device),
            config: self.clone(),
        })
    }
}

/// Projection of each patch to a vector.
#[derive(Module, Debug)]
struct PatchEmbed {
    proj: Conv2d,
}

/// Multi-head self-attention.
#[derive(Module, Debug)]
struct Attention {
    qkv: Linear,
    proj: Linear,
    heads: usize,
}

/// Two linear layers with GELU between.
#[derive(Module, Debug)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

#[derive(Module, Debug)]
struct Block {
    norm1: LayerNorm,
    attn: Attention,
    norm2: LayerNorm,
    mlp: Mlp,
}

impl Block {
    fn new(config: &VitConfig, device: &Device) -> Self {
        let width = config.embed_dim;
        let norm = || LayerNorm::new(width, config.norm_eps, device);
        let linear = |input, output| nn::linear(input, output, true, device);
        Self {
            norm1: norm(),
            attn: Attention { qkv: linear(width, 3 * width), proj: linear(width, width), heads: config.num_heads },
            norm2: norm(),
            mlp: Mlp { fc1: linear(width, config.hidden()), fc2: linear(config.hidden(), width) },
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let heads = self.attn.heads;
        let scale = 1.0 / ((x.dims()[2] / heads) as f64).sqrt();
        let qkv = nn::apply(&self.attn.qkv, self.norm1.forward(x.clone()));
        let mixed = ops::self_attention(qkv, None, heads, QueryKeys::Scaled(scale), None);
        let x = x + nn::apply(&self.attn.proj, mixed);
        let h = ops::gelu(nn::apply(&self.mlp.fc1, self.norm2.forward(x.clone())));
        x + nn::apply(&self.mlp.fc2, h)
    }
}

/// DINO's vision transformer. Field names are DINO's; created with [`VitConfig::init`].
#[derive(Module, Debug)]
pub struct Vit {
    cls_token: Param<Tensor<3>>,
    pos_embed: Param<Tensor<3>>,
    patch_embed: PatchEmbed,
    blocks: Vec<Block>,
    norm: LayerNorm,
    #[module(skip)]
    config: VitConfig,
}

/// Hidden states of a [`Vit`], `[batch, 1 + patches, embed_dim]` each, the class token first.
#[derive(Debug, Clone)]
pub struct VitOutput {
    /// Input of the first block.
    pub embedding: Tensor<3>,
    /// Outputs of the requested blocks, in the requested order, before any final norm.
    pub blocks: Vec<Tensor<3>>,
    /// Output of the last block after the final norm.
    pub tokens: Tensor<3>,
}

impl Vit {
    /// Returns the sizes.
    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    /// Prepares images `[batch, channels, height, width]` in `[-1, 1]` for the network: resizes them to `image_size`
    /// (area resize, which averages) and normalizes each channel.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of channels.
    pub fn prepare(&self, images: Tensor<4>) -> Result<Tensor<4>> {
        self.check_channels(&images)?;
        let side = self.config.image_size;
        self.normalize(Resize::Area.apply(images, MapSize { height: side, width: side }))
    }

    /// Normalizes each channel of images in `[-1, 1]` of any size.
    ///
    /// # Errors
    /// The errors of [`Vit::prepare`].
    pub fn normalize(&self, images: Tensor<4>) -> Result<Tensor<4>> {
        self.check_channels(&images)?;
        let images = (images + 1.0) * 0.5;
        let channels = self.config.image_channels;
        let row = |values: &[f64]| {
            let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
            Tensor::<1>::from_floats(values.as_slice(), &images.device()).reshape([1, channels, 1, 1])
        };
        Ok((images.clone() - row(&self.config.mean)) / row(&self.config.std))
    }

    /// Computes features of prepared images, `[batch, channels, height, width]`, with the outputs of the blocks
    /// numbered in `blocks`, from 0. Any size of whole patches is accepted: positions are interpolated for sizes other
    /// than `image_size`.
    ///
    /// # Errors
    /// [`Error::Shape`] if channels or sizes do not fit, [`Error::Config`] if a block does not exist.
    pub fn features(&self, images: Tensor<4>, blocks: &[usize]) -> Result<VitOutput> {
        self.check_channels(&images)?;
        if let Some(missing) = blocks.iter().find(|block| **block >= self.config.depth) {
            return Err(Error::config("block", missing, format!("below the depth {}", self.config.depth)));
        }
        let embedding = self.embed(images)?;
        let mut x = embedding.clone();
        let mut outputs = vec![None; blocks.len()];
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(x);
            for (output, _) in outputs.iter_mut().zip(blocks).filter(|(_, wanted)| **wanted == i) {
                *output = Some(x.clone());
            }
        }
        Ok(VitOutput { embedding, blocks: outputs.into_iter().flatten().collect(), tokens: self.norm.forward(x) })
    }

    /// Computes the class token of prepared images after the final norm, `[batch, embed_dim]`: DINO's features.
    ///
    /// # Errors
    /// The errors of [`Vit::features`].
    pub fn forward(&self, images: Tensor<4>) -> Result<Tensor<2>> {
        Ok(self.features(images, &[])?.tokens.narrow(1, 0, 1).squeeze_dim(1))
    }

    fn check_channels(&self, images: &Tensor<4>) -> Result<()> {
        let channels = self.config.image_channels;
        match images.dims()[1] == channels {
            true => Ok(()),
            false => Err(Error::shape("images", format!("[batch, {channels}, height, width]"), images.dims())),
        }
    }

    fn embed(&self, images: Tensor<4>) -> Result<Tensor<3>> {
        let [batch, _, height, width] = images.dims();
        let patch = self.config.patch_size;
        if [height, width].iter().any(|side| *side == 0 || !side.is_multiple_of(patch)) {
            let expected = format!("height and width multiples of the patch size {patch}");
            return Err(Error::shape("images", expected, images.dims()));
        }
        let patches = ops::transpose(self.patch_embed.proj.forward(images).flatten::<3>(2, 3));
        let cls = self.cls_token.val().expand([batch, 1, self.config.embed_dim]);
        let positions = self.positions(MapSize { height: height / patch, width: width / patch });
        Ok(Tensor::cat(vec![cls, patches], 1) + positions)
    }

    /// Returns the position embedding for a map of patches, `[1, 1 + patches, embed_dim]`.
    fn positions(&self, size: MapSize) -> Tensor<3> {
        let all = self.pos_embed.val();
        let (grid, width) = (self.config.grid(), self.config.embed_dim);
        if (size.height, size.width) == (grid, grid) {
            return all;
        }
        let own = ops::transpose(all.clone().narrow(1, 1, grid * grid)).reshape([1, width, grid, grid]);
        let resized = ops::transpose(Resize::Bicubic.apply(own, size).flatten::<3>(2, 3));
        Tensor::cat(vec![all.narrow(1, 0, 1), resized], 1)
    }
}
