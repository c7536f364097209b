//! The reward of VA-pi: the likeness of decoded samples to the image that they stand for.

use std::path::PathBuf;

use burn::module::Module;
use burn::tensor::{Bool, Device, Int, Tensor};
use burn_var::metrics::Lpips;
use burn_var::models::classifier::Classifier;
use burn_var::weights::{Pretrained, StateDict};
use serde::{Deserialize, Serialize};

use crate::losses::{LPIPS_LEAST, load_lpips};
use crate::{Error, Result};

/// Error of pixels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PixelError {
    /// Mean of the squared differences.
    #[default]
    L2,
    /// Mean of the absolute differences.
    L1,
}

impl PixelError {
    /// Computes the error of each image, `[images]`, over all channels and pixels. Images are about `[-1, 1]`, not clamped:
    /// pixels out of range count.
    pub fn of(self, decoded: Tensor<4>, images: Tensor<4>) -> Tensor<1> {
        let difference = (decoded - images).flatten::<2>(1, 3);
        let each = match self {
            Self::L2 => difference.square(),
            Self::L1 => difference.abs(),
        };
        each.mean_dim(1).squeeze_dim(1)
    }
}

/// Images that samples are compared with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RewardTarget {
    /// The images themselves, as released.
    #[default]
    Image,
    /// Their reconstructions by the tokenizer: the true tokens then have the highest reward, 0.
    Reconstruction,
}

/// Terms of the reward, which is minus their weighted sum. The default is that of the authors' scripts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardConfig {
    /// Error of pixels: `"l2"` or `"l1"`.
    pub error: PixelError,
    /// Weight of the error of pixels.
    pub pixels: f64,
    /// Weight of LPIPS; it needs `lpips_vgg`.
    pub lpips: f64,
    /// Weights of torchvision's VGG16, `vgg16-397923af.pth`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lpips_vgg: Option<PathBuf>,
    /// LPIPS's own weights for VGG16, if not the published ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lpips_lin: Option<PathBuf>,
    /// Weight of the embedding term: 1 minus the cosine between all code vectors of a sample and the latent of the image
    /// before it is quantized, each as one vector.
    pub embedding: f64,
    /// Weight of the feature term: 1 minus the cosine between the features of a sample and of the image. It needs
    /// `classifier`. An extension, for images that VGG16 knows nothing about.
    pub features: f64,
    /// File of the classifier that the features are of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classifier: Option<PathBuf>,
    /// Clamps decoded samples to `[-1, 1]` first. Pixels out of range otherwise count, except for VAR, whose tokenizer clamps.
    pub clamp: bool,
    /// The images that samples are compared with: `"image"` or `"reconstruction"`.
    pub target: RewardTarget,
}

impl Default for RewardConfig {
    fn default() -> Self {
        Self {
            error: PixelError::L2,
            pixels: 1.0,
            lpips: 1.0,
            lpips_vgg: None,
            lpips_lin: None,
            embedding: 0.0,
            features: 0.0,
            classifier: None,
            clamp: false,
            target: RewardTarget::Image,
        }
    }
}

impl RewardConfig {
    /// Checks the terms for images `[channels, height, width]`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self, [channels, height, width]: [usize; 3]) -> Result<()> {
        let weights = [
            ("pixels", self.pixels),
            ("lpips", self.lpips),
            ("embedding", self.embedding),
            ("features", self.features),
        ];
        for (name, weight) in weights {
            if !(weight.is_finite() && weight >= 0.0) {
                return Err(Error::config(name, weight, "a number of at least 0"));
            }
        }
        if weights.iter().all(|(_, weight)| *weight == 0.0) {
            return Err(Error::config("pixels", self.pixels, "a positive weight of a term: all are 0"));
        }
        if self.lpips > 0.0 && !([1, 3].contains(&channels) && height.min(width) >= LPIPS_LEAST) {
            let expected = format!(
                "0 for these images: LPIPS takes 1 or 3 channels of at least {LPIPS_LEAST}x{LPIPS_LEAST}, they have \
                 {channels} of {height}x{width}"
            );
            return Err(Error::config("lpips", self.lpips, expected));
        }
        if self.lpips > 0.0 && self.lpips_vgg.is_none() {
            let expected = format!(
                "the path of torchvision's VGG16, `vgg16-397923af.pth`, since `lpips` is {}; `lpips = 0` leaves it out",
                self.lpips
            );
            return Err(Error::config("lpips_vgg", "absent", expected));
        }
        if self.features > 0.0 && self.classifier.is_none() {
            let expected = format!("the path of a classifier, since `features` is {}", self.features);
            return Err(Error::config("classifier", "absent", expected));
        }
        Ok(())
    }
}

/// The networks of the reward, frozen.
#[derive(Debug)]
pub struct Rewards {
    config: RewardConfig,
    lpips: Option<Lpips>,
    classifier: Option<Classifier>,
}

/// Images that samples are compared with, one per sample, and what the terms need of them.
#[derive(Debug, Clone)]
pub struct Targets {
    /// Images, `[samples, channels, height, width]`.
    pub images: Tensor<4>,
    /// Latents before they are quantized; needed for the embedding term alone.
    pub latents: Option<Tensor<4>>,
    /// Features; needed for the feature term alone.
    pub features: Option<Tensor<2>>,
}

impl Targets {
    /// Returns the targets at the given places.
    pub(super) fn select(&self, rows: &Tensor<1, Int>) -> Self {
        Self {
            images: self.images.clone().select(0, rows.clone()),
            latents: self.latents.clone().map(|latents| latents.select(0, rows.clone())),
            features: self.features.clone().map(|features| features.select(0, rows.clone())),
        }
    }

    /// Returns these as constants on the autodiff device.
    pub(super) fn on_graph(self) -> Self {
        Self {
            images: Tensor::from_inner(self.images),
            latents: self.latents.map(Tensor::from_inner),
            features: self.features.map(Tensor::from_inner),
        }
    }
}

/// Terms of the reward before they are weighted, `[samples]` each. Terms without a weight are left out, except for pixels.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Error of pixels.
    pub pixels: Tensor<1>,
    /// LPIPS.
    pub lpips: Option<Tensor<1>>,
    /// 1 minus the cosine to the latent.
    pub embedding: Option<Tensor<1>>,
    /// 1 minus the cosine of the features.
    pub features: Option<Tensor<1>>,
}

impl Terms {
    /// Joins the terms of several pieces; `None` if there are none.
    pub(super) fn join(pieces: Vec<Self>) -> Option<Self> {
        let cat = |of: fn(&Self) -> Option<&Tensor<1>>| -> Option<Tensor<1>> {
            let parts: Vec<_> = pieces.iter().filter_map(of).cloned().collect();
            (!parts.is_empty()).then(|| Tensor::cat(parts, 0))
        };
        Some(Self {
            pixels: cat(|terms| Some(&terms.pixels))?,
            lpips: cat(|terms| terms.lpips.as_ref()),
            embedding: cat(|terms| terms.embedding.as_ref()),
            features: cat(|terms| terms.features.as_ref()),
        })
    }

    /// Returns each term with its name.
    pub(super) fn named(&self) -> Vec<(&'static str, &Tensor<1>)> {
        let others = [("lpips", &self.lpips), ("embedding", &self.embedding), ("features", &self.features)];
        let others = others.into_iter().filter_map(|(name, term)| Some((name, term.as_ref()?)));
        std::iter::once(("pixels", &self.pixels)).chain(others).collect()
    }
}

impl Rewards {
    /// Reads the networks of the terms that have a weight, onto `device`, which has no autodiff.
    ///
    /// # Errors
    /// Files that cannot be read or hold another model.
    pub fn load(config: RewardConfig, device: &Device) -> Result<Self> {
        let lpips = match &config.lpips_vgg {
            Some(vgg) if config.lpips > 0.0 => Some(load_lpips(vgg, config.lpips_lin.as_deref(), device)?),
            _ => None,
        };
        let classifier = match &config.classifier {
            Some(file) if config.features > 0.0 => Some(Classifier::load(&StateDict::open(file)?, device)?),
            _ => None,
        };
        Ok(Self { config, lpips, classifier })
    }

    /// Creates the reward from networks that are loaded already.
    ///
    /// # Errors
    /// [`Error::Config`] naming a term that has a weight, but no network.
    pub fn new(config: RewardConfig, lpips: Option<Lpips>, classifier: Option<Classifier>) -> Result<Self> {
        for (name, weight, missing) in
            [("lpips", config.lpips, lpips.is_none()), ("features", config.features, classifier.is_none())]
        {
            if weight > 0.0 && missing {
                return Err(Error::config(name, weight, "0 without a network"));
            }
        }
        Ok(Self { config, lpips, classifier })
    }

    /// Returns the networks on the autodiff device, where they let gradients pass to samples.
    pub(super) fn on_graph(&self) -> Self {
        Self {
            config: self.config.clone(),
            lpips: self.lpips.clone().map(|lpips| lpips.train().no_grad()),
            classifier: self.classifier.clone().map(|classifier| classifier.train().no_grad()),
        }
    }

    /// Returns the settings.
    pub fn config(&self) -> &RewardConfig {
        &self.config
    }

    /// Checks that the classifier takes images `[channels, height, width]`.
    pub(super) fn check(&self, image: [usize; 3]) -> Result<()> {
        match self.classifier.as_ref().map(|classifier| classifier.config().image_shape()) {
            Some(shape) if shape != image => {
                Err(Error::config("images of the classifier", format!("{shape:?}"), format!("{image:?}, the run's")))
            }
            _ => Ok(()),
        }
    }

    /// Returns the targets of images, whose `latents` the embedding term needs.
    ///
    /// # Errors
    /// The errors of [`Classifier::features`].
    pub fn targets(&self, images: Tensor<4>, latents: impl FnOnce() -> Result<Tensor<4>>) -> Result<Targets> {
        let latents = (self.config.embedding > 0.0).then(latents).transpose()?;
        let features = self.classifier.as_ref().map(|classifier| classifier.features(images.clone())).transpose()?;
        Ok(Targets { images, latents, features })
    }

    /// Computes the terms of samples: decoded images, and the maps of code vectors that they are decoded from.
    ///
    /// # Errors
    /// The errors of [`Lpips::distance`] and [`Classifier::features`].
    pub fn terms(&self, decoded: Tensor<4>, canvas: Tensor<4>, targets: Targets) -> Result<Terms> {
        let decoded = if self.config.clamp { decoded.clamp(-1.0, 1.0) } else { decoded };
        let apart = |a: Tensor<2>, b: Tensor<2>| {
            let [a, b] = [a, b].map(unit_length);
            1.0 - (a * b).sum_dim(1).squeeze_dim::<1>(1)
        };
        let lpips = self.lpips.as_ref().map(|lpips| lpips.distance(decoded.clone(), targets.images.clone()));
        let features = match (&self.classifier, targets.features) {
            (Some(classifier), Some(target)) => Some(apart(classifier.features(decoded.clone())?, target)),
            _ => None,
        };
        Ok(Terms {
            pixels: self.config.error.of(decoded, targets.images),
            lpips: lpips.transpose()?,
            embedding: targets.latents.map(|latents| apart(canvas.flatten::<2>(1, 3), latents.flatten::<2>(1, 3))),
            features,
        })
    }

    /// Computes the weighted sum of the terms, `[samples]`; the reward is minus this.
    pub fn weighted(&self, terms: &Terms) -> Tensor<1> {
        let RewardConfig { pixels, lpips, embedding, features, .. } = self.config;
        let others = [(lpips, &terms.lpips), (embedding, &terms.embedding), (features, &terms.features)];
        let others = others.into_iter().filter_map(|(weight, term)| Some(term.clone()? * weight));
        others.fold(terms.pixels.clone() * pixels, |sum, term| sum + term)
    }
}

/// Divides rows by their length.
fn unit_length(rows: Tensor<2>) -> Tensor<2> {
    let length = rows.clone().square().sum_dim(1).sqrt().clamp_min(1e-12);
    rows / length
}

/// Replaces tokens of the context by random ones where `replaced` is true, `[batch, tokens]` each. The targets of the
/// cross-entropy stay the true tokens.
pub fn noisy_context(tokens: Tensor<2, Int>, replaced: Tensor<2, Bool>, random: Tensor<2, Int>) -> Tensor<2, Int> {
    tokens.mask_where(replaced, random)
}
