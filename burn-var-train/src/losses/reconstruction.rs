//! Terms that compare reconstructions with images.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use burn_var::metrics::Lpips;
use burn_var::weights::StateDict;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The smallest side of which five stages of VGG16 leave something.
pub(crate) const LPIPS_LEAST: usize = 16;

/// Weights of the tokenizer's loss terms; 0 leaves a term out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokenizerLoss {
    /// Mean absolute difference between image and reconstruction.
    pub l1: f64,
    /// Mean squared difference.
    pub l2: f64,
    /// Codebook and commitment loss.
    pub vq: f64,
    /// LPIPS, the distance in the features of VGG16; it needs `lpips_vgg`.
    pub perceptual: f64,
    /// Weights of torchvision's VGG16, `vgg16-397923af.pth`.
    pub lpips_vgg: Option<PathBuf>,
    /// LPIPS's own weights for VGG16, if not the published ones, in the layout of `weights/v0.1/vgg.pth` of its authors'
    /// package.
    pub lpips_lin: Option<PathBuf>,
}

impl Default for TokenizerLoss {
    fn default() -> Self {
        Self { l1: 0.0, l2: 1.0, vq: 1.0, perceptual: 0.0, lpips_vgg: None, lpips_lin: None }
    }
}

impl TokenizerLoss {
    /// Checks the weights for images `[channels, height, width]`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self, image: [usize; 3]) -> Result<()> {
        for (name, weight) in
            [("loss.l1", self.l1), ("loss.l2", self.l2), ("loss.vq", self.vq), ("loss.perceptual", self.perceptual)]
        {
            if !(weight.is_finite() && weight >= 0.0) {
                return Err(Error::config(name, weight, "0 or more"));
            }
        }
        if self.l1 + self.l2 == 0.0 {
            return Err(Error::config(
                "loss.l2",
                self.l2,
                "a positive weight of `l1` or `l2`: nothing else ties reconstructions to images",
            ));
        }
        let [channels, height, width] = image;
        if self.perceptual > 0.0 && !([1, 3].contains(&channels) && height.min(width) >= LPIPS_LEAST) {
            let expected = format!(
                "0 for these images: LPIPS takes 1 or 3 channels of at least {LPIPS_LEAST}x{LPIPS_LEAST}, \
                 they have {channels} of {height}x{width}"
            );
            return Err(Error::config("loss.perceptual", self.perceptual, expected));
        }
        if self.perceptual > 0.0 && self.lpips_vgg.is_none() {
            let expected = format!(
                "the path of torchvision's VGG16, `vgg16-397923af.pth`, since `loss.perceptual` is {}",
                self.perceptual
            );
            return Err(Error::config("loss.lpips_vgg", "absent", expected));
        }
        Ok(())
    }
}

/// Reads VGG16 and LPIPS's own weights for it, the published ones if `lin` is `None`.
pub(crate) fn load_lpips(vgg: &Path, lin: Option<&Path>, device: &Device) -> Result<Lpips> {
    let lin = lin.map_or_else(Lpips::published_heads, StateDict::open)?;
    Ok(Lpips::load(&StateDict::open(vgg)?, &lin, device)?)
}

/// The weighted terms.
pub(crate) struct Criterion {
    pub(crate) weights: TokenizerLoss,
    pub(crate) lpips: Option<Lpips>,
}

impl Criterion {
    /// Reads the weights of LPIPS onto an autodiff device, if that term has a weight.
    pub(crate) fn new(weights: TokenizerLoss, device: &Device) -> Result<Self> {
        let lpips = match &weights.lpips_vgg {
            Some(vgg) if weights.perceptual > 0.0 => Some(load_lpips(vgg, weights.lpips_lin.as_deref(), device)?),
            _ => None,
        };
        Ok(Self { weights, lpips })
    }

    /// Compares reconstructions of any size with images as [`Criterion::distance`] does. Images that are too small for LPIPS
    /// are compared without it.
    pub(crate) fn distance_at_any_size(&self, reconstruction: Tensor<4>, images: Tensor<4>) -> Result<Distance> {
        let [_, _, height, width] = images.dims();
        self.compare(reconstruction, images, height.min(width) >= LPIPS_LEAST)
    }

    /// Compares reconstructions with images, on the graph of the reconstructions.
    pub(crate) fn distance(&self, reconstruction: Tensor<4>, images: Tensor<4>) -> Result<Distance> {
        self.compare(reconstruction, images, true)
    }

    fn compare(&self, reconstruction: Tensor<4>, images: Tensor<4>, perceptual: bool) -> Result<Distance> {
        let difference = reconstruction.clone() - images.clone();
        let l2 = difference.clone().square().mean();
        let mut distance = Distance { total: l2.clone() * self.weights.l2, l2, l1: None, perceptual: None };
        if self.weights.l1 > 0.0 {
            let l1 = difference.abs().mean();
            distance.total = distance.total + l1.clone() * self.weights.l1;
            distance.l1 = Some(l1);
        }
        if let Some(lpips) = self.lpips.as_ref().filter(|_| perceptual) {
            let perceptual = lpips.distance(reconstruction, images)?.mean();
            distance.total = distance.total + perceptual.clone() * self.weights.perceptual;
            distance.perceptual = Some(perceptual);
        }
        Ok(distance)
    }
}

impl Distance {
    /// Takes the terms off the graph.
    pub(crate) fn inner(self) -> Self {
        let inner = |value: Tensor<1>| value.inner();
        Self {
            l2: inner(self.l2),
            l1: self.l1.map(inner),
            perceptual: self.perceptual.map(inner),
            total: inner(self.total),
        }
    }
}

/// The terms that compare images, and their weighted sum.
#[derive(Clone)]
pub(crate) struct Distance {
    pub(crate) l2: Tensor<1>,
    pub(crate) l1: Option<Tensor<1>>,
    pub(crate) perceptual: Option<Tensor<1>>,
    pub(crate) total: Tensor<1>,
}
