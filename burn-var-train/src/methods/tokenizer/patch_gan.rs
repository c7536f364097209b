//! A discriminator that judges every patch of an image by itself: the one of pix2pix (Isola et al. 2017, section
//! 3.2.2), in the layout that VQ-GAN trains its tokenizer against (`NLayerDiscriminator`).
//!
//! One thing differs: group norm stands where the original has batch norm. The judgement of an image then depends on
//! no other image, so real ones and reconstructions share one pass, there are no running statistics that a
//! checkpoint must carry, and small batches train as steadily as large ones.

use burn::module::Module;
use burn::tensor::activation::leaky_relu;
use burn::tensor::{Device, Tensor};
use burn_var::init::{Init, initialize};
use burn_var::nn::{Conv2d, GroupNorm};
use burn_var::ops::ConvSpec;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Side of every kernel.
const KERNEL: usize = 4;

/// The sizes of a [`PatchGan`]; the defaults are VQ-GAN's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PatchGanConfig {
    /// Channels after the first convolution; they double from layer to layer, up to eight times as many.
    pub width: usize,
    /// Convolutions that halve the map. Each about doubles the patch that one judgement sees: 70 pixels for 3, 34 for
    /// 2, 16 for 1.
    pub layers: usize,
}

impl Default for PatchGanConfig {
    fn default() -> Self {
        Self { width: 64, layers: 3 }
    }
}

impl PatchGanConfig {
    /// Checks the sizes against those of the images, `[channels, height, width]`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self, [_, height, width]: [usize; 3]) -> Result<()> {
        const HALF: usize = GroupNorm::GROUPS / 2;
        if self.width == 0 || !self.width.is_multiple_of(HALF) {
            return Err(Error::config("gan.discriminator.width", self.width, format!("a multiple of {HALF}")));
        }
        // The two convolutions of stride 1 at the end take a row and a column each.
        let most = (height.min(width) / 3).checked_ilog2().unwrap_or(0) as usize;
        if !(1..=most).contains(&self.layers) {
            let expected = match most {
                0 => format!("images of at least 6x6, these have {height}x{width}"),
                _ => format!("1 to {most}, for images of {height}x{width}"),
            };
            return Err(Error::config("gan.discriminator.layers", self.layers, expected));
        }
        Ok(())
    }

    /// A discriminator of images `[channels, height, width]`, with the weights that pix2pix starts from.
    ///
    /// # Errors
    /// The errors of [`PatchGanConfig::validate`].
    pub fn init(&self, image: [usize; 3], seed: u64, device: &Device) -> Result<PatchGan> {
        self.validate(image)?;
        let channels = |layer: usize| self.width << layer.min(3);
        let conv = |channels: [usize; 2], stride: usize| {
            Conv2d::new(channels, KERNEL, ConvSpec { stride, padding: [1; 4] }, device)
        };
        let blocks = (1..=self.layers).map(|layer| Block {
            conv: conv([channels(layer - 1), channels(layer)], if layer < self.layers { 2 } else { 1 }),
            norm: GroupNorm::new(channels(layer), device),
        });
        let network = PatchGan {
            conv_in: conv([image[0], self.width], 2),
            blocks: blocks.collect(),
            conv_out: conv([channels(self.layers), 1], 1),
        };
        // Every parameter is filled: one that Burn has yet to fill shares its state with its clones, and to freeze a
        // clone, as the tokenizer's term does, would freeze the discriminator as well.
        Ok(initialize(network, seed, |slot| match slot.path {
            path if path.ends_with("norm.weight") => Init::Constant(1.0),
            path if path.ends_with("weight") => Init::Normal(0.02),
            _ => Init::Constant(0.0),
        }))
    }
}

/// The discriminator.
#[derive(Module, Debug)]
pub struct PatchGan {
    conv_in: Conv2d,
    blocks: Vec<Block>,
    conv_out: Conv2d,
}

#[derive(Module, Debug)]
struct Block {
    conv: Conv2d,
    norm: GroupNorm,
}

impl PatchGan {
    /// Images `[batch, channels, height, width]` in `[-1, 1]` to one number a patch, `[batch, 1, rows, columns]`:
    /// positive for real, negative for made.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<4> {
        let first = activate(self.conv_in.forward(images));
        let last = self.blocks.iter().fold(first, |x, block| activate(block.norm.forward(block.conv.forward(x))));
        self.conv_out.forward(last)
    }
}

fn activate(x: Tensor<4>) -> Tensor<4> {
    leaky_relu(x, 0.2)
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use burn_var::rng::Rng;

    use super::*;

    fn noise(shape: [usize; 4], purpose: &str, device: &Device) -> Tensor<4> {
        let mut rng = Rng::new(5, purpose, 0);
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.uniform() as f32 * 2.0 - 1.0).collect();
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn values(tensor: Tensor<4>) -> Vec<f32> {
        tensor.into_data().try_into_vec().expect("f32")
    }

    #[test]
    fn has_the_layout_of_vq_gan() {
        // The original has 2,765,633 for 3 channels; its convolutions before a norm have no bias, these do.
        let network = PatchGanConfig::default().init([3, 256, 256], 0, &Device::default()).expect("fits");
        assert_eq!(network.num_params(), 2_765_633 + (128 + 256 + 512), "parameters");
        let tiny = PatchGanConfig { width: 16, layers: 2 }.init([1, 19, 14], 0, &Device::default()).expect("fits");
        let judged = tiny.forward(noise([2, 1, 19, 14], "pictures", &Device::default()));
        assert_eq!(judged.dims(), [2, 1, 2, 1], "one number a patch");
    }

    #[test]
    fn an_image_is_judged_by_itself() {
        let device = Device::default();
        let network = PatchGanConfig { width: 32, layers: 2 }.init([3, 16, 18], 1, &device).expect("fits");
        let (a, b) = (noise([1, 3, 16, 18], "a", &device), noise([1, 3, 16, 18], "b", &device));
        let together = values(network.forward(Tensor::cat(vec![a.clone(), b.clone()], 0)));
        let apart = [values(network.forward(a)), values(network.forward(b))].concat();
        for (together, apart) in together.iter().zip(&apart) {
            assert!((together - apart).abs() < 1e-5, "beside another image {together}, alone {apart}");
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_named() {
        for (config, image, part) in [
            (PatchGanConfig { width: 24, layers: 1 }, [1, 32, 32], "`gan.discriminator.width` is 24"),
            (PatchGanConfig { width: 32, layers: 3 }, [1, 16, 32], "expected 1 to 2, for images of 16x32"),
            (PatchGanConfig { width: 32, layers: 0 }, [1, 16, 16], "`gan.discriminator.layers` is 0"),
            (PatchGanConfig { width: 32, layers: 1 }, [1, 4, 4], "at least 6x6"),
        ] {
            let error = config.validate(image).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
