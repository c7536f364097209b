//! The terms of a tokenizer's loss, and their common backward pass.

use std::path::PathBuf;

use burn::tensor::{Device, Gradients, Tensor};
use burn_var::metrics::Lpips;
use burn_var::nn::Conv2d;
use burn_var::pretrained::StateDict;
use burn_var::tokenizer::{Quantized, VqVae};
use serde::{Deserialize, Serialize};

use super::adversary::Adversary;
use crate::run::Metrics;
use crate::{Error, Result};

/// The smallest side that five stages of VGG16 leave something of.
const LPIPS_LEAST: usize = 16;

/// Weights of the tokenizer's loss terms; 0 leaves a term out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokenizerLoss {
    /// Mean absolute difference between picture and reconstruction.
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
    /// Refuses what no run on pictures `[channels, height, width]` can mean.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self, picture: [usize; 3]) -> Result<()> {
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
                "a positive weight of `l1` or `l2`: nothing else ties reconstructions to pictures",
            ));
        }
        let [channels, height, width] = picture;
        if self.perceptual > 0.0 && !([1, 3].contains(&channels) && height.min(width) >= LPIPS_LEAST) {
            let expected = format!(
                "0 for these pictures: LPIPS takes 1 or 3 channels of at least {LPIPS_LEAST}x{LPIPS_LEAST}, \
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

/// One pass of the tokenizer over pictures, with all that its loss needs, on the graph.
pub(super) struct Pass {
    /// Constants.
    images: Tensor<4>,
    /// The input of the decoder's last convolution.
    trunk: Tensor<4>,
    reconstruction: Tensor<4>,
    pub(super) quantized: Quantized,
}

impl Pass {
    /// Pictures, off the graph, through the tokenizer.
    pub(super) fn new(model: &VqVae, images: Tensor<4>) -> Result<Self> {
        let images = Tensor::from_inner(images);
        let quantized = model.quantize.forward_train(model.encode(images.clone())?, &model.config().patch_nums);
        let features = model.post_quant_conv.forward(quantized.canvas.clone());
        let (trunk, reconstruction) = model.decoder.forward_with_trunk(features);
        Ok(Self { images, trunk, reconstruction, quantized })
    }

    /// Pictures and their reconstructions, off the graph.
    pub(super) fn pictures(&self) -> [Tensor<4>; 2] {
        [self.images.clone().inner(), self.reconstruction.clone().inner()]
    }
}

/// The loss without its adversarial term.
pub(super) struct Criterion {
    weights: TokenizerLoss,
    lpips: Option<Lpips>,
}

impl Criterion {
    /// Reads the perceptual term's weights, onto an autodiff device, if the term counts.
    pub(super) fn new(weights: TokenizerLoss, device: &Device) -> Result<Self> {
        let lpips = match &weights.lpips_vgg {
            Some(vgg) if weights.perceptual > 0.0 => {
                let lin = weights.lpips_lin.as_ref().map_or_else(Lpips::published_heads, StateDict::open)?;
                Some(Lpips::load(&StateDict::open(vgg)?, &lin, device)?)
            }
            _ => None,
        };
        Ok(Self { weights, lpips })
    }

    /// How far reconstructions are from pictures, on the graph of the reconstructions.
    fn distance(&self, reconstruction: Tensor<4>, images: Tensor<4>) -> Result<Distance> {
        let difference = reconstruction.clone() - images.clone();
        let l2 = difference.clone().square().mean();
        let mut distance = Distance { total: l2.clone() * self.weights.l2, l2, l1: None, perceptual: None };
        if self.weights.l1 > 0.0 {
            let l1 = difference.abs().mean();
            distance.total = distance.total + l1.clone() * self.weights.l1;
            distance.l1 = Some(l1);
        }
        if let Some(lpips) = &self.lpips {
            let perceptual = lpips.distance(reconstruction, images)?.mean();
            distance.total = distance.total + perceptual.clone() * self.weights.perceptual;
            distance.perceptual = Some(perceptual);
        }
        Ok(distance)
    }

    /// The gradients of the whole loss, and its terms; `last` is the decoder's last convolution.
    pub(super) fn backward(
        &self,
        pass: &Pass,
        adversary: Option<&Adversary>,
        last: &Conv2d,
    ) -> Result<(Gradients, Terms)> {
        let Some(adversary) = adversary else {
            let distance = self.distance(pass.reconstruction.clone(), pass.images.clone())?;
            let loss = pass.quantized.loss.clone() * self.weights.vq + distance.total.clone();
            return Ok((loss.backward(), Terms::new(&pass.quantized, distance, loss.inner(), None)));
        };
        // Burn's graphs can be walked back once, and the adaptive weight needs each side's gradient by itself: both
        // walks end at the reconstruction, and one more leads what they add up to through the tokenizer.
        let [_, made] = pass.pictures();
        let leaf = Tensor::from_inner(made.clone()).require_grad();
        let distance = self.distance(leaf.clone(), pass.images.clone())?;
        let pull = gradient(&leaf, distance.total.clone());
        let (opposition, push) = adversary.oppose(made);
        let weight = adversary.weight(last, &pass.trunk.clone().inner(), &pull, &push);
        let along = pull + push * weight.clone().reshape([1, 1, 1, 1]);
        let vq = pass.quantized.loss.clone() * self.weights.vq;
        let loss = vq.clone().inner() + distance.total.clone().inner() + opposition.clone() * weight.clone();
        let grads = (vq + (pass.reconstruction.clone() * Tensor::from_inner(along)).sum()).backward();
        Ok((grads, Terms::new(&pass.quantized, distance, loss, Some([opposition, weight]))))
    }
}

/// The terms that compare pictures, and their weighted sum.
struct Distance {
    l2: Tensor<1>,
    l1: Option<Tensor<1>>,
    perceptual: Option<Tensor<1>>,
    total: Tensor<1>,
}

/// What a step's loss was made of, off the graph; not read from the device before it is asked for.
pub(super) struct Terms(Vec<(&'static str, Tensor<1>)>);

impl Terms {
    fn new(quantized: &Quantized, distance: Distance, loss: Tensor<1>, gan: Option<[Tensor<1>; 2]>) -> Self {
        let inner = |(name, value): (&'static str, Option<Tensor<1>>)| Some((name, value?.inner()));
        let own = [("l2", Some(distance.l2)), ("l1", distance.l1), ("perceptual", distance.perceptual)];
        let mut terms = vec![("loss", loss)];
        terms.extend(own.into_iter().chain([("vq", Some(quantized.loss.clone()))]).filter_map(inner));
        terms.extend(gan.into_iter().flat_map(|gan| Self::GAN.into_iter().zip(gan)));
        Self(terms)
    }

    /// The adversarial term before it is weighted, and its weight.
    const GAN: [&str; 2] = ["g_loss", "gan_weight"];

    /// Each by name, and the mean signal-to-noise ratio.
    pub(super) fn metrics(&self) -> Result<Metrics> {
        let mut metrics = Metrics::new();
        for (name, value) in &self.0 {
            let value = scalar(value)?;
            metrics.push(((*name).into(), value));
            if *name == "l2" {
                // Pictures span 2 units.
                metrics.push(("psnr".into(), 10.0 * (4.0 / value).log10()));
            }
        }
        Ok(metrics)
    }

    /// The reason of an `error` in `step`: the term that is not finite, if there is one.
    pub(super) fn blame(&self, step: u64, error: Error) -> Error {
        // The sum comes first; whatever made it so comes later.
        let culprit = self
            .0
            .iter()
            .rev()
            .find_map(|(name, value)| Some((name, scalar(value).ok()?)).filter(|t| !t.1.is_finite()));
        match culprit {
            None => error,
            Some((name, found)) => burn_var::Error::NonFinite {
                what: format!("the loss term `{name}` at step {step}"),
                found,
                hint: "lower the learning rate, or go on from the last checkpoint with another seed",
            }
            .into(),
        }
    }
}

/// The gradient of `loss` at `leaf`, off the graph.
pub(super) fn gradient<const D: usize>(leaf: &Tensor<D>, loss: Tensor<1>) -> Tensor<D> {
    // There is none if the loss does not depend on it.
    leaf.grad(&loss.backward()).unwrap_or_else(|| leaf.clone().inner().zeros_like())
}

/// Reads one number.
pub(super) fn scalar(value: &Tensor<1>) -> Result<f64> {
    let value = value.clone().try_into_scalar::<f32>().map_err(burn_var::Error::device("read a loss"))?;
    Ok(f64::from(value))
}

#[cfg(test)]
mod tests;
