//! The adversarial term: a discriminator that learns beside the tokenizer, and what it asks of the tokenizer.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use burn_var::nn::Conv2d;
use serde::{Deserialize, Serialize};

use super::losses::{gradient, scalar};
use crate::checkpoint::{Checkpoint, Part};
use crate::optim::{AdamW, OptimConfig, StepRates, no_decay_1d};
use crate::patch_gan::{PatchGan, PatchGanConfig};
use crate::run::Metrics;
use crate::{Error, Result};

/// The adversarial term of a tokenizer's loss, as VQ-GAN has it (Esser et al. 2021, section 3.1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GanConfig {
    /// Weight of the term; 0 leaves it out.
    pub weight: f64,
    /// Multiplies the weight at every step by how much stronger the other terms pull at the decoder's last
    /// convolution: a `weight` of 0.1 then means a tenth of their pull, whatever the discriminator's scale.
    pub adaptive: bool,
    /// The first zero-based step with the term. Reconstructions should be sharp by then but for fine detail.
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
    /// Refuses what no run of `steps` on pictures `[channels, height, width]` can mean. Nothing else matters if the
    /// term is left out.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self, steps: u64, picture: [usize; 3]) -> Result<()> {
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
        self.discriminator.validate(picture)?;
        self.optimizer.validate().map_err(|error| match error {
            Error::Config { name, found, expected } => Error::Config { name: format!("gan.{name}"), found, expected },
            other => other,
        })
    }
}

/// A discriminator in training.
pub(super) struct Adversary {
    config: GanConfig,
    network: PatchGan,
    optimizer: AdamW,
}

/// The parts of a checkpoint.
const NETWORK: &str = "discriminator";
const OPTIMIZER: &str = "discriminator-optimizer";

impl Adversary {
    /// For pictures `[channels, height, width]`, on an autodiff device.
    pub(super) fn new(config: GanConfig, picture: [usize; 3], seed: u64, device: &Device) -> Result<Self> {
        let network = config.discriminator.init(picture, seed, device)?;
        let optimizer = config.optimizer.init(&network, no_decay_1d);
        Ok(Self { config, network, optimizer })
    }

    /// Whether the term counts at zero-based `step`.
    pub(super) fn is_active(&self, step: u64) -> bool {
        step >= self.config.start_step
    }

    /// The tokenizer's term, `-mean D(x')`, and its gradient at the reconstruction, which is off the graph.
    pub(super) fn oppose(&self, reconstruction: Tensor<4>) -> (Tensor<1>, Tensor<4>) {
        let made = Tensor::from_inner(reconstruction).require_grad();
        let loss = self.network.clone().freeze().forward(made.clone()).mean().neg();
        (loss.clone().inner(), gradient(&made, loss))
    }

    /// What the term is multiplied by, `[1]`: given the input of the decoder's last convolution and the gradients of
    /// all other terms and of this one at its output, which are all off the graph.
    pub(super) fn weight(&self, last: &Conv2d, input: &Tensor<4>, pull: &Tensor<4>, push: &Tensor<4>) -> Tensor<1> {
        let strength = |at_output: &Tensor<4>| {
            let output = last.forward(Tensor::from_inner(input.clone()));
            let weight = last.weight.val();
            gradient(&weight, (output * Tensor::from_inner(at_output.clone())).sum()).square().sum().sqrt()
        };
        match self.config.adaptive {
            true => (strength(pull) / (strength(push) + 1e-4)).clamp(0.0, 1e4) * self.config.weight,
            false => Tensor::full([1], self.config.weight, &pull.device()),
        }
    }

    /// The discriminator's zero-based `step` of `steps`, on pictures and their reconstructions, which are off the graph.
    pub(super) fn learn(&mut self, [step, steps]: [u64; 2], [real, made]: [Tensor<4>; 2]) -> Result<Judgement> {
        let [batch, ..] = real.dims();
        let judged = self.network.forward(Tensor::from_inner(Tensor::cat(vec![real, made], 0)));
        let (real, made) = (judged.clone().narrow(0, 0, batch), judged.narrow(0, batch, batch));
        let loss = (relu(1.0 - real.clone()).mean() + relu(made.clone() + 1.0).mean()) * 0.5;
        let grads = GradientsParams::from_grads(loss.backward(), &self.network);
        let rates = StepRates {
            step,
            learning_rate: self.config.learning_rate,
            weight_decay: self.config.optimizer.weight_decay_at(step, steps),
        };
        let (network, _) = self.optimizer.step(rates, self.network.clone(), grads).map_err(in_discriminator)?;
        self.network = network;
        Ok(Judgement { loss: loss.inner(), real: real.inner(), made: made.inner() })
    }

    pub(super) fn parts(&self) -> [Part<'_>; 2] {
        [Part::module(NETWORK, &self.network), Part::optimizer(OPTIMIZER, &self.optimizer)]
    }

    pub(super) fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.network = checkpoint.module(NETWORK, self.network.clone())?;
        let optimizer = self.config.optimizer.init(&self.network, no_decay_1d);
        self.optimizer = checkpoint.optimizer(OPTIMIZER, optimizer)?;
        Ok(())
    }
}

/// The tokenizer's parameters have similar names.
fn in_discriminator(error: Error) -> Error {
    match error {
        Error::Model(burn_var::Error::NonFinite { what, found, hint }) => {
            burn_var::Error::NonFinite { what: format!("the discriminator: {what}"), found, hint }.into()
        }
        other => other,
    }
}

/// What the discriminator said before its step, off the graph.
pub(super) struct Judgement {
    loss: Tensor<1>,
    real: Tensor<4>,
    made: Tensor<4>,
}

impl Judgement {
    /// The names of [`Judgement::metrics`].
    pub(super) const NAMES: [&str; 3] = ["d_loss", "d_real", "d_fake"];

    /// Its loss, and the shares of patches that it takes for what they are.
    pub(super) fn metrics(&self) -> Result<Metrics> {
        Ok(vec![
            (Self::NAMES[0].into(), scalar(&self.loss)?),
            (Self::NAMES[1].into(), scalar(&self.real.clone().greater_scalar(0.0).float().mean())?),
            (Self::NAMES[2].into(), scalar(&self.made.clone().lower_scalar(0.0).float().mean())?),
        ])
    }
}
