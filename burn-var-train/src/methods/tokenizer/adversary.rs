//! The adversarial term: a discriminator that is trained beside the tokenizer, and its gradient for the tokenizer.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use burn_var::nn::Conv2d;
use serde::{Deserialize, Serialize};

use super::patch_gan::{PatchGan, PatchGanConfig};
use crate::engine::run::Metrics;
use crate::engine::{Learner, Rules, SectionNames};
use crate::optim::{Decay, LrSchedule, OptimConfig, no_decay_1d};
use crate::tensor::{gradient, scalar};
use crate::{Error, Result};

/// The adversarial term of a tokenizer's loss, as VQ-GAN has it (Esser et al. 2021, section 3.1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GanConfig {
    /// Weight of the term; 0 leaves it out.
    pub weight: f64,
    /// Multiplies the weight at every step by the ratio of the gradients of the other terms and of this one at the
    /// decoder's last convolution: a `weight` of 0.1 then means a tenth of their gradient, whatever the discriminator's
    /// scale.
    pub adaptive: bool,
    /// The first step with the term, counted from 0. Reconstructions should lack only fine detail by then.
    pub start_step: u64,
    /// Sizes of the discriminator.
    pub discriminator: PatchGanConfig,
    /// Learning rate of the discriminator, the same at all steps.
    pub learning_rate: f64,
    /// AdamW of the discriminator.
    pub optimizer: OptimConfig,
}

impl Default for GanConfig {
    fn default() -> Self {
        Self {
            weight: 0.0,
            adaptive: true,
            start_step: 0,
            discriminator: PatchGanConfig::default(),
            learning_rate: 1e-4,
            optimizer: super::default_optimizer(),
        }
    }
}

impl GanConfig {
    /// Checks the settings for a run of `steps` on images `[channels, height, width]`. Nothing else matters if the weight
    /// is 0.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self, steps: u64, image: [usize; 3]) -> Result<()> {
        if self.weight == 0.0 {
            return Ok(());
        }
        for (name, value) in [("gan.weight", self.weight), ("gan.learning_rate", self.learning_rate)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::config(name, value, "a positive number"));
            }
        }
        if self.start_step >= steps {
            return Err(Error::config("gan.start_step", self.start_step, format!("less than the {steps} `run.steps`")));
        }
        self.discriminator.validate(image)?;
        self.optimizer.validate().map_err(|error| error.in_section("gan"))
    }
}

/// A discriminator in training.
pub(super) struct Adversary {
    config: GanConfig,
    pub(super) learner: Learner<PatchGan>,
}

impl Adversary {
    /// Creates the discriminator of images `[channels, height, width]`, on an autodiff device, for a run of `steps`.
    pub(super) fn new(config: GanConfig, image: [usize; 3], seed: u64, steps: u64, device: &Device) -> Result<Self> {
        let network = config.discriminator.init(image, seed, device)?;
        let learning_rate =
            LrSchedule { peak: config.learning_rate, warmup_steps: 0, decay: Decay::Constant, ..LrSchedule::default() };
        let optimizer = config.optimizer.clone();
        let rules = Rules { optimizer, learning_rate, ema: None, no_decay: no_decay_1d, steps };
        Ok(Self { config, learner: Learner::new(network, rules, SectionNames::DISCRIMINATOR) })
    }

    /// Returns true if the term counts at a step.
    pub(super) fn is_active(&self, step: u64) -> bool {
        step >= self.config.start_step
    }

    /// Returns true if the weight depends on gradients.
    pub(super) fn is_adaptive(&self) -> bool {
        self.config.adaptive
    }

    /// Returns the tokenizer's term, `-mean D(x')`, and its gradient at the reconstruction, both off the graph.
    pub(super) fn oppose(&self, reconstruction: Tensor<4>) -> (Tensor<1>, Tensor<4>) {
        let fake = Tensor::from_inner(reconstruction).require_grad();
        let loss = self.learner.model.clone().freeze().forward(fake.clone()).mean().neg();
        (loss.clone().inner(), gradient(&fake, loss))
    }

    /// Returns the constant weight, `[1]`.
    pub(super) fn constant_weight(&self, device: &Device) -> Tensor<1> {
        Tensor::full([1], self.config.weight, device)
    }

    /// Returns the adaptive weight, `[1]`, from the gradients at the decoder's last convolution: those of all other terms
    /// and that of this one.
    pub(super) fn adaptive_weight(&self, [other, own]: [Tensor<4>; 2]) -> Tensor<1> {
        let norm = |gradient: Tensor<4>| gradient.square().sum().sqrt();
        (norm(other) / (norm(own) + 1e-4)).clamp(0.0, 1e4) * self.config.weight
    }

    /// Returns the discriminator's gradients, from images and their reconstructions, which are off the graph.
    pub(super) fn backward(&self, [real, fake]: [Tensor<4>; 2]) -> (GradientsParams, Judgement) {
        let [batch, ..] = real.dims();
        let network = &self.learner.model;
        let logits = network.forward(Tensor::from_inner(Tensor::cat(vec![real, fake], 0)));
        let (real, fake) = (logits.clone().narrow(0, 0, batch), logits.narrow(0, batch, batch));
        let loss = (relu(1.0 - real.clone()).mean() + relu(fake.clone() + 1.0).mean()) * 0.5;
        let gradients = GradientsParams::from_grads(loss.backward(), network);
        (gradients, Judgement { loss: loss.inner(), real: real.inner(), fake: fake.inner() })
    }
}

/// Returns the gradient of a term for the weight of a convolution, given the convolution's input and the gradient at its
/// output, which are off the graph.
pub(super) fn weight_gradient(conv: &Conv2d, input: &Tensor<4>, at_output: &Tensor<4>) -> Tensor<4> {
    let output = conv.forward(Tensor::from_inner(input.clone()));
    gradient(&conv.weight.val(), (output * Tensor::from_inner(at_output.clone())).sum())
}

/// The discriminator's output before its update, off the graph.
pub(super) struct Judgement {
    pub(super) loss: Tensor<1>,
    pub(super) real: Tensor<4>,
    pub(super) fake: Tensor<4>,
}

impl Judgement {
    /// The names of [`Judgement::metrics`].
    pub(super) const NAMES: [&str; 3] = ["d_loss", "d_real", "d_fake"];

    /// Returns the loss, and the shares of real and of fake patches that are recognized.
    pub(super) fn metrics(&self) -> Result<Metrics> {
        let read = |value: Tensor<1>| scalar(&value, "read the discriminator's loss");
        Ok(vec![
            (Self::NAMES[0].into(), read(self.loss.clone())?),
            (Self::NAMES[1].into(), read(self.real.clone().greater_scalar(0.0).float().mean())?),
            (Self::NAMES[2].into(), read(self.fake.clone().lower_scalar(0.0).float().mean())?),
        ])
    }
}
