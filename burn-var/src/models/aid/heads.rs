//! The trained part of the projected discriminator: one head per feature layer of a frozen encoder
//! (`DiscHead` of StyleGAN-T, `StableDiscHead` of AID-VAR), and the hinge losses.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::activation::{leaky_relu, relu};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::require_positive;
use crate::init::{Init, fan_in_bound, initialize};
use crate::ops::{ConvSpec, conv2d, exact_matmul, transpose};
use crate::{Error, Result, nn};

/// Kernel size of the circular convolution.
const KERNEL: usize = 9;
/// Slope of the activation below 0.
const SLOPE: f64 = 0.2;
/// Bound of AID-VAR's logits.
const BOUND: f64 = 10.0;

/// Published discriminator head, which sets epsilons, bounds and initialization.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadVariant {
    /// AID-VAR: bounded variances and logits, small initial weights.
    #[default]
    Aid,
    /// StyleGAN-T.
    StyleGanT,
}

/// Sizes of [`DiscriminatorHeads`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiscriminatorHeadsConfig {
    /// Number of heads, one per feature layer; AID-VAR has 5.
    pub heads: usize,
    /// Channels of the features; 384 for ViT-S.
    pub channels: usize,
    /// Published head to follow.
    #[serde(default)]
    pub variant: HeadVariant,
    /// Length of the condition that the logits are projected on; 0 for none.
    #[serde(default)]
    pub condition: usize,
    /// Width of the space into which features and condition are projected.
    #[serde(default = "default_map")]
    pub condition_map: usize,
    /// Number of images that share batch norm statistics.
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
    /// Returns the sizes of AID-VAR's five heads on features of `channels`: 7.39 million parameters for ViT-S.
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

    /// Creates heads with the initial weights of their variant, drawn from `seed`.
    ///
    /// # Errors
    /// The errors of [`DiscriminatorHeadsConfig::validate`].
    pub fn init(&self, seed: u64, device: &Device) -> Result<DiscriminatorHeads> {
        // Every parameter is filled: a lazy parameter of Burn shares its state with its clones.
        let heads = initialize(self.init_zeros(device)?, seed, |param| match (param.path, self.variant) {
            (path, _) if path.contains(".norm.") => Init::Constant(if path.ends_with("weight") { 1.0 } else { 0.0 }),
            (path, _) if path.contains(".cmapper.bias") => Init::Constant(0.0),
            (path, _) if path.ends_with("weight_u") || path.ends_with("weight_v") => Init::Normal(1.0),
            (path, HeadVariant::StyleGanT) if path.contains(".cmapper.") => Init::Normal(1.0),
            (path, HeadVariant::Aid) if path.ends_with("bias") => Init::Constant(0.0),
            (_, HeadVariant::Aid) => Init::Normal(0.02),
            // PyTorch's default, by fan-in.
            (path, HeadVariant::StyleGanT) => {
                fan_in_bound(if path.contains(".second.") { KERNEL * self.channels } else { self.channels })
            }
        });
        Ok(heads.iterated())
    }

    /// Creates heads whose weights are zero, to be loaded.
    ///
    /// # Errors
    /// The errors of [`DiscriminatorHeadsConfig::validate`].
    pub fn init_zeros(&self, device: &Device) -> Result<DiscriminatorHeads> {
        self.validate()?;
        Ok(DiscriminatorHeads {
            heads: (0..self.heads).map(|_| Head::new(self, device)).collect(),
            config: self.clone(),
        })
    }
}

/// A one-dimensional convolution whose weight is divided by its largest singular value, as the power iteration of
/// PyTorch's `spectral_norm` estimates it. Circular for kernels longer than 1.
#[derive(Module, Debug)]
pub(super) struct SpectralConv {
    /// `[out, in, kernel]`.
    weight_orig: Param<Tensor<3>>,
    /// `[out]`.
    bias: Param<Tensor<1>>,
    /// Left singular vector, `[out]`.
    weight_u: Param<Tensor<1>>,
    /// Right singular vector, `[in * kernel]`.
    weight_v: Param<Tensor<1>>,
    epsilon: f64,
}

impl SpectralConv {
    fn new([input, output, kernel]: [usize; 3], variant: HeadVariant, device: &Device) -> Self {
        Self {
            weight_orig: nn::zeros([output, input, kernel], device),
            bias: nn::zeros([output], device),
            weight_u: nn::zeros([output], device).set_require_grad(false),
            weight_v: nn::zeros([input * kernel], device).set_require_grad(false),
            epsilon: match variant {
                HeadVariant::Aid => 1e-6,
                HeadVariant::StyleGanT => 1e-12,
            },
        }
    }

    /// Returns the convolution after one step of the power iteration, off the graph.
    fn iterated(mut self) -> Self {
        let device = self.weight_u.val().device();
        let inner = |tensor: Tensor<2>| if tensor.device().is_autodiff() { tensor.inner() } else { tensor };
        let weight = inner(self.weight_orig.val().flatten::<2>(1, 2));
        let unit = |x: Tensor<2>| {
            let length = x.clone().square().sum().sqrt().clamp_min(self.epsilon);
            x / length.unsqueeze()
        };
        let u = inner(self.weight_u.val().unsqueeze_dim::<2>(1)); // [out, 1]
        let v = unit(exact_matmul(transpose(weight.clone()), u)); // [in * kernel, 1]
        let u = unit(exact_matmul(weight, v.clone()));
        let keep = |param: Param<Tensor<1>>, value: Tensor<2>| {
            let value = value.squeeze_dim::<1>(1);
            let value = if device.is_autodiff() { Tensor::from_inner(value) } else { value };
            Param::initialized(param.id, value).set_require_grad(false)
        };
        self.weight_u = keep(self.weight_u, u);
        self.weight_v = keep(self.weight_v, v);
        self
    }

    /// Returns the weight divided by its largest singular value, `[out, in, kernel]`; no gradient reaches the singular
    /// vectors.
    pub(super) fn weight(&self) -> Tensor<3> {
        let weight = self.weight_orig.val();
        let [output, input, kernel] = weight.dims();
        let (u, v) = (self.weight_u.val().detach(), self.weight_v.val().detach());
        let sigma = exact_matmul(u.reshape([1, output]), weight.clone().reshape([output, input * kernel]));
        let sigma = exact_matmul(sigma, v.reshape([input * kernel, 1])); // [1, 1]
        weight / sigma.unsqueeze()
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        convolve(x, self.weight(), Some(self.bias.val()))
    }
}

/// Computes a circular convolution that keeps the length, `[batch, in, length]` to `[batch, out, length]`.
pub(super) fn convolve(x: Tensor<3>, weight: Tensor<3>, bias: Option<Tensor<1>>) -> Tensor<3> {
    let (length, kernel) = (x.dims()[2], weight.dims()[2]);
    let padding = kernel / 2;
    let x = match padding {
        0 => x,
        _ => {
            let [before, after] = [x.clone().narrow(2, length - padding, padding), x.clone().narrow(2, 0, padding)];
            Tensor::cat(vec![before, x, after], 2)
        }
    };
    let spec = ConvSpec { stride: 1, padding: [0; 4] };
    conv2d(x.unsqueeze_dim(2), weight.unsqueeze_dim(2), bias, spec).squeeze_dim(2)
}

/// Batch norm over groups of a few images, the same in training and inference (`BatchNormLocal`).
#[derive(Module, Debug)]
pub(super) struct LocalNorm {
    pub(super) weight: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
    virtual_batch: usize,
    epsilon: f64,
    /// Lower bound of the variance.
    floor: f64,
}

/// Intermediate results of a [`LocalNorm`] for its backward pass.
pub(super) struct NormTrace {
    /// Normalized values before weight and bias, `[groups, images, channels, length]`.
    pub(super) normalized: Tensor<4>,
    /// Standard deviation, `[groups, 1, channels, 1]`.
    pub(super) std: Tensor<4>,
    /// 1 where the variance is not below the floor, 0 elsewhere.
    pub(super) above_floor: Tensor<4>,
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

    /// Normalizes `[batch, channels, length]`; the batch must be a multiple of the number of groups.
    fn forward(&self, x: Tensor<3>) -> (Tensor<3>, NormTrace) {
        let [batch, channels, length] = x.dims();
        let groups = batch.div_ceil(self.virtual_batch);
        let x = x.reshape([groups, batch / groups, channels, length]);
        let centered = x.clone() - x.mean_dims(&[1, 3]);
        let variance = centered.clone().square().mean_dims(&[1, 3]);
        let above_floor = variance.clone().greater_equal_elem(self.floor).float().detach();
        let std = (variance.clamp_min(self.floor) + self.epsilon).sqrt();
        let normalized = centered / std.clone();
        let y = normalized.clone() * self.weight.val().reshape([1, 1, channels, 1])
            + self.bias.val().reshape([1, 1, channels, 1]);
        (y.reshape([batch, channels, length]), NormTrace { normalized, std, above_floor })
    }
}

/// Convolution, norm, activation.
#[derive(Module, Debug)]
pub(super) struct Layer {
    pub(super) conv: SpectralConv,
    pub(super) norm: LocalNorm,
}

/// Intermediate results of a [`Layer`] for its backward pass.
pub(super) struct LayerTrace {
    /// Slope of the activation at each value.
    pub(super) slope: Tensor<3>,
    pub(super) norm: NormTrace,
}

impl Layer {
    fn forward(&self, x: Tensor<3>) -> (Tensor<3>, LayerTrace) {
        let (y, norm) = self.norm.forward(self.conv.forward(x));
        let slope = y.clone().detach().greater_elem(0.0).float() * (1.0 - SLOPE) + SLOPE;
        (leaky_relu(y, SLOPE), LayerTrace { slope, norm })
    }
}

/// One head.
#[derive(Module, Debug)]
pub(super) struct Head {
    pub(super) first: Layer,
    pub(super) second: Layer,
    pub(super) cls: SpectralConv,
    cmapper: Option<Linear>,
}

/// Output of a [`Head`].
pub(super) struct HeadOutput {
    /// `[batch, 1, length]`.
    pub(super) logits: Tensor<3>,
    pub(super) trace: HeadTrace,
}

/// Intermediate results of a [`Head`] for its backward pass.
pub(super) struct HeadTrace {
    pub(super) first: LayerTrace,
    pub(super) second: LayerTrace,
    /// Projected condition, `[batch, outputs, 1]`.
    pub(super) projection: Option<Tensor<3>>,
    /// Logits before the bound, `[batch, 1, length]`.
    pub(super) unbounded: Tensor<3>,
}

impl Head {
    fn new(config: &DiscriminatorHeadsConfig, device: &Device) -> Self {
        let (channels, variant) = (config.channels, config.variant);
        let conditional = config.condition > 0;
        let outputs = if conditional { config.condition_map } else { 1 };
        let layer = |kernel: usize| Layer {
            conv: SpectralConv::new([channels, channels, kernel], variant, device),
            norm: LocalNorm::new(config, device),
        };
        Self {
            first: layer(1),
            second: layer(KERNEL),
            cls: SpectralConv::new([channels, outputs, 1], variant, device),
            cmapper: conditional.then(|| nn::linear(config.condition, outputs, true, device)),
        }
    }

    fn forward(&self, x: Tensor<3>, condition: Option<&Tensor<2>>, variant: HeadVariant) -> HeadOutput {
        let (h, first) = self.first.forward(x);
        let (g, second) = self.second.forward(h.clone());
        let out = self.cls.forward((g + h) / 2f64.sqrt()); // [batch, outputs, length]
        let projection = self.cmapper.as_ref().zip(condition).map(|(cmapper, condition)| {
            let gain = (condition.dims()[1] as f64).powf(-0.5);
            nn::apply(cmapper, condition.clone() * gain).unsqueeze_dim::<3>(2) / (out.dims()[1] as f64).sqrt()
        });
        let unbounded = match &projection {
            Some(projection) => (out * projection.clone()).sum_dim(1),
            None => out,
        };
        let logits = match variant {
            HeadVariant::Aid => unbounded.clone().clamp(-BOUND, BOUND),
            HeadVariant::StyleGanT => unbounded.clone(),
        };
        HeadOutput { logits, trace: HeadTrace { first, second, projection, unbounded } }
    }
}

/// Discriminator heads, one per feature layer. Parameter names are those of the checkpoints.
#[derive(Module, Debug)]
pub struct DiscriminatorHeads {
    heads: Vec<Head>,
    #[module(skip)]
    config: DiscriminatorHeadsConfig,
}

impl DiscriminatorHeads {
    /// Returns the sizes.
    pub fn config(&self) -> &DiscriminatorHeadsConfig {
        &self.config
    }

    /// Returns the heads after one step of the power iteration of all spectral norms. PyTorch does one before every
    /// forward pass in training, and none in evaluation.
    #[must_use]
    pub fn iterated(mut self) -> Self {
        for head in &mut self.heads {
            for conv in [&mut head.first.conv, &mut head.second.conv, &mut head.cls] {
                *conv = conv.clone().iterated();
            }
        }
        self
    }

    /// Computes the logits of all positions of all heads, `[batch, heads * length]`.
    ///
    /// # Shapes
    /// - `features`: one `[batch, channels, length]` per head
    /// - `condition`: `[batch, condition]` if the heads are conditional, otherwise `None`
    ///
    /// # Errors
    /// [`Error::Shape`] if features or condition do not fit, or the batch is not a multiple of the number of groups of
    /// up to `virtual_batch` images.
    pub fn forward(&self, features: &[Tensor<3>], condition: Option<&Tensor<2>>) -> Result<Tensor<2>> {
        let logits = self.outputs(features, condition)?.map(|(_, output)| output.logits.squeeze_dim(1));
        Ok(Tensor::cat(logits.collect(), 1))
    }

    /// Checks the inputs, and returns an iterator that runs the heads one by one.
    pub(super) fn outputs<'a>(
        &'a self,
        features: &'a [Tensor<3>],
        condition: Option<&'a Tensor<2>>,
    ) -> Result<impl Iterator<Item = (&'a Head, HeadOutput)>> {
        let DiscriminatorHeadsConfig { channels, variant, virtual_batch, .. } = self.config;
        if features.len() != self.heads.len() {
            return Err(Error::shape("layers of features", self.heads.len().to_string(), [features.len()]));
        }
        let batch = features[0].dims()[0];
        for features in features {
            let [found, width, length] = features.dims();
            let groups = batch.div_ceil(virtual_batch).max(1);
            if found != batch || width != channels || length < KERNEL / 2 || batch == 0 || !batch.is_multiple_of(groups)
            {
                let expected = format!(
                    "[batch, {channels}, {} or more] with the same batch in all layers, a multiple of {groups} \
                     groups of up to {virtual_batch} images",
                    KERNEL / 2
                );
                return Err(Error::shape("features of the images", expected, features.dims()));
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
        let heads = self.heads.iter().zip(features);
        Ok(heads.map(move |(head, features)| (head, head.forward(features.clone(), condition, variant))))
    }
}

/// Reduction of an image's logits in the hinge loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HingeReduction {
    /// Hinge of the mean logit, as in AID-VAR.
    #[default]
    MeanLogit,
    /// Mean of the hinges, as in StyleGAN-T.
    Elementwise,
}

impl HingeReduction {
    /// Computes the discriminator's loss (equation 3), `[1]`: `max(0, 1 - D(real)) + max(0, 1 + D(fake))`, each a mean
    /// over images. Logits are `[batch, positions]`.
    pub fn discriminator_loss(self, real: Tensor<2>, fake: Tensor<2>) -> Tensor<1> {
        let [real, fake] = [real, fake].map(|logits| match self {
            Self::MeanLogit => logits.mean_dim(1).clamp(-BOUND, BOUND),
            Self::Elementwise => logits,
        });
        relu(-real + 1.0).mean() + relu(fake + 1.0).mean()
    }
}

/// Computes the injector's loss (equation 6), `[1]`: the negative mean of the logits of generated images.
pub fn generator_loss(fake: Tensor<2>) -> Tensor<1> {
    fake.mean().neg()
}
