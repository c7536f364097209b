//! The trained part of the projected discriminator: a head for each layer of features of a frozen encoder
//! (`DiscHead` of StyleGAN-T, `StableDiscHead` of AID-VAR).

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::activation::{leaky_relu, relu};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::require_positive;
use crate::init::{Init, fan_in_bound, initialize};
use crate::ops::{ConvSpec, conv2d};
use crate::{Error, Result, nn};

/// Taps of the circular convolution.
const TAPS: usize = 9;
/// Slope of the activation below 0.
const SLOPE: f64 = 0.2;

/// Whose heads they are: constants and first weights differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadVariant {
    /// AID-VAR's: variances and logits bounded, first weights small.
    #[default]
    Aid,
    /// StyleGAN-T's.
    StyleGanT,
}

/// The sizes of [`DiscriminatorHeads`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiscriminatorHeadsConfig {
    /// How many: one a layer of features. AID-VAR has 5.
    pub heads: usize,
    /// Channels of the features; 384 for ViT-S.
    pub channels: usize,
    /// Whose.
    #[serde(default)]
    pub variant: HeadVariant,
    /// Length of the condition that logits are projected on; 0 for none.
    #[serde(default)]
    pub condition: usize,
    /// Channels in which features and condition meet.
    #[serde(default = "default_map")]
    pub condition_map: usize,
    /// Pictures whose statistics are taken together.
    #[serde(default = "default_group")]
    pub virtual_batch: usize,
}

fn default_map() -> usize {
    64
}

fn default_group() -> usize {
    8
}

impl DiscriminatorHeadsConfig {
    /// AID-VAR's five heads on features of `channels`: 7.39 million parameters for ViT-S.
    pub fn aid(channels: usize) -> Self {
        Self {
            heads: 5,
            channels,
            variant: HeadVariant::Aid,
            condition: 0,
            condition_map: default_map(),
            virtual_batch: default_group(),
        }
    }

    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        require_positive(&[
            ("heads", self.heads),
            ("channels", self.channels),
            ("condition_map", self.condition_map),
            ("virtual_batch", self.virtual_batch),
        ])
    }

    /// DiscriminatorHeads with the first weights of their variant, drawn from `seed`.
    ///
    /// # Errors
    /// As [`DiscriminatorHeadsConfig::validate`].
    pub fn init(&self, seed: u64, device: &Device) -> Result<DiscriminatorHeads> {
        // Every parameter is filled: one that Burn has yet to fill shares its state with its clones.
        let heads = initialize(self.init_zeros(device)?, seed, |param| match (param.path, self.variant) {
            (path, _) if path.contains(".norm.") => Init::Constant(if path.ends_with("weight") { 1.0 } else { 0.0 }),
            (path, _) if path.contains(".cmapper.bias") => Init::Constant(0.0),
            (path, _) if path.ends_with("weight_u") || path.ends_with("weight_v") => Init::Normal(1.0),
            (path, HeadVariant::StyleGanT) if path.contains(".cmapper.") => Init::Normal(1.0),
            (path, HeadVariant::Aid) if path.ends_with("bias") => Init::Constant(0.0),
            (_, HeadVariant::Aid) => Init::Normal(0.02),
            // PyTorch's own, by the number of inputs of an output.
            (path, HeadVariant::StyleGanT) => {
                fan_in_bound(if path.contains(".second.") { TAPS * self.channels } else { self.channels })
            }
        });
        Ok(heads.iterated())
    }

    /// DiscriminatorHeads of zeros, to be loaded.
    ///
    /// # Errors
    /// As [`DiscriminatorHeadsConfig::validate`].
    pub fn init_zeros(&self, device: &Device) -> Result<DiscriminatorHeads> {
        self.validate()?;
        Ok(DiscriminatorHeads {
            heads: (0..self.heads).map(|_| Head::new(self, device)).collect(),
            config: self.clone(),
        })
    }
}

/// A one-dimensional convolution whose weight is divided by its largest singular value, as the power iteration of
/// PyTorch's `spectral_norm` estimates it. Circular where it has more than one tap.
#[derive(Module, Debug)]
struct SpectralConv {
    /// `[out, in, taps]`.
    weight_orig: Param<Tensor<3>>,
    /// `[out]`.
    bias: Param<Tensor<1>>,
    /// Left singular vector, `[out]`.
    weight_u: Param<Tensor<1>>,
    /// Right singular vector, `[in * taps]`.
    weight_v: Param<Tensor<1>>,
    epsilon: f64,
}

impl SpectralConv {
    fn new([input, output, taps]: [usize; 3], variant: HeadVariant, device: &Device) -> Self {
        Self {
            weight_orig: nn::zeros([output, input, taps], device),
            bias: nn::zeros([output], device),
            weight_u: nn::zeros([output], device).set_require_grad(false),
            weight_v: nn::zeros([input * taps], device).set_require_grad(false),
            epsilon: match variant {
                HeadVariant::Aid => 1e-6,
                HeadVariant::StyleGanT => 1e-12,
            },
        }
    }

    /// One step of the power iteration, off the graph.
    fn iterated(mut self) -> Self {
        let device = self.weight_u.val().device();
        let inner = |tensor: Tensor<2>| if tensor.device().is_autodiff() { tensor.inner() } else { tensor };
        let weight = inner(self.weight_orig.val().flatten::<2>(1, 2));
        let unit = |x: Tensor<2>| {
            let length = x.clone().square().sum().sqrt().clamp_min(self.epsilon);
            x / length.unsqueeze()
        };
        let u = inner(self.weight_u.val().unsqueeze_dim::<2>(1)); // [out, 1]
        let v = unit(weight.clone().transpose().matmul(u)); // [in * taps, 1]
        let u = unit(weight.matmul(v.clone()));
        let keep = |param: Param<Tensor<1>>, value: Tensor<2>| {
            let value = value.squeeze_dim::<1>(1);
            let value = if device.is_autodiff() { Tensor::from_inner(value) } else { value };
            Param::initialized(param.id, value).set_require_grad(false)
        };
        self.weight_u = keep(self.weight_u, u);
        self.weight_v = keep(self.weight_v, v);
        self
    }

    /// The weight over its largest singular value, `[out, in, taps]`; no gradient reaches the singular vectors.
    fn weight(&self) -> Tensor<3> {
        let weight = self.weight_orig.val();
        let [output, input, taps] = weight.dims();
        let (u, v) = (self.weight_u.val().detach(), self.weight_v.val().detach());
        let sigma = u.reshape([1, output]).matmul(weight.clone().reshape([output, input * taps]));
        let sigma = sigma.matmul(v.reshape([input * taps, 1])); // [1, 1]
        weight / sigma.unsqueeze()
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        convolve(x, self.weight(), Some(self.bias.val()))
    }

    /// From the gradient of the output that of the input: the convolution with the taps turned around.
    fn backward(&self, grad: Tensor<3>) -> Tensor<3> {
        convolve(grad, self.weight().swap_dims(0, 1).flip([2]), None)
    }
}

/// A circular convolution that keeps the length, `[batch, in, length]` to `[batch, out, length]`.
fn convolve(x: Tensor<3>, weight: Tensor<3>, bias: Option<Tensor<1>>) -> Tensor<3> {
    let (length, taps) = (x.dims()[2], weight.dims()[2]);
    let around = taps / 2;
    let x = match around {
        0 => x,
        _ => {
            let [before, after] = [x.clone().narrow(2, length - around, around), x.clone().narrow(2, 0, around)];
            Tensor::cat(vec![before, x, after], 2)
        }
    };
    let spec = ConvSpec { stride: 1, padding: [0; 4] };
    conv2d(x.unsqueeze_dim(2), weight.unsqueeze_dim(2), bias, spec).squeeze_dim(2)
}

/// Batch norm over groups of a few pictures, in training and in use alike (`BatchNormLocal`).
#[derive(Module, Debug)]
struct LocalNorm {
    weight: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
    virtual_batch: usize,
    epsilon: f64,
    /// Smallest variance.
    floor: f64,
}

/// What the way back through a [`LocalNorm`] needs.
struct Standard {
    /// Without scale and shift, `[groups, pictures, channels, length]`.
    values: Tensor<4>,
    /// What they were divided by, `[groups, 1, channels, 1]`.
    deviation: Tensor<4>,
    /// 1 where the variance was above the floor.
    free: Tensor<4>,
}

impl LocalNorm {
    fn new(config: &DiscriminatorHeadsConfig, device: &Device) -> Self {
        let (epsilon, floor) = match config.variant {
            HeadVariant::Aid => (1e-3, 1e-3),
            HeadVariant::StyleGanT => (1e-5, 0.0),
        };
        let (weight, bias) = (nn::zeros([config.channels], device), nn::zeros([config.channels], device));
        Self { weight, bias, virtual_batch: config.virtual_batch, epsilon, floor }
    }

    /// `[batch, channels, length]`; a batch of more than one group must be a multiple of their number.
    fn forward(&self, x: Tensor<3>) -> (Tensor<3>, Standard) {
        let [batch, channels, length] = x.dims();
        let groups = batch.div_ceil(self.virtual_batch);
        let x = x.reshape([groups, batch / groups, channels, length]);
        let centred = x.clone() - x.mean_dims(&[1, 3]);
        let variance = centred.clone().square().mean_dims(&[1, 3]);
        let free = variance.clone().greater_equal_elem(self.floor).float().detach();
        let deviation = (variance.clamp_min(self.floor) + self.epsilon).sqrt();
        let values = centred / deviation.clone();
        let y = values.clone() * self.weight.val().reshape([1, 1, channels, 1])
            + self.bias.val().reshape([1, 1, channels, 1]);
        (y.reshape([batch, channels, length]), Standard { values, deviation, free })
    }

    /// From the gradient of the output that of the input.
    fn backward(&self, grad: Tensor<3>, Standard { values, deviation, free }: Standard) -> Tensor<3> {
        let [batch, channels, length] = grad.dims();
        let grad = grad.reshape(values.dims()) * self.weight.val().reshape([1, 1, channels, 1]);
        let along = (grad.clone() * values.clone()).mean_dims(&[1, 3]) * free;
        let out = (grad.clone() - grad.mean_dims(&[1, 3]) - values * along) / deviation;
        out.reshape([batch, channels, length])
    }
}

/// Convolution, norm, activation.
#[derive(Module, Debug)]
struct Layer {
    conv: SpectralConv,
    norm: LocalNorm,
}

impl Layer {
    /// The output, and what the way back needs: the slope of the activation at each value, and the norm's.
    fn forward(&self, x: Tensor<3>) -> (Tensor<3>, Tensor<3>, Standard) {
        let (y, standard) = self.norm.forward(self.conv.forward(x));
        let slope = y.clone().detach().greater_elem(0.0).float() * (1.0 - SLOPE) + SLOPE;
        (leaky_relu(y, SLOPE), slope, standard)
    }

    fn backward(&self, grad: Tensor<3>, slope: Tensor<3>, standard: Standard) -> Tensor<3> {
        self.conv.backward(self.norm.backward(grad * slope, standard))
    }
}

/// One head.
#[derive(Module, Debug)]
struct Head {
    first: Layer,
    second: Layer,
    cls: SpectralConv,
    cmapper: Option<Linear>,
}

impl Head {
    fn new(config: &DiscriminatorHeadsConfig, device: &Device) -> Self {
        let (channels, variant) = (config.channels, config.variant);
        let conditional = config.condition > 0;
        let outputs = if conditional { config.condition_map } else { 1 };
        let layer = |taps: usize| Layer {
            conv: SpectralConv::new([channels, channels, taps], variant, device),
            norm: LocalNorm::new(config, device),
        };
        Self {
            first: layer(1),
            second: layer(TAPS),
            cls: SpectralConv::new([channels, outputs, 1], variant, device),
            cmapper: conditional.then(|| nn::linear(config.condition, outputs, true, device)),
        }
    }

    /// Logits `[batch, length]`; with `want_slope`, also the gradient of their sum for the features.
    fn forward(&self, x: Tensor<3>, condition: Option<&Tensor<2>>, bound: Option<f64>, want_slope: bool) -> Judged {
        let (h, first_slope, first_standard) = self.first.forward(x);
        let (g, second_slope, second_standard) = self.second.forward(h.clone());
        let out = self.cls.forward((g + h) / 2f64.sqrt()); // [batch, outputs, length]
        let by = self.cmapper.as_ref().zip(condition).map(|(cmapper, condition)| {
            let gain = (condition.dims()[1] as f64).powf(-0.5);
            nn::apply(cmapper, condition.clone() * gain).unsqueeze_dim::<3>(2) / (out.dims()[1] as f64).sqrt()
        });
        let free = match &by {
            Some(by) => (out.clone() * by.clone()).sum_dim(1),
            None => out,
        };
        let logits = match bound {
            Some(bound) => free.clone().clamp(-bound, bound),
            None => free.clone(),
        };
        let slope = want_slope.then(|| {
            // Of the sum of logits for themselves: 1, and 0 where they were bounded.
            let own = free.clone().detach().equal(logits.clone().detach()).float();
            let grad = match by {
                Some(by) => own * by,
                None => own,
            };
            let grad = self.cls.backward(grad) / 2f64.sqrt();
            let grad = self.second.backward(grad.clone(), second_slope, second_standard) + grad;
            self.first.backward(grad, first_slope, first_standard)
        });
        Judged { logits: logits.squeeze_dim(1), slope }
    }
}

struct Judged {
    logits: Tensor<2>,
    slope: Option<Tensor<3>>,
}

/// The heads. Names of parameters are the checkpoints'.
#[derive(Module, Debug)]
pub struct DiscriminatorHeads {
    heads: Vec<Head>,
    #[module(skip)]
    config: DiscriminatorHeadsConfig,
}

impl DiscriminatorHeads {
    /// Their sizes.
    pub fn config(&self) -> &DiscriminatorHeadsConfig {
        &self.config
    }

    /// One step of the power iteration of all spectral norms. PyTorch does one before every pass in training, and none
    /// in use.
    #[must_use]
    pub fn iterated(mut self) -> Self {
        for head in &mut self.heads {
            for conv in [&mut head.first.conv, &mut head.second.conv, &mut head.cls] {
                *conv = conv.clone().iterated();
            }
        }
        self
    }

    /// Logits of all positions of all heads, `[batch, heads * length]`, from each layer's features,
    /// `[batch, channels, length]`, and, where the heads are conditional, `[batch, condition]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the features or the condition do not fit, or a batch of more than one group is no multiple of
    /// their number.
    pub fn forward(&self, features: &[Tensor<3>], condition: Option<&Tensor<2>>) -> Result<Tensor<2>> {
        Ok(Tensor::cat(self.judge(features, condition, false)?.into_iter().map(|judged| judged.logits).collect(), 1))
    }

    /// The penalty R1 at the heads' inputs: the squared gradient of the sum of a picture's logits for its features,
    /// summed over heads, channels and positions, mean over pictures; `[1]`. The loss is half of `gamma` times it.
    ///
    /// Burn differentiates once, so the gradient is written out as an expression of its own, with convolutions turned
    /// around and the norm's formula, which autodiff then differentiates: the same value and gradients as a double
    /// backward pass.
    ///
    /// # Errors
    /// As [`DiscriminatorHeads::forward`].
    pub fn r1(&self, features: &[Tensor<3>], condition: Option<&Tensor<2>>) -> Result<Tensor<1>> {
        let batch = features.first().map_or(1, |features| features.dims()[0]);
        let slopes = self.judge(features, condition, true)?.into_iter().filter_map(|judged| judged.slope);
        let sum = slopes.map(|slope| slope.square().sum()).reduce(|a, b| a + b);
        let sum = sum.ok_or_else(|| Error::config("heads", 0, "at least 1"))?;
        Ok(sum / batch as f64)
    }

    fn judge(&self, features: &[Tensor<3>], condition: Option<&Tensor<2>>, slope: bool) -> Result<Vec<Judged>> {
        let DiscriminatorHeadsConfig { channels, variant, virtual_batch, .. } = self.config;
        if features.len() != self.heads.len() {
            return Err(Error::shape("layers of features", self.heads.len().to_string(), [features.len()]));
        }
        let batch = features[0].dims()[0];
        for features in features {
            let [found, width, length] = features.dims();
            let groups = batch.div_ceil(virtual_batch).max(1);
            if found != batch || width != channels || length < TAPS / 2 || batch == 0 || !batch.is_multiple_of(groups) {
                let expected = format!(
                    "[batch, {channels}, {} or more], the same batch in all layers, and a multiple of the {groups} \
                     groups of up to {virtual_batch} pictures",
                    TAPS / 2
                );
                return Err(Error::shape("features of pictures", expected, features.dims()));
            }
        }
        let wanted = [batch, self.config.condition];
        match condition.map(Tensor::dims) {
            None if self.config.condition == 0 => {}
            Some(found) if self.config.condition > 0 && found == wanted => {}
            found => {
                let expected = if wanted[1] == 0 { "none".to_owned() } else { format!("{wanted:?}") };
                return Err(Error::shape("condition of the discriminator", expected, found.unwrap_or_default()));
            }
        }
        let bound = (variant == HeadVariant::Aid).then_some(10.0);
        let heads = self.heads.iter().zip(features);
        Ok(heads.map(|(head, features)| head.forward(features.clone(), condition, bound, slope)).collect())
    }
}

/// How a hinge loss brings the logits of a picture together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HingeReduction {
    /// The hinge of their mean: AID-VAR's.
    #[default]
    MeanLogit,
    /// The mean of their hinges: StyleGAN-T's.
    Elementwise,
}

impl HingeReduction {
    /// What the discriminator minimises (equation 3): `max(0, 1 - D(real)) + max(0, 1 + D(made))`, means over pictures;
    /// `[1]`. Logits are `[batch, positions]`.
    pub fn discriminator_loss(self, real: Tensor<2>, made: Tensor<2>) -> Tensor<1> {
        let [real, made] = [real, made].map(|logits| match self {
            Self::MeanLogit => logits.mean_dim(1).clamp(-10.0, 10.0),
            Self::Elementwise => logits,
        });
        relu(-real + 1.0).mean() + relu(made + 1.0).mean()
    }
}

/// What the injector minimises (equation 6): the negative mean of the logits of what it made, `[1]`.
pub fn generator_loss(made: Tensor<2>) -> Tensor<1> {
    made.mean().neg()
}
