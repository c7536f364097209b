use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::module::interpolate;
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};
use burn::tensor::{Device, Tensor, TensorData};

use super::{JudgeConfig, JudgeNetwork};
use crate::models::classifier::Unit;
use crate::nn::{Conv2d, LayerNorm, generic, linear, zeros};
use crate::ops::{self, ConvSpec};
use crate::{Error, Result};

/// Halves a map with a 3x3 convolution.
const HALVE: ConvSpec = ConvSpec { stride: 2, padding: [1; 4] };
/// Epsilon of the perceptron's norms.
const EPSILON: f64 = 1e-6;

/// A small network that evaluates images, created with [`JudgeConfig::init`] or [`JudgeConfig::fit`].
#[derive(Module, Debug)]
pub struct Judge {
    network: Network,
    #[module(skip)]
    config: JudgeConfig,
}

#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one per evaluation")]
enum Network {
    Convolutional(ConvNet),
    Perceptron(Perceptron),
    Random(RandomNet),
    Components(Components),
    Autoencoder(Autoencoder),
}

impl Judge {
    /// Creates a judge of zeros with a valid configuration.
    pub(super) fn zeros(config: &JudgeConfig, device: &Device) -> Self {
        let shape = config.image_shape();
        let network = match config.network {
            JudgeNetwork::Convolutional { classes, channels, blocks } => {
                Network::Convolutional(ConvNet::new(shape[0], channels, blocks, classes, device))
            }
            JudgeNetwork::Perceptron { classes, width, features } => {
                Network::Perceptron(Perceptron::new(shape.iter().product(), width, features, classes, device))
            }
            JudgeNetwork::Random { channels } => Network::Random(RandomNet::new(shape[0], channels, device)),
            JudgeNetwork::Components { features } => {
                let elements = shape.iter().product();
                Network::Components(Components {
                    mean: zeros([elements], device),
                    directions: zeros([elements, features], device),
                })
            }
            JudgeNetwork::Autoencoder { channels, features } => {
                Network::Autoencoder(Autoencoder::new(shape, channels, features, device))
            }
        };
        Self { network, config: config.clone() }
    }

    /// Sets the mean and the directions `[elements, features]` of principal components; other kinds stay as they are.
    pub(super) fn with_components(mut self, mean: Vec<f32>, directions: Vec<f32>, device: &Device) -> Self {
        if let Network::Components(found) = &mut self.network {
            let dims = [mean.len(), self.config.network.features()];
            let mean = Tensor::from_data(TensorData::new(mean, [dims[0]]), device);
            *found = Components {
                mean: Param::from_tensor(mean),
                directions: Param::from_tensor(Tensor::from_data(TensorData::new(directions, dims), device)),
            };
        }
        self
    }

    /// Returns the sizes.
    pub fn config(&self) -> &JudgeConfig {
        &self.config
    }

    /// Computes the features `[batch, features]` of images `[batch, channels, height, width]` in `[-1, 1]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the images do not have [`JudgeConfig::image_shape`].
    pub fn features(&self, images: Tensor<4>) -> Result<Tensor<2>> {
        let [_, shape @ ..] = images.dims();
        let expected @ [channels, height, width] = self.config.image_shape();
        if shape != expected {
            let expected = format!("[batch, {channels}, {height}, {width}]");
            return Err(Error::shape("images", expected, images.dims()));
        }
        Ok(match &self.network {
            Network::Convolutional(network) => network.features(images),
            Network::Perceptron(network) => network.features(images),
            Network::Random(network) => network.features(images),
            Network::Components(network) => network.features(images),
            Network::Autoencoder(network) => network.encode(images),
        })
    }

    /// Computes class logits `[batch, classes]` from [`Judge::features`]; `None` if the network does not classify.
    pub fn logits(&self, features: Tensor<2>) -> Option<Tensor<2>> {
        match &self.network {
            Network::Convolutional(network) => Some(generic(&network.head, features)),
            Network::Perceptron(network) => Some(generic(&network.head, features)),
            Network::Random(_) | Network::Components(_) | Network::Autoencoder(_) => None,
        }
    }

    /// Computes images `[batch, channels, height, width]` from [`Judge::features`]; `None` if the network cannot.
    pub fn reconstruct(&self, features: Tensor<2>) -> Option<Tensor<4>> {
        match &self.network {
            Network::Components(network) => {
                let [channels, height, width] = self.config.image_shape();
                let images = ops::exact_matmul(features, ops::transpose(network.directions.val()))
                    + network.mean.val().unsqueeze();
                let batch = images.dims()[0];
                Some(images.reshape([batch, channels, height, width]))
            }
            Network::Autoencoder(network) => Some(network.decode(features, self.config.image_size)),
            Network::Convolutional(_) | Network::Perceptron(_) | Network::Random(_) => None,
        }
    }
}

/// Residual convolutional classifier.
#[derive(Module, Debug)]
struct ConvNet {
    levels: Vec<Level>,
    head: Linear,
}

/// Layers at one size of the map: a convolution that halves it, then residual blocks.
#[derive(Module, Debug)]
struct Level {
    halve: Unit,
    blocks: Vec<Unit>,
}

impl ConvNet {
    fn new(image_channels: usize, channels: [usize; 3], blocks: usize, classes: usize, device: &Device) -> Self {
        let inputs = [image_channels, channels[0], channels[1]];
        let level = |(input, output): (usize, usize)| Level {
            halve: Unit::new([input, output], HALVE, device),
            blocks: (0..blocks).map(|_| Unit::new([output; 2], ConvSpec::same(3), device)).collect(),
        };
        Self {
            levels: inputs.into_iter().zip(channels).map(level).collect(),
            head: linear(channels[2], classes, true, device),
        }
    }

    fn features(&self, mut x: Tensor<4>) -> Tensor<2> {
        for level in &self.levels {
            x = level.halve.forward(x);
            for block in &level.blocks {
                x = x.clone() + block.forward(x);
            }
        }
        let [batch, channels, height, width] = x.dims();
        x.reshape([batch, channels, height * width]).mean_dim(2).squeeze_dim(2)
    }
}

/// Multilayer perceptron: two hidden layers, each linear, layer norm, SiLU.
#[derive(Module, Debug)]
struct Perceptron {
    hidden: Vec<Linear>,
    norms: Vec<LayerNorm>,
    head: Linear,
}

impl Perceptron {
    fn new(elements: usize, width: usize, features: usize, classes: usize, device: &Device) -> Self {
        Self {
            hidden: vec![linear(elements, width, true, device), linear(width, features, true, device)],
            norms: [width, features].map(|width| LayerNorm::new(width, EPSILON, device)).into(),
            head: linear(features, classes, true, device),
        }
    }

    fn features(&self, images: Tensor<4>) -> Tensor<2> {
        let mut x: Tensor<2> = images.flatten(1, 3);
        for (hidden, norm) in self.hidden.iter().zip(&self.norms) {
            x = ops::silu(norm.forward(generic(hidden, x).unsqueeze_dim(1)).squeeze_dim(1));
        }
        x
    }
}

/// Three convolutions of stride 2 with ReLU, without norms.
#[derive(Module, Debug)]
struct RandomNet {
    layers: Vec<Conv2d>,
}

impl RandomNet {
    fn new(image_channels: usize, channels: usize, device: &Device) -> Self {
        let layer = |input: usize| Conv2d::new([input, channels], 3, HALVE, device);
        Self { layers: [image_channels, channels, channels].map(layer).into() }
    }

    fn features(&self, images: Tensor<4>) -> Tensor<2> {
        let map = self.layers.iter().fold(images, |x, layer| ops::relu(layer.forward(x)));
        let [batch, channels, height, width] = map.dims();
        let quarters: Tensor<6> = map.reshape([batch, channels, 2, height / 2, 2, width / 2]);
        quarters.mean_dim(5).mean_dim(3).reshape([batch, 4 * channels])
    }
}

/// Principal components of pixels.
#[derive(Module, Debug)]
struct Components {
    /// `[elements]`.
    mean: Param<Tensor<1>>,
    /// `[elements, features]`.
    directions: Param<Tensor<2>>,
}

impl Components {
    fn features(&self, images: Tensor<4>) -> Tensor<2> {
        let pixels: Tensor<2> = images.flatten(1, 3);
        ops::exact_matmul(pixels - self.mean.val().unsqueeze(), self.directions.val())
    }
}

/// Convolutional autoencoder: three halvings, a linear bottleneck, three doublings.
#[derive(Module, Debug)]
struct Autoencoder {
    encoder: Vec<Unit>,
    encode: Linear,
    decode: Linear,
    decoder: Vec<Unit>,
    output: Conv2d,
}

impl Autoencoder {
    fn new([image_channels, height, width]: [usize; 3], channels: usize, features: usize, device: &Device) -> Self {
        let deep = 2 * channels;
        let elements = deep * (height / 8) * (width / 8);
        Self {
            encoder: [[image_channels, channels], [channels, deep], [deep, deep]]
                .map(|channels| Unit::new(channels, HALVE, device))
                .into(),
            encode: linear(elements, features, true, device),
            decode: linear(features, elements, true, device),
            decoder: [[deep, deep], [deep, channels]]
                .map(|channels| Unit::new(channels, ConvSpec::same(3), device))
                .into(),
            output: Conv2d::same([channels, image_channels], 3, device),
        }
    }

    fn encode(&self, images: Tensor<4>) -> Tensor<2> {
        let map = self.encoder.iter().fold(images, |x, unit| unit.forward(x));
        generic(&self.encode, map.flatten(1, 3))
    }

    fn decode(&self, features: Tensor<2>, [height, width]: [usize; 2]) -> Tensor<4> {
        let x = generic(&self.decode, features);
        let [batch, elements] = x.dims();
        let [height, width] = [height / 8, width / 8];
        let map = x.reshape([batch, elements / (height * width), height, width]);
        let map = self.decoder.iter().fold(map, |x, unit| unit.forward(double(x)));
        self.output.forward(double(map))
    }
}

/// Doubles the size of a map by repeating pixels.
fn double(x: Tensor<4>) -> Tensor<4> {
    let [_, _, height, width] = x.dims();
    let options = InterpolateOptions::new(InterpolateMode::Nearest).with_output_size([2 * height, 2 * width]);
    interpolate(x, options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::FeatureStats;
    use crate::rng::Rng;

    const SIZE: [usize; 2] = [16, 32];

    fn config(network: JudgeNetwork) -> JudgeConfig {
        JudgeConfig { image_channels: 1, image_size: SIZE, network }
    }

    fn all() -> Vec<JudgeConfig> {
        vec![
            config(JudgeNetwork::Convolutional { classes: 3, channels: [32, 64, 96], blocks: 2 }),
            config(JudgeNetwork::Perceptron { classes: 3, width: 40, features: 12 }),
            config(JudgeNetwork::Random { channels: 5 }),
            config(JudgeNetwork::Components { features: 7 }),
            config(JudgeNetwork::Autoencoder { channels: 32, features: 9 }),
        ]
    }

    fn pixels(batch: usize) -> Vec<f32> {
        let mut rng = Rng::new(1, "images", 0);
        (0..batch * 512).map(|_| rng.uniform() as f32 * 2.0 - 1.0).collect()
    }

    fn images(batch: usize) -> Tensor<4> {
        Tensor::from_data(TensorData::new(pixels(batch), [batch, 1, SIZE[0], SIZE[1]]), &Device::default())
    }

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().try_into_vec().expect("f32")
    }

    #[test]
    fn shapes_and_independence_of_the_batch() {
        for config in all() {
            let name = config.network.name();
            let judge = config.init(3, &Device::default()).expect("valid");
            let features = judge.features(images(3)).expect("right shape");
            assert_eq!(features.dims(), [3, config.network.features()], "features of {name}");
            let logits = judge.logits(features.clone()).map(|logits| logits.dims());
            assert_eq!(logits, (config.network.classes() > 0).then_some([3, 3]), "logits of {name}");
            if let Some(images) = judge.reconstruct(features.clone()) {
                assert_eq!(images.dims(), [3, 1, SIZE[0], SIZE[1]], "images of {name}");
            }
            let together = values(features);
            for i in 0..3 {
                let alone = values(judge.features(images(3).narrow(0, i, 1)).expect("right shape"));
                for (a, b) in alone.iter().zip(&together[i * alone.len()..]) {
                    assert!((a - b).abs() < 1e-4, "{name}: image {i} alone {a}, in a batch {b}");
                }
            }
            let message = judge.features(ops::swap(images(1), 2, 3)).expect_err("turned").to_string();
            assert!(message.contains("[batch, 1, 16, 32]"), "{message}");
        }
    }

    #[test]
    fn weights_follow_from_the_seed() {
        for config in all().into_iter().filter(|config| !matches!(config.network, JudgeNetwork::Components { .. })) {
            let features = |seed| {
                let judge = config.init(seed, &Device::default()).expect("valid");
                values(judge.features(images(1)).expect("right shape"))
            };
            assert_eq!(features(1), features(1), "same seed");
            assert_ne!(features(1), features(2), "other seed: {}", config.network.name());
        }
    }

    #[test]
    fn components_are_those_of_the_images() {
        // Images that vary along two directions alone, with variances of 4 and 1.
        let [first, second] = [3, 300].map(|at| (0..512).map(|i| f32::from(i == at)).collect::<Vec<f32>>());
        let mut rng = Rng::new(1, "images", 0);
        let mut rows = Vec::new();
        for _ in 0..50 {
            let (a, b) = (2.0 * rng.normal() as f32, rng.normal() as f32);
            rows.extend(first.iter().zip(&second).map(|(x, y)| a * x + b * y + 0.5));
        }
        let mut stats = FeatureStats::new(512);
        stats.push(&rows).expect("finite");
        let config = config(JudgeNetwork::Components { features: 2 });
        let judge = config.fit(&stats, &Device::default()).expect("fits");
        let images: Tensor<4> =
            Tensor::from_data(TensorData::new(rows.clone(), [50, 1, SIZE[0], SIZE[1]]), &Device::default());
        let features = judge.features(images).expect("right shape");
        let variance = |column: usize| {
            let column = values(features.clone().narrow(1, column, 1));
            let mean = column.iter().sum::<f32>() / 50.0;
            column.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 49.0
        };
        assert!(variance(0) > 2.0 * variance(1), "the first direction varies most");
        let back = values(judge.reconstruct(features).expect("linear"));
        for (found, expected) in back.iter().zip(&rows) {
            assert!((found - expected).abs() < 1e-4, "two components are the whole image: {found}, {expected}");
        }
        let other = JudgeConfig { network: JudgeNetwork::Random { channels: 8 }, ..config };
        assert!(other.fit(&stats, &Device::default()).unwrap_err().to_string().contains("random"));
    }

    #[test]
    fn wrong_sizes_are_named() {
        let network = |network| JudgeConfig { network, ..config(JudgeNetwork::Random { channels: 8 }) };
        let random = || config(JudgeNetwork::Random { channels: 8 });
        for (broken, field) in [
            (JudgeConfig { image_channels: 2, ..random() }, "image_channels"),
            (JudgeConfig { image_size: [28, 32], ..random() }, "image_size"),
            (network(JudgeNetwork::Perceptron { classes: 1, width: 8, features: 8 }), "classes"),
            (network(JudgeNetwork::Perceptron { classes: 2, width: 0, features: 8 }), "width"),
            (network(JudgeNetwork::Components { features: 513 }), "features"),
            (network(JudgeNetwork::Autoencoder { channels: 33, features: 8 }), "channels"),
            (network(JudgeNetwork::Convolutional { classes: 3, channels: [32, 32, 40], blocks: 1 }), "channels"),
        ] {
            let message = broken.validate().expect_err("invalid").to_string();
            assert!(message.contains(field), "names {field}: {message}");
        }
    }
}
