//! Frozen networks that compute the features through which images are compared.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use burn_var::metrics::Splits;
use burn_var::models::classifier::Classifier;
use burn_var::models::dino::Vit;
use burn_var::models::inception::{Inception, InceptionInput};
use burn_var::models::judge::Judge;
use burn_var::{Error as ModelError, MapSize};

use super::NetworkIdentity;
use crate::Result;
use crate::data::Fingerprint;

/// The output of a network for a batch of images.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Features {
    /// `[images, dim]`: for the Frechet distance, precision, recall and the like.
    pub features: Vec<f32>,
    /// `[images, spatial_dim]`: for sFID. Empty if the network has no spatial features.
    pub spatial: Vec<f32>,
    /// `[images, classes]`, before softmax: for the Inception Score. Empty if the network has no classes.
    pub logits: Vec<f32>,
}

/// A frozen network that turns images into features.
pub trait FeatureExtractor {
    /// Returns the identity that is saved with the features.
    fn identity(&self) -> &NetworkIdentity;

    /// Returns the numbers per image in `features`, `spatial` and `logits` of [`Features`].
    fn dims(&self) -> [usize; 3];

    /// Returns how the protocol splits the images for the Inception Score.
    fn splits(&self) -> Splits {
        Splits::Count(10)
    }

    /// Computes the features of images of one size. `pixels` holds red, green and blue bytes, row by row, image by image.
    ///
    /// # Errors
    /// [`burn_var::Error::Shape`] if the network does not take images of that size.
    fn extract(&self, pixels: &[u8], size: MapSize) -> Result<Features>;
}

/// Extracts the features of FID's network, under one of the two protocols.
pub struct InceptionExtractor {
    network: Inception,
    identity: NetworkIdentity,
    input: InceptionInput,
    device: Device,
}

impl InceptionExtractor {
    /// Creates an extractor; `network` is on `device`.
    ///
    /// # Errors
    /// If the weights cannot be read back.
    pub fn new(network: Inception, input: InceptionInput, device: &Device) -> Result<Self> {
        let preprocessing = match input {
            InceptionInput::Tf1 => "299x299 by the TensorFlow 1 bilinear resize of guided-diffusion",
            InceptionInput::Torch => "299x299 by the PyTorch bilinear resize of pytorch-fid",
        };
        let identity = NetworkIdentity::new(NetworkIdentity::INCEPTION, fingerprint(&network)?, preprocessing);
        Ok(Self { network, identity, input, device: device.clone() })
    }
}

impl FeatureExtractor for InceptionExtractor {
    fn identity(&self) -> &NetworkIdentity {
        &self.identity
    }

    fn dims(&self) -> [usize; 3] {
        [Inception::POOL, Inception::SPATIAL, Inception::CLASSES]
    }

    fn splits(&self) -> Splits {
        Splits::Size(5000)
    }

    fn extract(&self, pixels: &[u8], size: MapSize) -> Result<Features> {
        let output = self.network.features(self.input.prepare(pixels, size, &self.device)?)?;
        // The guided-diffusion evaluator takes the softmax of the product alone, without the bias.
        let logits = self.network.logits(output.pool.clone(), false);
        Ok(Features { features: read(output.pool)?, spatial: read(output.spatial)?, logits: read(logits)? })
    }
}

/// Extracts the features of a classifier of `burn-var train classifier`.
pub struct ClassifierExtractor {
    classifier: Classifier,
    identity: NetworkIdentity,
    device: Device,
}

impl ClassifierExtractor {
    /// Creates an extractor; `classifier` is on `device`.
    ///
    /// # Errors
    /// If the weights cannot be read back.
    pub fn new(classifier: Classifier, device: &Device) -> Result<Self> {
        let config = classifier.config();
        let kind = format!("classifier (classes {}, width {})", config.classes, config.features());
        let identity = NetworkIdentity::new(kind, fingerprint(&classifier)?, without_resize(config.image_shape()));
        Ok(Self { classifier, identity, device: device.clone() })
    }
}

impl FeatureExtractor for ClassifierExtractor {
    fn identity(&self) -> &NetworkIdentity {
        &self.identity
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

/// Extracts the features of a judge of `burn-var train judges`.
pub struct JudgeExtractor {
    judge: Judge,
    identity: NetworkIdentity,
    device: Device,
}

impl JudgeExtractor {
    /// Creates an extractor; `judge` is on `device`.
    ///
    /// # Errors
    /// If the weights cannot be read back.
    pub fn new(judge: Judge, device: &Device) -> Result<Self> {
        let config = judge.config();
        let kind = format!("{} judge (features {})", config.network.name(), config.network.features());
        let identity = NetworkIdentity::new(kind, fingerprint(&judge)?, without_resize(config.image_shape()));
        Ok(Self { judge, identity, device: device.clone() })
    }
}

impl FeatureExtractor for JudgeExtractor {
    fn identity(&self) -> &NetworkIdentity {
        &self.identity
    }

    fn dims(&self) -> [usize; 3] {
        let network = &self.judge.config().network;
        [network.features(), 0, network.classes()]
    }

    fn extract(&self, pixels: &[u8], size: MapSize) -> Result<Features> {
        let images = planes(pixels, size, self.judge.config().image_channels, &self.device) / 127.5 - 1.0;
        let features = self.judge.features(images)?;
        let logits = self.judge.logits(features.clone()).map(read).transpose()?;
        Ok(Features { features: read(features)?, spatial: Vec::new(), logits: logits.unwrap_or_default() })
    }
}

/// Extracts the class token of a DINO vision transformer.
pub struct VitExtractor {
    vit: Vit,
    identity: NetworkIdentity,
    device: Device,
}

impl VitExtractor {
    /// Creates an extractor; `vit` is on `device`.
    ///
    /// # Errors
    /// If the weights cannot be read back.
    pub fn new(vit: Vit, device: &Device) -> Result<Self> {
        let config = vit.config();
        let kind = format!(
            "DINO vision transformer (patch {}, width {}, depth {}, heads {}, MLP ratio {}, epsilon {:e})",
            config.patch_size, config.embed_dim, config.depth, config.num_heads, config.mlp_ratio, config.norm_eps
        );
        let preprocessing = format!(
            "{side}x{side} by area resize, channels {}, mean {:?}, standard deviation {:?}",
            config.image_channels,
            config.mean,
            config.std,
            side = config.image_size
        );
        let identity = NetworkIdentity::new(kind, fingerprint(&vit)?, preprocessing);
        Ok(Self { vit, identity, device: device.clone() })
    }
}

impl FeatureExtractor for VitExtractor {
    fn identity(&self) -> &NetworkIdentity {
        &self.identity
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

/// Describes the preprocessing of networks that take images of one size, `[channels, height, width]`.
fn without_resize([channels, height, width]: [usize; 3]) -> String {
    format!("{width}x{height} without resize, channels {channels}, range -1 to 1")
}

fn fingerprint<M: Module>(network: &M) -> Result<String> {
    Ok(Fingerprint::new().module(network)?.finish())
}

/// Converts bytes to `[images, channels, height, width]` in `0..=255`; one channel is the first of the three.
fn planes(pixels: &[u8], size: MapSize, channels: usize, device: &Device) -> Tensor<4> {
    let bytes = size.area() * 3;
    let plane = |index: usize| {
        let (image, channel) = (&pixels[index / channels * bytes..][..bytes], index % channels);
        image.iter().skip(channel).step_by(3).map(|value| f32::from(*value))
    };
    let count = pixels.len() / bytes.max(1);
    let values: Vec<f32> = (0..count * channels).flat_map(plane).collect();
    Tensor::from_data(TensorData::new(values, [count, channels, size.height, size.width]), device)
}

fn read(tensor: Tensor<2>) -> Result<Vec<f32>> {
    Ok(tensor.try_into_vec_as::<f32>().map_err(ModelError::device("read features"))?)
}

#[cfg(test)]
mod tests {
    use burn_var::models::classifier::ClassifierConfig;
    use burn_var::models::dino::VitConfig;

    use super::*;

    #[test]
    fn classifiers_of_one_width_have_identities_of_their_own() {
        let device = Device::flex();
        let config = ClassifierConfig { image_channels: 1, image_size: [8, 8], classes: 3, ch: 32 };
        let network = |seed: u64| ClassifierExtractor::new(config.init(seed, &device).unwrap(), &device).unwrap();
        let [a, same, b] = [1, 1, 2].map(network);
        assert_eq!(a.dims(), b.dims(), "the shapes do not tell the two apart");
        assert_eq!(a.identity(), same.identity(), "the same weights");
        assert_ne!(a.identity(), b.identity(), "other weights");
    }

    #[test]
    fn the_protocol_belongs_to_the_identity_of_inception() {
        let device = Device::flex();
        let [a, b] = [InceptionInput::Tf1, InceptionInput::Torch].map(|input| {
            InceptionExtractor::new(Inception::init_zeros(&device), input, &device).unwrap().identity().clone()
        });
        assert_eq!((&a.kind, &a.weights), (&b.kind, &b.weights), "one network");
        assert_ne!(a.preprocessing, b.preprocessing, "two protocols");
        assert!(a.is_fid() && b.is_fid());
    }

    #[test]
    fn size_and_normalization_belong_to_the_identity_of_a_transformer() {
        let device = Device::flex();
        let config: VitConfig = serde_json::from_value(serde_json::json!({
            "image_size": 8, "image_channels": 1, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2,
            "mean": [0.5], "std": [0.5],
        }))
        .unwrap();
        let identity = |config: VitConfig| {
            let vit = config.init(1, &device).unwrap();
            VitExtractor::new(vit, &device).unwrap().identity().clone()
        };
        let plain = identity(config.clone());
        assert_eq!(identity(config.clone()), plain);
        let brighter = identity(VitConfig { mean: vec![0.4], ..config.clone() });
        assert_eq!(brighter.weights, plain.weights, "the weights do not tell the two apart");
        assert_ne!(brighter.preprocessing, plain.preprocessing, "another normalization");
        assert_ne!(identity(VitConfig { num_heads: 4, ..config }).kind, plain.kind, "other heads");
    }
}
