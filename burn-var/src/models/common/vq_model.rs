//! The single-scale VQ tokenizer of LlamaGen (`tokenizer/tokenizer_image/vq_model.py` of its code), which FlexVAR and
//! Janus-Pro train with sizes of their own.

use burn::module::Module;
use burn::nn::Embedding;
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Device, Int, Tensor};
use serde::{Deserialize, Serialize};

use super::vqgan::{Decoder, Encoder, VqGanSizes, untrained};
use crate::error::require_positive;
use crate::init::{Init, ParamInfo};
use crate::nn::{self, Conv2d, GroupNorm};
use crate::ops::{exact_matmul, permute, transpose};
use crate::weights::shapes::{axes, count};
use crate::weights::{KeyMap, Kind, StateDict};
use crate::{Error, MapSize, Result};

/// Sizes of a [`VqModel`]. Fields are named as in LlamaGen's code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VqModelConfig {
    /// Channels of the images: 3 for color, 1 for grayscale.
    #[serde(default = "default_image_channels")]
    pub image_channels: usize,
    /// Channels of the finest level; a multiple of 32, the number of norm groups.
    pub ch: usize,
    /// Channels of each level, as a multiple of `ch`. Each level but the last halves the map.
    pub ch_mult: Vec<usize>,
    /// Residual blocks per level in the encoder; the decoder has one more.
    pub num_res_blocks: usize,
    /// Channels between the networks and the 1x1 convolutions around the quantizer.
    pub z_channels: usize,
    /// Number of codes.
    pub codebook_size: usize,
    /// Channels of the latent and of a code.
    pub codebook_embed_dim: usize,
    /// Normalizes latent and codes to unit length, so that codes are selected by cosine similarity.
    #[serde(default = "default_l2_norm")]
    pub codebook_l2_norm: bool,
    /// Weight of the commitment loss.
    #[serde(default = "default_beta")]
    pub commit_loss_beta: f64,
    /// Weight of the entropy loss; 0 in all published models.
    #[serde(default)]
    pub entropy_loss_ratio: f64,
    /// Temperature of the choice of codes in the entropy loss.
    #[serde(default = "default_entropy_temperature", skip_serializing_if = "is_default_temperature")]
    pub entropy_temperature: f64,
}

fn default_entropy_temperature() -> f64 {
    0.01
}

fn is_default_temperature(temperature: &f64) -> bool {
    *temperature == default_entropy_temperature()
}

fn default_image_channels() -> usize {
    3
}

fn default_l2_norm() -> bool {
    true
}

fn default_beta() -> f64 {
    0.25
}

impl VqModelConfig {
    /// Returns the sizes of VQ-16, 16 pixels per token, with a codebook of the given size and channels.
    pub fn vq16(codebook_size: usize, codebook_embed_dim: usize) -> Self {
        Self {
            image_channels: 3,
            ch: 128,
            ch_mult: vec![1, 1, 2, 2, 4],
            num_res_blocks: 2,
            z_channels: 256,
            codebook_size,
            codebook_embed_dim,
            codebook_l2_norm: true,
            commit_loss_beta: default_beta(),
            entropy_loss_ratio: 0.0,
            entropy_temperature: default_entropy_temperature(),
        }
    }

    /// Returns the number of pixels per token along one axis.
    pub fn downsampling(&self) -> usize {
        1 << (self.ch_mult.len().max(1) - 1)
    }

    /// Returns the shape of the images of a token map, `[channels, height, width]`.
    pub fn image_shape(&self, MapSize { height, width }: MapSize) -> [usize; 3] {
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

    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field, what it is, and what would be accepted.
    pub fn validate(&self) -> Result<()> {
        let positive = [
            ("image_channels", self.image_channels),
            ("num_res_blocks", self.num_res_blocks),
            ("z_channels", self.z_channels),
            ("codebook_size", self.codebook_size),
            ("codebook_embed_dim", self.codebook_embed_dim),
        ];
        require_positive(&positive)?;
        if self.ch == 0 || !self.ch.is_multiple_of(GroupNorm::GROUPS) {
            return Err(Error::config("ch", self.ch, format!("a multiple of {}, the norm groups", GroupNorm::GROUPS)));
        }
        if self.ch_mult.is_empty() || self.ch_mult.contains(&0) || self.ch_mult.len() > 8 {
            return Err(Error::config("ch_mult", format!("{:?}", self.ch_mult), "1 to 8 levels, each at least 1"));
        }
        let weights = [("commit_loss_beta", self.commit_loss_beta), ("entropy_loss_ratio", self.entropy_loss_ratio)];
        for (name, value) in weights {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::config(name, value, "0 or more"));
            }
        }
        if !(self.entropy_temperature.is_finite() && self.entropy_temperature > 0.0) {
            return Err(Error::config("entropy_temperature", self.entropy_temperature, "a positive number"));
        }
        Ok(())
    }

    /// Returns the initial values of a parameter: PyTorch's defaults, and codes of about unit length in all directions.
    ///
    /// The original draws codes from a tiny cube and normalizes them, which gives the same directions.
    pub fn untrained(&self, param: &ParamInfo<'_>) -> Init {
        match param.path.ends_with("quantize.embedding.weight") {
            true => Init::Normal((1.0 / self.codebook_embed_dim as f64).sqrt()),
            false => untrained(param),
        }
    }

    /// Creates the networks, whose weights take no memory until they are loaded.
    ///
    /// # Errors
    /// The errors of [`VqModelConfig::validate`].
    pub fn init_zeros(&self, device: &Device) -> Result<VqModel> {
        self.validate()?;
        let (inner, outer) = (self.codebook_embed_dim, self.z_channels);
        Ok(VqModel {
            encoder: Encoder::new(&self.networks(), device),
            quant_conv: Conv2d::same([outer, inner], 1, device),
            quantize: VectorQuantizer {
                embedding: nn::embedding(self.codebook_size, inner, device),
                l2_norm: self.codebook_l2_norm,
                beta: self.commit_loss_beta,
                entropy_ratio: self.entropy_loss_ratio,
                entropy_temperature: self.entropy_temperature,
            },
            post_quant_conv: Conv2d::same([inner, outer], 1, device),
            decoder: Decoder::new(&self.networks(), device),
        })
    }

    /// Infers the sizes from the shapes of a checkpoint. Shapes do not determine the weights of the loss, nor if codes
    /// are normalized: those get the published values.
    ///
    /// # Errors
    /// [`Error::Format`] and [`Error::Config`] if the checkpoint is not of this layout.
    pub(crate) fn infer(dict: &StateDict, kind: Kind) -> Result<Self> {
        let shape = |key: &str| axes::<4>(dict, key, kind);
        let [ch, image_channels, ..] = shape("encoder.conv_in.weight")?;
        let first = |level: usize| format!("encoder.conv_blocks.{level}.res.0.conv1.weight");
        let mut ch_mult = Vec::new();
        for level in 0..count(dict, first) {
            let [channels, ..] = shape(&first(level))?;
            if !channels.is_multiple_of(ch) {
                let expected = format!("a multiple of {ch}, the channels of the first level");
                return Err(Error::config(format!("channels of level {level}"), channels, expected));
            }
            ch_mult.push(channels / ch);
        }
        let [codebook_size, codebook_embed_dim] = axes(dict, "quantize.embedding.weight", kind)?;
        let [_, z_channels, ..] = shape("quant_conv.weight")?;
        let config = Self {
            image_channels,
            ch,
            ch_mult,
            num_res_blocks: count(dict, |i| format!("encoder.conv_blocks.0.res.{i}.conv1.weight")),
            z_channels,
            ..Self::vq16(codebook_size, codebook_embed_dim)
        };
        config.validate()?;
        Ok(config)
    }

    /// Returns the names of the parameters of a tokenizer whose field `vq` is the networks.
    pub(crate) fn keys(&self, kind: Kind) -> KeyMap {
        let config = self.clone();
        // A count of the codes' uses in training.
        let buffers = &["quantize.codebook_used"];
        KeyMap::new(kind.title, buffers, move |path| config.key(path.trim_start_matches("vq."))).with_split(Self::split)
    }

    /// Returns LlamaGen's name of a parameter. Its levels have other names than VAR's, and the decoder's are in order of
    /// computation, coarsest first.
    fn key(&self, path: &str) -> String {
        let levels = self.ch_mult.len();
        let parts: Vec<&str> = path.split('.').collect();
        let level = |index: &str| index.parse().unwrap_or(0_usize);
        let renamed = match parts[..] {
            ["encoder", "down", i, ref rest @ ..] => format!("encoder.conv_blocks.{i}.{}", rest.join(".")),
            ["decoder", "up", i, ref rest @ ..] => {
                format!("decoder.conv_blocks.{}.{}", levels - 1 - level(i), rest.join("."))
            }
            _ => path.to_owned(),
        };
        let names =
            [(".block.", ".res."), ("mid.block_1.", "mid.0."), ("mid.attn_1.", "mid.1."), ("mid.block_2.", "mid.2.")];
        names.into_iter().fold(renamed, |name, (ours, theirs)| name.replace(ours, theirs))
    }

    /// Returns the names of queries, keys and values, which are a tensor each.
    fn split(key: &str) -> Option<Vec<String>> {
        let (before, after) = key.split_once(".qkv.")?;
        Some(["q", "k", "v"].map(|part| format!("{before}.{part}.{after}")).into())
    }
}

/// Encoder, quantizer and decoder. Images are in `[-1, 1]`.
#[derive(Module, Debug)]
pub struct VqModel {
    /// Encoder: images to features.
    pub encoder: Encoder,
    /// 1x1 convolution from features to the latent that is quantized.
    pub quant_conv: Conv2d,
    /// Quantizer: latent to tokens.
    pub quantize: VectorQuantizer,
    /// 1x1 convolution from codes to the decoder's input.
    pub post_quant_conv: Conv2d,
    /// Decoder: features to images.
    pub decoder: Decoder,
}

impl VqModel {
    /// Encodes images `[batch, channels, height, width]` in `[-1, 1]` to the latent before quantization, `[batch,
    /// codebook_embed_dim, height / f, width / f]`, for any size that is a multiple of `f`, the downsampling of `config`.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of channels, or a size that is not a multiple of the downsampling.
    pub fn latent(&self, images: Tensor<4>, config: &VqModelConfig) -> Result<Tensor<4>> {
        let [batch, channels, height, width] = images.dims();
        let factor = config.downsampling();
        let fits = |side: usize| side > 0 && side.is_multiple_of(factor);
        if batch == 0 || channels != config.image_channels || !fits(height) || !fits(width) {
            let expected = format!("[batch, {}, multiple of {factor}, multiple of {factor}]", config.image_channels);
            return Err(Error::shape("images", expected, images.dims()));
        }
        Ok(self.quant_conv.forward(self.encoder.forward(images)))
    }

    /// Decodes a map of code vectors, `[batch, codebook_embed_dim, height, width]` of any size, to images, about `[-1, 1]`
    /// but not clamped; gradients pass.
    pub fn decode_raw(&self, codes: Tensor<4>) -> Tensor<4> {
        self.decoder.forward(self.post_quant_conv.forward(codes))
    }
}

/// Codebook of one scale.
#[derive(Module, Debug)]
pub struct VectorQuantizer {
    /// `[codebook_size, codebook_embed_dim]`, not normalized.
    pub embedding: Embedding,
    l2_norm: bool,
    beta: f64,
    entropy_ratio: f64,
    entropy_temperature: f64,
}

/// Result of a quantization in training.
#[derive(Debug)]
pub struct QuantizedMap {
    /// Code vectors with straight-through gradients, `[batch, codebook_embed_dim, height, width]`.
    pub codes: Tensor<4>,
    /// Codebook loss, mean squared distance of codes to the constant latent: `[1]`.
    pub vq_loss: Tensor<1>,
    /// Commitment loss, weighted: `[1]`.
    pub commit_loss: Tensor<1>,
    /// Entropy loss, weighted; `None` if its weight is 0.
    pub entropy_loss: Option<Tensor<1>>,
    /// Ids, `[batch, tokens]`, off the autodiff graph.
    pub ids: Tensor<2, Int>,
    /// Positions of the latent as they are compared with codes, `[batch * tokens, codebook_embed_dim]`, off the graph.
    pub rows: Tensor<2>,
}

impl QuantizedMap {
    /// Returns the sum of all terms.
    pub fn loss(&self) -> Tensor<1> {
        let loss = self.vq_loss.clone() + self.commit_loss.clone();
        match &self.entropy_loss {
            Some(entropy) => loss + entropy.clone(),
            None => loss,
        }
    }
}

impl VectorQuantizer {
    /// Returns all code vectors as they are used, `[codebook_size, codebook_embed_dim]`.
    pub fn codes(&self) -> Tensor<2> {
        self.normed(self.embedding.weight.val())
    }

    /// Returns the code vectors of ids, `[batch, tokens]` to `[batch, tokens, codebook_embed_dim]`.
    pub fn lookup(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [batch, tokens] = ids.dims();
        let codes = self.embedding.forward(ids);
        let channels = codes.dims()[2];
        self.normed(codes.reshape([batch * tokens, channels])).reshape([batch, tokens, channels])
    }

    fn normed(&self, rows: Tensor<2>) -> Tensor<2> {
        if self.l2_norm { nn::unit_rows(rows) } else { rows }
    }

    /// Returns the ids of the codes nearest to the positions of a latent, `[batch, codebook_embed_dim, height, width]` to
    /// `[batch, height * width]`. The first one wins.
    pub fn quantize(&self, latent: Tensor<4>) -> Tensor<2, Int> {
        let batch = latent.dims()[0];
        self.nearest(self.rows(latent.inner()), batch)
    }

    /// Returns the positions of a latent as rows, `[batch * tokens, channels]`.
    fn rows(&self, latent: Tensor<4>) -> Tensor<2> {
        let [batch, channels, height, width] = latent.dims();
        self.normed(permute(latent, [0, 2, 3, 1]).reshape([batch * height * width, channels]))
    }

    /// Returns the ids of the codes nearest to rows off the graph, `[batch, tokens]`.
    fn nearest(&self, rows: Tensor<2>, batch: usize) -> Tensor<2, Int> {
        let codes = self.codes().inner();
        let count = rows.dims()[0];
        let found = if self.l2_norm {
            exact_matmul(rows, transpose(codes)).argmax(1)
        } else {
            let own = rows.clone().square().sum_dim(1); // [rows, 1]
            let theirs = transpose(codes.clone().square().sum_dim(1)); // [1, codes]
            (own + theirs - exact_matmul(rows, transpose(codes)) * 2.0).argmin(1)
        };
        found.reshape([batch, count / batch])
    }

    /// Quantizes a latent, `[batch, codebook_embed_dim, height, width]`, with gradients: those of the image pass straight
    /// through to the latent, those of the loss reach codes and latent.
    pub fn forward_train(&self, latent: Tensor<4>) -> QuantizedMap {
        let [batch, channels, height, width] = latent.dims();
        let rows = self.rows(latent);
        let target = rows.clone().inner();
        let ids = self.nearest(target.clone(), batch);
        let chosen = self.lookup(Tensor::from_inner(ids.clone())).reshape([batch * height * width, channels]);
        let [row, code] = [target.clone(), chosen.clone().inner()];
        let vq_loss = (chosen - Tensor::from_inner(row.clone())).square().mean();
        let commit_loss = (Tensor::from_inner(code.clone()) - rows.clone()).square().mean() * self.beta;
        let entropy_loss = (self.entropy_ratio > 0.0).then(|| self.entropy_loss(rows.clone()) * self.entropy_ratio);
        let straight = rows + Tensor::from_inner(code - row);
        let codes = permute(straight.reshape([batch, height, width, channels]), [0, 3, 1, 2]);
        QuantizedMap { codes, vq_loss, commit_loss, entropy_loss, ids, rows: target }
    }

    /// Computes the mean entropy of the choice at each position minus the entropy of the mean choice: small where each
    /// position is certain and all codes are in use.
    fn entropy_loss(&self, rows: Tensor<2>) -> Tensor<1> {
        let codes = self.codes();
        let own = rows.clone().square().sum_dim(1);
        let theirs = transpose(codes.clone().square().sum_dim(1));
        let distance = own + theirs - exact_matmul(rows, transpose(codes)) * 2.0;
        let logits = distance * (-1.0 / self.entropy_temperature);
        let probabilities = softmax(logits.clone(), 1);
        let each = (probabilities.clone() * log_softmax(logits, 1)).sum_dim(1).mean().neg();
        let mean = probabilities.mean_dim(0);
        let all = (mean.clone() * (mean + 1e-5).log()).sum().neg();
        each - all
    }
}
