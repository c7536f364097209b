//! LPIPS, a perceptual distance between two images in the feature space of VGG16.
//!
//! Zhang et al. 2018, equation 1; version 0.1 with the VGG trunk, checked against the authors' package. It is a metric
//! and, being differentiable, a loss.

use burn::module::{Module, Param};
use burn::tensor::module::max_pool2d;
use burn::tensor::ops::MaxPoolOptions;
use burn::tensor::{Device, Tensor, TensorData};

use crate::nn::{Conv2d, zeros};
use crate::ops;
use crate::weights::{KeyMap, LoadOptions, StateDict, load};
use crate::{Error, Result};

/// Output channels of VGG16's convolutions, 3x3 each, by stage; the map is halved between stages.
const STAGES: [&[usize]; 5] = [&[64; 2], &[128; 2], &[256; 3], &[512; 3], &[512; 3]];

/// LPIPS's mean and standard deviation of ImageNet, for images in `[-1, 1]`.
const SHIFT: [f32; 3] = [-0.030, -0.088, -0.188];
const SCALE: [f32; 3] = [0.458, 0.448, 0.450];

/// Added to the norm of a feature vector before dividing by it.
const EPSILON: f64 = 1e-10;

/// Classifier of torchvision's VGG16, which LPIPS does not use.
const CLASSIFIER: [&str; 6] = [
    "classifier.0.weight",
    "classifier.0.bias",
    "classifier.3.weight",
    "classifier.3.bias",
    "classifier.6.weight",
    "classifier.6.bias",
];

/// Perceptual distance with frozen weights; gradients flow to the images if it is loaded onto an autodiff device.
#[derive(Module, Debug)]
pub struct Lpips {
    vgg: Vgg16,
    heads: Heads,
}

/// The convolutions of VGG16, without its classifier.
#[derive(Module, Debug)]
struct Vgg16 {
    features: Vec<Conv2d>,
}

/// One weight per channel, by stage.
#[derive(Module, Debug)]
struct Heads {
    /// `[1, channels, 1, 1]`.
    lin: Vec<Param<Tensor<4>>>,
}

impl Lpips {
    /// Loads torchvision's VGG16 (`vgg16-397923af.pth`: `features.0.weight`, ...) and LPIPS's own weights for it
    /// ([`Lpips::published_heads`], or another file like `weights/v0.1/vgg.pth` of the authors' package:
    /// `lin0.model.1.weight`, ...).
    ///
    /// # Errors
    /// [`Error::Weights`] listing all that is missing, unused or mis-shaped in either file.
    pub fn load(vgg: &StateDict, heads: &StateDict, device: &Device) -> Result<Self> {
        let vgg_map = KeyMap::new("torchvision VGG16", &CLASSIFIER, torchvision_key);
        let heads_map = KeyMap::new("LPIPS 0.1", &[], |path| format!("{}.model.1.weight", path.replace('.', "")));
        let (vgg, _) = load(Vgg16::new(device), vgg, &vgg_map, LoadOptions::default())?;
        let (heads, _) = load(Heads::new(device), heads, &heads_map, LoadOptions::default())?;
        Ok(Self { vgg, heads }.freeze())
    }

    /// Returns LPIPS's own weights for VGG16, version 0.1, as published by the authors (BSD-2, `LICENSE-lpips.txt`):
    /// the `heads` of [`Lpips::load`].
    ///
    /// # Errors
    /// Does not fail unless the embedded file is damaged.
    pub fn published_heads() -> Result<StateDict> {
        const FILE: &str = "lpips_vgg_v0.1_lin.safetensors";
        StateDict::from_safetensors(FILE, include_bytes!("lpips_vgg_v0.1_lin.safetensors").as_slice())
    }

    /// Computes the distance of each pair of images, `[batch]`: 0 for identical images, around 0.7 for unrelated ones.
    ///
    /// # Shapes
    /// - `a`, `b`: `[batch, channels, height, width]` in `[-1, 1]`; 3 channels, or 1, which is repeated to 3; sides of
    ///   at least 16 pixels
    ///
    /// # Errors
    /// [`Error::Shape`] if the images have another shape, or differ in shape.
    pub fn distance(&self, a: Tensor<4>, b: Tensor<4>) -> Result<Tensor<1>> {
        Ok(self.stages(a, b)?.sum_dim(1).squeeze_dim(1))
    }

    /// Computes the contribution of each of the five stages (`relu1_2` to `relu5_3`) to [`Lpips::distance`], `[batch,
    /// 5]`.
    ///
    /// # Errors
    /// The errors of [`Lpips::distance`].
    pub fn stages(&self, a: Tensor<4>, b: Tensor<4>) -> Result<Tensor<2>> {
        let batch = a.dims()[0];
        if a.dims() != b.dims() {
            return Err(Error::shape("second image", format!("{:?}, as the first", a.dims()), b.dims()));
        }
        let stages = self.vgg.stages(Tensor::cat(vec![a, b], 0))?;
        let shares = stages.into_iter().zip(&self.heads.lin).map(|(features, head)| {
            let unit = unit_length(features);
            let gap = unit.clone().narrow(0, 0, batch) - unit.narrow(0, batch, batch);
            (gap.square() * head.val()).sum_dim(1).mean_dim(2).mean_dim(3).flatten::<2>(1, 3) // [batch, 1]
        });
        Ok(Tensor::cat(shares.collect(), 1))
    }

    /// Computes the features of VGG16 after each stage's last ReLU, not normalized: `[batch, channels, height, width]`,
    /// halved from stage to stage.
    ///
    /// # Errors
    /// The errors of [`Lpips::distance`].
    pub fn features(&self, images: Tensor<4>) -> Result<Vec<Tensor<4>>> {
        self.vgg.stages(images)
    }
}

impl Vgg16 {
    fn new(device: &Device) -> Self {
        let outputs = STAGES.into_iter().flatten();
        let inputs = [3].iter().chain(STAGES.into_iter().flatten());
        Self { features: inputs.zip(outputs).map(|(i, o)| Conv2d::same([*i, *o], 3, device)).collect() }
    }

    fn stages(&self, images: Tensor<4>) -> Result<Vec<Tensor<4>>> {
        let [batch, channels, height, width] = images.dims();
        let least = 1 << (STAGES.len() - 1);
        if ![1, 3].contains(&channels) || height < least || width < least {
            let expected = format!("[batch, 1 or 3 channels, at least {least}, at least {least}]");
            return Err(Error::shape("image", expected, [batch, channels, height, width]));
        }
        let constant =
            |values: [f32; 3]| Tensor::<4>::from_data(TensorData::new(values.to_vec(), [1, 3, 1, 1]), &images.device());
        let images = images.clone().expand([batch, 3, height, width]);
        let mut x = (images - constant(SHIFT)) / constant(SCALE);
        let mut convs = self.features.iter();
        let mut stages = Vec::with_capacity(STAGES.len());
        for (i, stage) in STAGES.iter().enumerate() {
            if i > 0 {
                x = max_pool2d(x, MaxPoolOptions::new([2, 2]));
            }
            x = convs.by_ref().take(stage.len()).fold(x, |x, conv| ops::relu(conv.forward(x)));
            stages.push(x.clone());
        }
        Ok(stages)
    }
}

impl Heads {
    fn new(device: &Device) -> Self {
        let channels = STAGES.iter().filter_map(|stage| stage.last());
        Self { lin: channels.map(|channels| zeros([1, *channels, 1, 1], device)).collect() }
    }
}

/// Maps `features.3.weight`, the fourth convolution, to `features.7.weight`: torchvision counts ReLUs and poolings too.
fn torchvision_key(path: &str) -> String {
    let mut parts: Vec<String> = path.split('.').map(str::to_owned).collect();
    let conv: Option<usize> = parts.get(1).and_then(|part| part.parse().ok());
    if let Some(conv) = conv {
        let ends = STAGES.iter().scan(0, |end, stage| {
            *end += stage.len();
            Some(*end)
        });
        let poolings = ends.filter(|end| *end <= conv).count();
        parts[1] = (2 * conv + poolings).to_string();
    }
    parts.join(".")
}

/// Divides the feature vector of each position by its norm.
fn unit_length(features: Tensor<4>) -> Tensor<4> {
    // The square of EPSILON under the root is far below rounding, and keeps the gradient finite where all features are
    // zero.
    let length = (features.clone().square().sum_dim(1) + EPSILON * EPSILON).sqrt();
    features / (length + EPSILON)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn generated(name: &str, tensors: Vec<(String, Vec<usize>)>) -> StateDict {
        let values = |key: &str, shape: &[usize]| {
            let mut rng = Rng::new(3, key, 0);
            let fan_in: usize = shape[1..].iter().product();
            // Heads are never negative. ReLU halves the variance, which the 6 makes up for.
            let bound = (6.0 / fan_in as f64).sqrt();
            let range = if key.starts_with("lin") { [0.0, 1.0] } else { [-bound, bound] };
            let draw = |_| (range[0] + (range[1] - range[0]) * rng.uniform()) as f32;
            (0..shape.iter().product()).map(draw).collect()
        };
        StateDict::generated(name, tensors, values).expect("tensors")
    }

    fn lpips(device: &Device) -> Lpips {
        let places = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28];
        let widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512];
        let mut vgg: Vec<(String, Vec<usize>)> = vec![("classifier.6.bias".into(), vec![1000])];
        for (place, io) in places.iter().zip(widths.windows(2)) {
            vgg.push((format!("features.{place}.weight"), vec![io[1], io[0], 3, 3]));
            vgg.push((format!("features.{place}.bias"), vec![io[1]]));
        }
        let heads = [64, 128, 256, 512, 512].iter().enumerate();
        let heads = heads.map(|(i, c)| (format!("lin{i}.model.1.weight"), vec![1, *c, 1, 1])).collect();
        Lpips::load(&generated("vgg", vgg), &generated("heads", heads), device).expect("all weights are there")
    }

    fn images(channels: usize, purpose: &str, device: &Device) -> Tensor<4> {
        let mut rng = Rng::new(1, purpose, 0);
        let values: Vec<f32> = (0..2 * channels * 19 * 17).map(|_| rng.uniform() as f32 * 2.0 - 1.0).collect();
        Tensor::from_data(TensorData::new(values, [2, channels, 19, 17]), device)
    }

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().try_into_vec().expect("f32")
    }

    #[test]
    fn is_symmetric_and_zero_for_equal_images() {
        let device = Device::default();
        let lpips = lpips(&device);
        let (a, b) = (images(3, "a", &device), images(3, "b", &device));
        let there = values(lpips.distance(a.clone(), b.clone()).expect("same shape"));
        let back = values(lpips.distance(b, a.clone()).expect("same shape"));
        for (there, back) in there.iter().zip(&back) {
            assert!(*there > 0.01, "different images are apart: {there}");
            assert!((there - back).abs() < 1e-5 * there, "exchanged: {there} and {back}");
        }
        assert_eq!(values(lpips.distance(a.clone(), a).expect("same shape")), [0.0; 2], "equal images");
    }

    #[test]
    fn gray_images_count_as_three_equal_channels() {
        let device = Device::default();
        let lpips = lpips(&device);
        let (a, b) = (images(1, "a", &device), images(1, "b", &device));
        let gray = values(lpips.distance(a.clone(), b.clone()).expect("same shape"));
        let color = values(lpips.distance(a.repeat_dim(1, 3), b.repeat_dim(1, 3)).expect("same shape"));
        assert_eq!(gray, color, "one channel and three copies of it");
    }

    #[test]
    fn gradients_reach_the_images_and_no_weight() {
        let device = Device::default().autodiff();
        let lpips = lpips(&device);
        // A plain square root has no gradient at feature vectors of zero length, which equal images have.
        let a = images(3, "a", &device).require_grad();
        let loss = lpips.distance(a.clone(), images(3, "b", &device)).expect("same shape").sum();
        let grads = loss.backward();
        let grad = values(a.grad(&grads).expect("a gradient for the images"));
        assert!(grad.iter().all(|g| g.is_finite()) && grad.iter().any(|g| *g != 0.0), "finite, and not all zero");
        let weight = lpips.vgg.features[0].weight.val();
        assert!(weight.grad(&grads).is_none(), "the weights are frozen");
    }

    #[test]
    fn the_published_heads_fit_and_are_never_negative() {
        let dict = Lpips::published_heads().expect("part of the library");
        let map = KeyMap::new("LPIPS 0.1", &[], |path| format!("{}.model.1.weight", path.replace('.', "")));
        let (heads, _) = load(Heads::new(&Device::default()), &dict, &map, LoadOptions::default()).expect("all there");
        for head in &heads.lin {
            let values = values(head.val());
            assert!(values.iter().all(|value| *value >= 0.0), "a distance");
            assert!(values.iter().sum::<f32>() > 0.1, "{} weights", values.len());
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_named() {
        let device = Device::default();
        let lpips = lpips(&device);
        let a = images(3, "a", &device);
        assert!(lpips.distance(a.clone(), images(1, "a", &device)).is_err(), "different channels");
        let small = a.narrow(2, 0, 15);
        let message = lpips.distance(small.clone(), small).expect_err("15 pixels").to_string();
        assert!(message.contains("at least 16"), "{message}");
    }
}
