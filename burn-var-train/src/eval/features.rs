//! Frozen networks that pictures are compared through.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use burn_var::classifier::Classifier;
use burn_var::encoder::{Inception, InceptionInput, Vit};
use burn_var::metrics::Splits;
use burn_var::{Error as ModelError, MapSize};

use crate::Result;
use crate::data::Fingerprint;

/// What a network sees in pictures.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Features {
    /// `[pictures, dim]`: for Frechet distance, precision, recall and the like.
    pub features: Vec<f32>,
    /// `[pictures, spatial_dim]`: for sFID. Empty from networks that have none.
    pub spatial: Vec<f32>,
    /// `[pictures, classes]`, before softmax: for the Inception Score. Empty from networks that have none.
    pub logits: Vec<f32>,
}

/// A frozen network.
pub trait FeatureSource {
    /// Its name, protocol and weights, for reports: numbers of different ones have nothing to do with each other.
    fn describe(&self) -> String;

    /// Numbers a picture in `features`, `spatial` and `logits` of [`Features`].
    fn dims(&self) -> [usize; 3];

    /// How pictures are parted for the score of their logits, as the protocol does it.
    fn splits(&self) -> Splits {
        Splits::Count(10)
    }

    /// Whether its Frechet distance is what papers call FID.
    fn is_fid(&self) -> bool {
        false
    }

    /// Looks at pictures of one size: rows of red, green and blue.
    ///
    /// # Errors
    /// [`burn_var::Error::Shape`] if the network does not take pictures of that size.
    fn extract(&self, pixels: &[u8], size: MapSize) -> Result<Features>;
}

/// FID's network under one of the two protocols.
pub struct InceptionFeatures {
    network: Inception,
    weights: String,
    input: InceptionInput,
    device: Device,
}

impl InceptionFeatures {
    /// `network` is on `device`.
    ///
    /// # Errors
    /// If its weights cannot be read back.
    pub fn new(network: Inception, input: InceptionInput, device: &Device) -> Result<Self> {
        Ok(Self { weights: weights(&network)?, network, input, device: device.clone() })
    }
}

impl FeatureSource for InceptionFeatures {
    fn describe(&self) -> String {
        let protocol = match self.input {
            InceptionInput::Tf1 => "guided-diffusion: FID's Inception, TensorFlow 1 resize",
            InceptionInput::Torch => "pytorch-fid: FID's Inception, PyTorch resize",
        };
        format!("{protocol}, weights {}", self.weights)
    }

    fn dims(&self) -> [usize; 3] {
        [Inception::POOL, Inception::SPATIAL, Inception::CLASSES]
    }

    fn splits(&self) -> Splits {
        Splits::Size(5000)
    }

    fn is_fid(&self) -> bool {
        true
    }

    fn extract(&self, pixels: &[u8], size: MapSize) -> Result<Features> {
        let seen = self.network.features(self.input.prepare(pixels, size, &self.device)?)?;
        // The guided-diffusion evaluator's softmax is of the product alone.
        let logits = self.network.logits(seen.pool.clone(), false);
        Ok(Features { features: read(seen.pool)?, spatial: read(seen.spatial)?, logits: read(logits)? })
    }
}

/// The classifier of `burn-var train classifier`.
pub struct ClassifierFeatures {
    classifier: Classifier,
    weights: String,
    device: Device,
}

impl ClassifierFeatures {
    /// `classifier` is on `device`.
    ///
    /// # Errors
    /// If its weights cannot be read back.
    pub fn new(classifier: Classifier, device: &Device) -> Result<Self> {
        Ok(Self { weights: weights(&classifier)?, classifier, device: device.clone() })
    }
}

impl FeatureSource for ClassifierFeatures {
    fn describe(&self) -> String {
        format!("classifier of {} classes, weights {}", self.classifier.config().classes, self.weights)
    }

    fn dims(&self) -> [usize; 3] {
        [self.classifier.config().features(), 0, self.classifier.config().classes]
    }

    fn extract(&self, pixels: &[u8], size: MapSize) -> Result<Features> {
        let channels = self.classifier.config().image_channels;
        let images = planes(pixels, size, channels, &self.device) / 127.5 - 1.0;
        let features = self.classifier.features(images)?;
        let logits = self.classifier.scores(features.clone());
        Ok(Features { features: read(features)?, spatial: Vec::new(), logits: read(logits)? })
    }
}

/// The class token of a DINO vision transformer.
pub struct VitFeatures {
    vit: Vit,
    weights: String,
    device: Device,
}

impl VitFeatures {
    /// `vit` is on `device`.
    ///
    /// # Errors
    /// If its weights cannot be read back.
    pub fn new(vit: Vit, device: &Device) -> Result<Self> {
        Ok(Self { weights: weights(&vit)?, vit, device: device.clone() })
    }
}

impl FeatureSource for VitFeatures {
    fn describe(&self) -> String {
        let config = self.vit.config();
        let (width, patch) = (config.embed_dim, config.patch_size);
        format!("DINO vision transformer, width {width}, patches of {patch}, weights {}", self.weights)
    }

    fn dims(&self) -> [usize; 3] {
        [self.vit.config().embed_dim, 0, 0]
    }

    fn extract(&self, pixels: &[u8], size: MapSize) -> Result<Features> {
        let images = planes(pixels, size, self.vit.config().image_channels, &self.device) / 127.5 - 1.0;
        let features = self.vit.forward(self.vit.prepare(images)?)?;
        Ok(Features { features: read(features)?, spatial: Vec::new(), logits: Vec::new() })
    }
}

/// The first digits of the weights' fingerprint.
fn weights<M: Module>(network: &M) -> Result<String> {
    let mut digits = Fingerprint::new().module(network)?.finish();
    digits.truncate(12);
    Ok(digits)
}

/// `[pictures, channels, height, width]` in `0..=255`; of one channel it is the first.
fn planes(pixels: &[u8], size: MapSize, channels: usize, device: &Device) -> Tensor<4> {
    let picture = size.area() * 3;
    let plane = |index: usize| {
        let (picture, channel) = (&pixels[index / channels * picture..][..picture], index % channels);
        picture.iter().skip(channel).step_by(3).map(|value| f32::from(*value))
    };
    let count = pixels.len() / picture.max(1);
    let values: Vec<f32> = (0..count * channels).flat_map(plane).collect();
    Tensor::from_data(TensorData::new(values, [count, channels, size.height, size.width]), device)
}

fn read(tensor: Tensor<2>) -> Result<Vec<f32>> {
    Ok(tensor.try_into_vec_as::<f32>().map_err(ModelError::device("read features"))?)
}
