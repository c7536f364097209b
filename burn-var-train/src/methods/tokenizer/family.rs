//! The tokenizers that this method trains: VAR's, FlexVAR's, and LlamaGen's.

use std::fmt::Debug;

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use burn_var::math::Resize;
use burn_var::models::flexvar::{FlexVae, FlexVaeConfig};
use burn_var::models::llamagen::{LlamaGenVq, LlamaGenVqConfig};
use burn_var::models::var::{Quantized, VqVae, VqVaeConfig};
use burn_var::nn::Conv2d;
use burn_var::weights::Pretrained;
use burn_var::{MapSize, Tokenizer};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Result;
use crate::optim::OptimConfig;

/// The sizes of a tokenizer in a configuration.
pub trait TokenizerSizes: Clone + PartialEq + Debug + Serialize + DeserializeOwned + 'static {
    /// The tokenizer of these sizes.
    type Model: TrainedTokenizer<Config = Self>;

    /// Scales that a step trains besides the last, unless the configuration names another number. 0 for a tokenizer whose
    /// every step trains all scales.
    const EXTRA_SCALES: usize;

    /// Returns the settings of AdamW that absent keys have: those of VQ-GAN by default.
    fn optimizer() -> OptimConfig {
        super::default_optimizer()
    }

    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// [`burn_var::Error::Config`] naming the field.
    fn validate(&self) -> burn_var::Result<()>;

    /// Returns the shape of the images, `[channels, height, width]`.
    fn image_shape(&self) -> [usize; 3];

    /// Creates a tokenizer with untrained weights.
    ///
    /// # Errors
    /// The errors of [`TokenizerSizes::validate`].
    fn init(&self, seed: u64, device: &Device) -> burn_var::Result<Self::Model>;
}

/// A tokenizer in training.
pub trait TrainedTokenizer: Pretrained + Tokenizer {
    /// Encodes and decodes images, which are constants on the graph, at the last scale and at the `extra` ones.
    ///
    /// # Errors
    /// [`burn_var::Error::Shape`] for images of another shape.
    fn reconstruct(&self, images: &Tensor<4>, extra: &[usize]) -> Result<Reconstruction>;

    /// Returns the decoder's last convolution.
    fn last_convolution(&self) -> &Conv2d;

    /// Returns the codebook.
    fn codes_mut(&mut self) -> &mut Param<Tensor<2>>;
}

/// Images as a tokenizer reconstructs them, on the graph.
pub struct Reconstruction {
    /// Input of the decoder's last convolution.
    pub trunk: Tensor<4>,
    /// Reconstruction at the last scale, `[batch, channels, height, width]`.
    pub image: Tensor<4>,
    /// Reconstructions of the extra scales, and the images of their sizes.
    pub extra: Vec<[Tensor<4>; 2]>,
    /// Quantizer's loss, `[1]`.
    pub vq_loss: Tensor<1>,
    /// Tokens of the trained scales, off the graph.
    pub scales: Vec<TrainedScale>,
}

/// Tokens of one scale.
pub struct TrainedScale {
    /// Index of the scale.
    pub k: usize,
    /// Ids, `[batch, tokens]`.
    pub ids: Tensor<2, burn::tensor::Int>,
    /// Vectors that were quantized, `[batch * tokens, z_channels]`.
    pub rows: Tensor<2>,
}

impl TokenizerSizes for VqVaeConfig {
    type Model = VqVae;

    const EXTRA_SCALES: usize = 0;

    fn validate(&self) -> burn_var::Result<()> {
        self.validate()
    }

    fn image_shape(&self) -> [usize; 3] {
        self.image_shape()
    }

    fn init(&self, seed: u64, device: &Device) -> burn_var::Result<VqVae> {
        self.init(seed, device)
    }
}

impl TrainedTokenizer for VqVae {
    fn reconstruct(&self, images: &Tensor<4>, _extra: &[usize]) -> Result<Reconstruction> {
        let quantized = self.quantize.forward_train(self.latent(images.clone())?, self.scales());
        let Quantized { canvas, loss, tokens, residuals } = quantized;
        let (trunk, image) = self.decoder.forward_with_trunk(self.post_quant_conv.forward(canvas));
        let scales = tokens.into_iter().zip(residuals).enumerate();
        let scales = scales.map(|(k, (ids, rows))| TrainedScale { k, ids, rows }).collect();
        Ok(Reconstruction { trunk, image, extra: Vec::new(), vq_loss: loss, scales })
    }

    fn last_convolution(&self) -> &Conv2d {
        self.decoder.conv_out()
    }

    fn codes_mut(&mut self) -> &mut Param<Tensor<2>> {
        &mut self.quantize.embedding.weight
    }
}

impl TokenizerSizes for FlexVaeConfig {
    type Model = FlexVae;

    const EXTRA_SCALES: usize = 2;

    fn validate(&self) -> burn_var::Result<()> {
        self.validate()
    }

    fn image_shape(&self) -> [usize; 3] {
        self.image_shape()
    }

    fn init(&self, seed: u64, device: &Device) -> burn_var::Result<FlexVae> {
        self.init(seed, device)
    }
}

impl TrainedTokenizer for FlexVae {
    /// Each scale is the latent, resized and quantized by itself, and decodes to the image of its size. The loss of the
    /// quantizer is the mean over the scales.
    fn reconstruct(&self, images: &Tensor<4>, extra: &[usize]) -> Result<Reconstruction> {
        let latent = self.latent(images.clone())?;
        let schedule = self.scales();
        let last = self.quantize_train(latent.clone(), schedule.finest());
        let (trunk, image) = self.vq.decoder.forward_with_trunk(self.vq.post_quant_conv.forward(last.codes.clone()));
        let mut vq_loss = last.loss();
        let mut scales = vec![TrainedScale { k: schedule.len() - 1, ids: last.ids, rows: last.rows }];
        let mut smaller = Vec::with_capacity(extra.len());
        for &k in extra {
            let quantized = self.quantize_train(latent.clone(), schedule.size(k));
            vq_loss = vq_loss + quantized.loss();
            let image = self.decode_raw(quantized.codes);
            let [_, _, height, width] = image.dims();
            let target = Resize::Area.apply(images.clone(), MapSize { height, width });
            smaller.push([image, target]);
            scales.push(TrainedScale { k, ids: quantized.ids, rows: quantized.rows });
        }
        let vq_loss = vq_loss / scales.len() as f64;
        Ok(Reconstruction { trunk, image, extra: smaller, vq_loss, scales })
    }

    fn last_convolution(&self) -> &Conv2d {
        self.vq.decoder.conv_out()
    }

    fn codes_mut(&mut self) -> &mut Param<Tensor<2>> {
        &mut self.vq.quantize.embedding.weight
    }
}

impl TokenizerSizes for LlamaGenVqConfig {
    type Model = LlamaGenVq;

    const EXTRA_SCALES: usize = 0;

    fn optimizer() -> OptimConfig {
        OptimConfig { beta_1: 0.9, beta_2: 0.95, weight_decay: 0.0, clip_norm: Some(1.0), ..OptimConfig::default() }
    }

    fn validate(&self) -> burn_var::Result<()> {
        self.validate()
    }

    fn image_shape(&self) -> [usize; 3] {
        self.image_shape()
    }

    fn init(&self, seed: u64, device: &Device) -> burn_var::Result<LlamaGenVq> {
        self.init(seed, device)
    }
}

impl TrainedTokenizer for LlamaGenVq {
    /// All tokens of the image count as one scale.
    fn reconstruct(&self, images: &Tensor<4>, _extra: &[usize]) -> Result<Reconstruction> {
        let quantized = self.quantize_train(self.latent(images.clone())?);
        let vq_loss = quantized.loss();
        let (trunk, image) = self.vq.decoder.forward_with_trunk(self.vq.post_quant_conv.forward(quantized.codes));
        let scales = vec![TrainedScale { k: 0, ids: quantized.ids, rows: quantized.rows }];
        Ok(Reconstruction { trunk, image, extra: Vec::new(), vq_loss, scales })
    }

    fn last_convolution(&self) -> &Conv2d {
        self.vq.decoder.conv_out()
    }

    fn codes_mut(&mut self) -> &mut Param<Tensor<2>> {
        &mut self.vq.quantize.embedding.weight
    }
}
