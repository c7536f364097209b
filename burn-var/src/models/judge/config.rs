use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::Judge;
use crate::init::{Init, fan_in_bound, initialize};
use crate::metrics::FeatureStats;
use crate::nn::GroupNorm;
use crate::{Error, Result};

/// Sizes of a [`Judge`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgeConfig {
    /// Channels of the images: 3 for color, 1 for grayscale.
    pub image_channels: usize,
    /// Height and width of the images, multiples of 16.
    pub image_size: [usize; 2],
    /// The network.
    pub network: JudgeNetwork,
}

/// Kind and sizes of a judge's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum JudgeNetwork {
    /// Convolutional classifier with residual connections. The features are the means of the last map over positions.
    Convolutional {
        /// Number of classes.
        classes: usize,
        /// Channels at a half, a quarter and an eighth of the images' size, multiples of 32; the last are the features.
        #[serde(default = "default_levels")]
        channels: [usize; 3],
        /// Residual blocks of each size.
        #[serde(default = "default_blocks")]
        blocks: usize,
    },
    /// Multilayer perceptron that classifies. The features are the outputs of its last hidden layer.
    Perceptron {
        /// Number of classes.
        classes: usize,
        /// Numbers in the first hidden layer.
        #[serde(default = "default_width")]
        width: usize,
        /// Numbers in the last hidden layer.
        #[serde(default = "default_hidden")]
        features: usize,
    },
    /// Convolutional network with the random weights of a seed, never trained. The features are the means of the last map
    /// over its four quarters, 4 per channel.
    Random {
        /// Channels of every layer.
        #[serde(default = "default_channels")]
        channels: usize,
    },
    /// Principal components of the pixels, in closed form. The features are the coordinates of an image.
    Components {
        /// Number of components.
        #[serde(default = "default_bottleneck")]
        features: usize,
    },
    /// Convolutional autoencoder. The features are its bottleneck.
    Autoencoder {
        /// Channels at half of the images' size, a multiple of 32; twice as many below.
        #[serde(default = "default_channels")]
        channels: usize,
        /// Numbers in the bottleneck.
        #[serde(default = "default_bottleneck")]
        features: usize,
    },
}

fn default_levels() -> [usize; 3] {
    [32, 64, 96]
}

fn default_blocks() -> usize {
    2
}

fn default_width() -> usize {
    256
}

fn default_hidden() -> usize {
    96
}

fn default_channels() -> usize {
    32
}

fn default_bottleneck() -> usize {
    64
}

impl JudgeNetwork {
    /// Returns the name of the kind, as in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Convolutional { .. } => "convolutional",
            Self::Perceptron { .. } => "perceptron",
            Self::Random { .. } => "random",
            Self::Components { .. } => "components",
            Self::Autoencoder { .. } => "autoencoder",
        }
    }

    /// Returns the number of features per image.
    pub fn features(&self) -> usize {
        match self {
            Self::Convolutional { channels: [.., last], .. } => *last,
            Self::Perceptron { features, .. } | Self::Components { features } | Self::Autoencoder { features, .. } => {
                *features
            }
            Self::Random { channels } => 4 * channels,
        }
    }

    /// Returns the number of classes, 0 if the network does not classify.
    pub fn classes(&self) -> usize {
        match self {
            Self::Convolutional { classes, .. } | Self::Perceptron { classes, .. } => *classes,
            Self::Random { .. } | Self::Components { .. } | Self::Autoencoder { .. } => 0,
        }
    }
}

impl JudgeConfig {
    /// Returns the shape of the images, `[channels, height, width]`.
    pub fn image_shape(&self) -> [usize; 3] {
        [self.image_channels, self.image_size[0], self.image_size[1]]
    }

    /// Checks that the sizes make sense.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field, what it is, and what would be accepted.
    pub fn validate(&self) -> Result<()> {
        if ![1, 3].contains(&self.image_channels) {
            return Err(Error::config("image_channels", self.image_channels, "1 (grayscale) or 3 (red, green, blue)"));
        }
        if self.image_size.iter().any(|side| *side == 0 || !side.is_multiple_of(16)) {
            return Err(Error::config("image_size", format!("{:?}", self.image_size), "multiples of 16 pixels"));
        }
        if let JudgeNetwork::Convolutional { classes, .. } | JudgeNetwork::Perceptron { classes, .. } = self.network
            && classes < 2
        {
            return Err(Error::config("classes", classes, "at least 2"));
        }
        let elements = self.image_shape().iter().product();
        let features = self.network.features();
        if !(1..=elements).contains(&features) {
            return Err(Error::config("features", features, format!("1 to {elements}, the numbers of an image")));
        }
        let channels = match &self.network {
            JudgeNetwork::Convolutional { channels, .. } => channels.to_vec(),
            JudgeNetwork::Autoencoder { channels, .. } => vec![*channels],
            _ => Vec::new(),
        };
        if let Some(wrong) = channels.iter().find(|count| **count == 0 || !count.is_multiple_of(GroupNorm::GROUPS)) {
            let expected = format!("multiples of {}, the norm groups", GroupNorm::GROUPS);
            return Err(Error::config("channels", wrong, expected));
        }
        match self.network {
            JudgeNetwork::Perceptron { width: 0, .. } => Err(Error::config("width", 0, "at least 1")),
            _ => Ok(()),
        }
    }

    /// Creates a judge with initial weights that depend on `seed` alone. Those of a random network are normal with the
    /// variance that keeps the size of activations (He et al. 2015), and its final ones; those of the others are uniform
    /// by fan-in, with zero biases.
    ///
    /// # Errors
    /// The errors of [`JudgeConfig::validate`].
    pub fn init(&self, seed: u64, device: &Device) -> Result<Judge> {
        let random = matches!(self.network, JudgeNetwork::Random { .. });
        Ok(initialize(self.init_zeros(device)?, seed, |param| match *param.shape {
            [_, input, height, width] if random => Init::Normal((2.0 / (input * height * width) as f64).sqrt()),
            [_] if random => Init::Normal(0.1),
            [_, input, height, width] => fan_in_bound(input * height * width),
            [input, _] => fan_in_bound(input),
            _ => Init::Keep,
        }))
    }

    /// Creates a judge whose weights take no memory until they are loaded.
    ///
    /// # Errors
    /// The errors of [`JudgeConfig::validate`].
    pub fn init_zeros(&self, device: &Device) -> Result<Judge> {
        self.validate()?;
        Ok(Judge::zeros(self, device))
    }

    /// Creates the judge of principal components from the statistics of training images: the rows are their pixels in
    /// `[-1, 1]`, channel by channel.
    ///
    /// # Errors
    /// [`Error::Config`] if the network is of another kind; the errors of [`FeatureStats::gaussian`]; [`Error::Shape`]
    /// if the rows are not as long as an image.
    pub fn fit(&self, pixels: &FeatureStats, device: &Device) -> Result<Judge> {
        let JudgeNetwork::Components { features } = self.network else {
            return Err(Error::config("network", self.network.name(), "components: the others are trained"));
        };
        let elements: usize = self.image_shape().iter().product();
        if pixels.dim() != elements {
            return Err(Error::shape("rows of pixels", format!("[images, {elements}]"), [pixels.dim()]));
        }
        let gaussian = pixels.gaussian()?;
        let mean = gaussian.mean().iter().map(|value| *value as f32).collect();
        let directions = gaussian.principal_directions(features)?.into_iter().map(|value| value as f32).collect();
        Ok(self.init_zeros(device)?.with_components(mean, directions, device))
    }
}
