//! A small convolutional classifier: it tests whether a generated image shows the requested class, and its features
//! serve the Frechet distance where Inception's mean little (28-pixel clothes).

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::init::{Init, fan_in_bound, initialize};
use crate::nn::{Conv2d, GroupNorm, generic, linear};
use crate::ops::ConvSpec;
use crate::{Error, Result};

/// Sizes of a [`Classifier`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierConfig {
    /// Channels of the images: 3 for color, 1 for grayscale.
    pub image_channels: usize,
    /// Height and width of the images, each at least 8.
    pub image_size: [usize; 2],
    /// Number of classes.
    pub classes: usize,
    /// Channels of the first convolution, a multiple of 32; doubled at each of the two downsamplings.
    #[serde(default = "default_ch")]
    pub ch: usize,
}

fn default_ch() -> usize {
    32
}

impl ClassifierConfig {
    /// Returns the shape of the images, `[channels, height, width]`.
    pub fn image_shape(&self) -> [usize; 3] {
        [self.image_channels, self.image_size[0], self.image_size[1]]
    }

    /// Returns the number of [`Classifier::features`] per image.
    pub fn features(&self) -> usize {
        4 * self.ch
    }

    /// Checks that the sizes make sense.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field, what it is, and what would be accepted.
    pub fn validate(&self) -> Result<()> {
        if ![1, 3].contains(&self.image_channels) {
            return Err(Error::config("image_channels", self.image_channels, "1 (grayscale) or 3 (red, green, blue)"));
        }
        if self.image_size.iter().any(|side| *side < 8) {
            return Err(Error::config("image_size", format!("{:?}", self.image_size), "at least 8 pixels each way"));
        }
        if self.classes < 2 {
            return Err(Error::config("classes", self.classes, "at least 2"));
        }
        if self.ch == 0 || !self.ch.is_multiple_of(GroupNorm::GROUPS) {
            return Err(Error::config("ch", self.ch, format!("a multiple of {}, the norm groups", GroupNorm::GROUPS)));
        }
        Ok(())
    }

    /// Creates a classifier with initial weights that depend on `seed` alone: uniform by fan-in, zero biases.
    ///
    /// # Errors
    /// The errors of [`ClassifierConfig::validate`].
    pub fn init(&self, seed: u64, device: &Device) -> Result<Classifier> {
        Ok(initialize(self.init_zeros(device)?, seed, |param| match param.shape {
            [_, input, height, width] => fan_in_bound(input * height * width),
            [input, _] => fan_in_bound(*input),
            _ => Init::Keep,
        }))
    }

    /// Creates a classifier whose weights take no memory until they are loaded.
    ///
    /// # Errors
    /// The errors of [`ClassifierConfig::validate`].
    pub fn init_zeros(&self, device: &Device) -> Result<Classifier> {
        self.validate()?;
        let [fine, middle, coarse] = [1, 2, 4].map(|factor| factor * self.ch);
        let halve = ConvSpec { stride: 2, padding: [1; 4] };
        Ok(Classifier {
            conv_in: Unit::new([self.image_channels, fine], ConvSpec::same(3), device),
            down1: Unit::new([fine, middle], halve, device),
            down2: Unit::new([middle, coarse], halve, device),
            residual: Unit::new([coarse, coarse], ConvSpec::same(3), device),
            head: linear(coarse, self.classes, true, device),
            config: self.clone(),
        })
    }
}

/// Convolutional image classifier, created with [`ClassifierConfig::init`].
#[derive(Module, Debug)]
pub struct Classifier {
    conv_in: Unit,
    down1: Unit,
    down2: Unit,
    residual: Unit,
    head: Linear,
    #[module(skip)]
    config: ClassifierConfig,
}

impl Classifier {
    /// Returns the sizes.
    pub fn config(&self) -> &ClassifierConfig {
        &self.config
    }

    /// Computes class logits `[batch, classes]` of images `[batch, channels, height, width]` in `[-1, 1]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the images do not have [`ClassifierConfig::image_shape`].
    pub fn forward(&self, images: Tensor<4>) -> Result<Tensor<2>> {
        Ok(self.scores(self.features(images)?))
    }

    /// Computes class logits from [`Classifier::features`].
    pub fn scores(&self, features: Tensor<2>) -> Tensor<2> {
        generic(&self.head, features)
    }

    /// Computes the input of the last linear layer: the mean of the last map over positions, `[batch, 4 ch]`.
    ///
    /// # Errors
    /// The errors of [`Classifier::forward`].
    pub fn features(&self, images: Tensor<4>) -> Result<Tensor<2>> {
        let [batch, shape @ ..] = images.dims();
        let expected @ [channels, height, width] = self.config.image_shape();
        if shape != expected {
            let expected = format!("[batch, {channels}, {height}, {width}]");
            return Err(Error::shape("images", expected, images.dims()));
        }
        let x = self.down2.forward(self.down1.forward(self.conv_in.forward(images)));
        let x = x.clone() + self.residual.forward(x); // [batch, 4 ch, height / 4, width / 4]
        let [_, channels, height, width] = x.dims();
        Ok(x.reshape([batch, channels, height * width]).mean_dim(2).squeeze_dim(2))
    }
}

/// 3x3 convolution, group norm, SiLU.
#[derive(Module, Debug)]
pub(in crate::models) struct Unit {
    conv: Conv2d,
    norm: GroupNorm,
}

impl Unit {
    pub(in crate::models) fn new(channels: [usize; 2], spec: ConvSpec, device: &Device) -> Self {
        Self { conv: Conv2d::new(channels, 3, spec, device), norm: GroupNorm::new(channels[1], device) }
    }

    pub(in crate::models) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.norm.forward_silu(self.conv.forward(x))
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;
    use crate::rng::Rng;

    fn config() -> ClassifierConfig {
        ClassifierConfig { image_channels: 1, image_size: [11, 13], classes: 7, ch: 32 }
    }

    fn images(batch: usize) -> Tensor<4> {
        let mut rng = Rng::new(1, "images", 0);
        let values: Vec<f32> = (0..batch * 143).map(|_| rng.uniform() as f32 * 2.0 - 1.0).collect();
        Tensor::from_data(TensorData::new(values, [batch, 1, 11, 13]), &Device::default())
    }

    fn values(tensor: Tensor<2>) -> Vec<f32> {
        tensor.into_data().try_into_vec().expect("f32")
    }

    #[test]
    fn shapes_and_independence_of_the_batch() {
        let model = config().init(3, &Device::default()).expect("valid");
        let features = model.features(images(3)).expect("right shape");
        assert_eq!(features.dims(), [3, config().features()], "features");
        let together = values(model.forward(images(3)).expect("right shape"));
        assert_eq!(together.len(), 3 * 7, "scores");
        for i in 0..3 {
            let alone = values(model.forward(images(3).narrow(0, i, 1)).expect("right shape"));
            for (a, b) in alone.iter().zip(&together[i * 7..]) {
                assert!((a - b).abs() < 1e-5, "image {i} alone {a}, in a batch {b}");
            }
        }
    }

    #[test]
    fn weights_follow_from_the_seed() {
        let scores =
            |seed| values(config().init(seed, &Device::default()).expect("valid").forward(images(1)).expect("ok"));
        assert_eq!(scores(1), scores(1), "same seed");
        assert_ne!(scores(1), scores(2), "other seed");
    }

    #[test]
    fn wrong_sizes_are_named() {
        let model = config().init(3, &Device::default()).expect("valid");
        let message = model.forward(crate::ops::swap(images(1), 2, 3)).expect_err("turned").to_string();
        assert!(message.contains("[batch, 1, 11, 13]"), "{message}");
        for (broken, field) in [
            (ClassifierConfig { image_channels: 2, ..config() }, "image_channels"),
            (ClassifierConfig { image_size: [7, 32], ..config() }, "image_size"),
            (ClassifierConfig { classes: 1, ..config() }, "classes"),
            (ClassifierConfig { ch: 33, ..config() }, "`ch`"),
        ] {
            let message = broken.validate().expect_err("invalid").to_string();
            assert!(message.contains(field), "names {field}: {message}");
        }
    }
}
