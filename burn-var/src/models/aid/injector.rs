//! The guidance injector (`models/guidance_injector.py` of AID-VAR).

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::SafeLayerNorm;
use crate::error::require_positive;
use crate::init::{Init, initialize};
use crate::math::{Constants, Resize};
use crate::ops::{QueryKeys, matmul, self_attention, swap, transpose};
use crate::rng::Rng;
use crate::{Error, MapSize, Result, nn, ops};

/// Resize of a token map to the size of the next scale.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InjectorResize {
    /// Bilinear on the grid, averaging where it shrinks, as in the paper.
    #[default]
    Spatial,
    /// Along the row-major sequence, which mixes the ends of rows, as in the released code.
    Flat1d,
}

/// Sizes of an [`Injector`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InjectorConfig {
    /// Width of the transformer, whose token embeddings are the input.
    pub input_dim: usize,
    /// Width of the injector and of its guidance, which is the transformer's.
    pub embed_dim: usize,
    /// Number of encoder layers; the paper's is 2.
    #[serde(default = "default_layers")]
    pub num_layers: usize,
    /// Attention heads; must divide the width. The paper's is 8.
    #[serde(default = "default_heads")]
    pub num_heads: usize,
    /// Resize of the map.
    #[serde(default)]
    pub resize: InjectorResize,
    /// Averages the guidance over each scale, so that all its tokens get the same vector: an ablation of the paper.
    #[serde(default)]
    pub broadcast: bool,
}

fn default_layers() -> usize {
    2
}

fn default_heads() -> usize {
    8
}

impl InjectorConfig {
    /// Share of values that training drops in the papers.
    pub const DROPOUT: f64 = 0.1;

    /// Returns the sizes of the paper's injector for a transformer of `width`: 12.6 million parameters for d16.
    pub fn paper(width: usize) -> Self {
        Self {
            input_dim: width,
            embed_dim: width,
            num_layers: default_layers(),
            num_heads: default_heads(),
            resize: InjectorResize::default(),
            broadcast: false,
        }
    }

    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field, what it is, and what would be accepted.
    pub fn validate(&self) -> Result<()> {
        require_positive(&[
            ("input_dim", self.input_dim),
            ("embed_dim", self.embed_dim),
            ("num_layers", self.num_layers),
            ("num_heads", self.num_heads),
        ])?;
        match self.embed_dim.is_multiple_of(self.num_heads) {
            true => Ok(()),
            false => {
                Err(Error::config("num_heads", self.num_heads, format!("a divisor of embed_dim {}", self.embed_dim)))
            }
        }
    }

    /// Returns the hidden width of the feed-forward.
    pub fn hidden(&self) -> usize {
        (2 * self.embed_dim).min(512)
    }

    /// Creates an injector with the authors' initial weights, drawn from `seed`, so small that the guidance is close to
    /// zero.
    ///
    /// # Errors
    /// The errors of [`InjectorConfig::validate`].
    pub fn init(&self, seed: u64, device: &Device) -> Result<Injector> {
        let width = self.embed_dim as f64;
        Ok(initialize(self.init_zeros(device)?, seed, |param| match param.path {
            path if path.ends_with("bias") => Init::Keep,
            path if path.contains("norm") => Init::Constant(0.5),
            // Xavier, for queries, keys and values as one matrix.
            path if path.ends_with("in_proj.weight") => Init::Uniform((6.0 / (4.0 * width)).sqrt()),
            _ => Init::Normal(0.001),
        }))
    }

    /// Creates an injector whose weights take no memory until they are loaded.
    ///
    /// # Errors
    /// The errors of [`InjectorConfig::validate`].
    pub fn init_zeros(&self, device: &Device) -> Result<Injector> {
        self.validate()?;
        let width = self.embed_dim;
        Ok(Injector {
            input_proj: nn::linear(self.input_dim, width, true, device),
            encoder: Encoder { layers: (0..self.num_layers).map(|_| Layer::new(self, device)).collect() },
            output_proj: nn::linear(width, width, true, device),
            final_norm: SafeLayerNorm::new(width, device),
            config: self.clone(),
        })
    }
}

/// Joint projection to queries, keys and values, and back.
#[derive(Module, Debug)]
struct SelfAttention {
    in_proj: Linear,
    out_proj: Linear,
    heads: usize,
}

impl SelfAttention {
    fn forward(&self, x: Tensor<3>, dropout: &mut Option<&mut InjectorDropout>) -> Tensor<3> {
        let [batch, tokens, width] = x.dims();
        let channels = width / self.heads;
        let scale = (channels as f64).powf(-0.5);
        let qkv = nn::apply(&self.in_proj, x);
        let mixed = if dropout.is_some() {
            let part = |i: usize| {
                let part = qkv.clone().narrow(2, i * width, width);
                swap(part.reshape([batch, tokens, self.heads, channels]), 1, 2)
            };
            let weights = softmax(matmul(part(0), transpose(part(1))) * scale, 3);
            let mixed = matmul(drop_values(weights, dropout), part(2)); // [batch, heads, tokens, channels]
            swap(mixed, 1, 2).reshape([batch, tokens, width])
        } else {
            self_attention(qkv, None, self.heads, QueryKeys::Scaled(scale), None)
        };
        nn::apply(&self.out_proj, mixed)
    }
}

/// Two linear layers with GELU between.
#[derive(Module, Debug)]
struct FeedForward {
    fc1: Linear,
    fc2: Linear,
}

/// Attention and feed-forward; a tenth of each is added to the input.
#[derive(Module, Debug)]
struct Layer {
    norm1: SafeLayerNorm,
    self_attn: SelfAttention,
    norm2: SafeLayerNorm,
    ffn: FeedForward,
}

impl Layer {
    /// Fraction of a branch that is added.
    const BRANCH: f64 = 0.1;

    fn new(config: &InjectorConfig, device: &Device) -> Self {
        let width = config.embed_dim;
        Self {
            norm1: SafeLayerNorm::new(width, device),
            self_attn: SelfAttention {
                in_proj: nn::linear(width, 3 * width, true, device),
                out_proj: nn::linear(width, width, true, device),
                heads: config.num_heads,
            },
            norm2: SafeLayerNorm::new(width, device),
            ffn: FeedForward {
                fc1: nn::linear(width, config.hidden(), true, device),
                fc2: nn::linear(config.hidden(), width, true, device),
            },
        }
    }

    /// Maps values between -3 and 3 to such values. The authors' further limits of 5 are left out: nothing reaches them.
    fn forward(&self, x: Tensor<3>, dropout: &mut Option<&mut InjectorDropout>) -> Tensor<3> {
        let h = self.self_attn.forward(self.norm1.forward(x.clone()), dropout);
        let x = x + within(h, 3.0) * Self::BRANCH;
        let h = drop_values(ops::gelu(nn::apply(&self.ffn.fc1, self.norm2.forward(x.clone()))), dropout);
        let h = drop_values(nn::apply(&self.ffn.fc2, h), dropout);
        within(x + within(h, 3.0) * Self::BRANCH, 3.0)
    }
}

#[derive(Module, Debug)]
struct Encoder {
    layers: Vec<Layer>,
}

/// AID-VAR's guidance injector `P`: maps the embedded tokens of one scale to an addition to the transformer's input at
/// the next scale. Field names are the checkpoints' where possible; created with [`InjectorConfig::init`].
#[derive(Module, Debug)]
pub struct Injector {
    input_proj: Linear,
    encoder: Encoder,
    output_proj: Linear,
    final_norm: SafeLayerNorm,
    #[module(skip)]
    config: InjectorConfig,
}

impl Injector {
    /// Returns the sizes.
    pub fn config(&self) -> &InjectorConfig {
        &self.config
    }

    /// Computes guidance for a scale of size `to`, `[batch, tokens, embed_dim]` with values in `[-2, 2]`, from the
    /// embedded tokens of a scale of size `from`, `[batch, tokens, input_dim]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the tokens do not have that size or width.
    pub fn forward(
        &self,
        tokens: Tensor<3>,
        from: MapSize,
        to: MapSize,
        mut dropout: Option<&mut InjectorDropout>,
    ) -> Result<Tensor<3>> {
        let [batch, found @ ..] = tokens.dims();
        if found != [from.area(), self.config.input_dim] {
            let expected = format!("[batch, {}, {}]", from.area(), self.config.input_dim);
            return Err(Error::shape("tokens of the scale before", expected, [batch, found[0], found[1]]));
        }
        let x = within(nn::apply(&self.input_proj, within(tokens, 10.0)), 3.0);
        if let Some(dropout) = &dropout
            && dropout.rngs.len() != batch
        {
            let expected = format!("[{batch}]");
            return Err(Error::shape("random streams of the injector's dropout", expected, [dropout.rngs.len()]));
        }
        let positions = Self::positions(to.area(), self.config.embed_dim, &x.device());
        let x = within(self.resize(x, from, to) + positions, 3.0);
        let x = self.encoder.layers.iter().fold(x, |x, layer| layer.forward(x, &mut dropout));
        let x = within(nn::apply(&self.output_proj, x), 3.0);
        let map = within(self.final_norm.forward(x), 2.0);
        Ok(match self.config.broadcast {
            true => map.mean_dim(1).repeat_dim(1, to.area()),
            false => map,
        })
    }

    /// Resizes `[batch, tokens, width]` from one map size to another.
    fn resize(&self, x: Tensor<3>, from: MapSize, to: MapSize) -> Tensor<3> {
        if from == to {
            return x;
        }
        let [batch, _, width] = x.dims();
        let channels = transpose(x); // [batch, width, tokens]
        let resize = if to.area() > from.area() { Resize::Bilinear } else { Resize::Area };
        let resized = match self.config.resize {
            InjectorResize::Flat1d if from.area() == to.area() => channels,
            InjectorResize::Flat1d => resize.apply_1d(channels, to.area()),
            InjectorResize::Spatial => {
                let map = channels.reshape([batch, width, from.height, from.width]);
                resize.apply(map, to).flatten::<3>(2, 3)
            }
        };
        transpose(resized)
    }

    /// Returns the position embedding: a hundredth of the sinusoids over the row-major sequence, `[1, tokens, width]`.
    pub fn positions(tokens: usize, width: usize, device: &Device) -> Tensor<3> {
        static TABLES: Constants<(usize, usize), 3> = Constants::new();
        TABLES.get((tokens, width), device, || {
            let mut values = vec![0.0f32; tokens * width];
            for even in (0..width).step_by(2) {
                // Every token turns by the same angle: two sines per channel in place of one per value.
                let (sin, cos) = (-(10_000f64.ln()) * even as f64 / width as f64).exp().sin_cos();
                let mut at = (0.0, 1.0);
                for token in values.chunks_exact_mut(width) {
                    token[even] = (0.01 * at.0) as f32;
                    if let Some(odd) = token.get_mut(even + 1) {
                        *odd = (0.01 * at.1) as f32;
                    }
                    at = (at.0 * cos + at.1 * sin, at.1 * cos - at.0 * sin);
                }
            }
            (values, [1, tokens, width])
        })
    }
}

/// Clamps values to `[-bound, bound]`; no gradient passes a value that was out of bounds.
fn within<const D: usize>(x: Tensor<D>, bound: f64) -> Tensor<D> {
    x.clamp(-bound, bound)
}

/// Dropout of an [`Injector`] in training. The draws for image `i` come from stream `i`, on the host.
#[derive(Debug, Clone)]
pub struct InjectorDropout {
    /// Share of values that are dropped, in `[0, 1)`; [`InjectorConfig::DROPOUT`] in the papers.
    pub rate: f64,
    /// One random stream per image of the batch.
    pub rngs: Vec<Rng>,
}

/// Sets some values of `[batch, ..]` to zero and makes the others larger by as much; changes nothing without dropout.
fn drop_values<const D: usize>(x: Tensor<D>, dropout: &mut Option<&mut InjectorDropout>) -> Tensor<D> {
    let Some(InjectorDropout { rate, rngs }) = dropout else { return x };
    let keep = 1.0 - *rate;
    let factor = (1.0 / keep) as f32;
    let shape = x.dims();
    let count: usize = shape[1..].iter().product();
    let mut factors = Vec::with_capacity(rngs.len() * count);
    for rng in rngs {
        factors.extend((0..count).map(|_| if rng.uniform() < keep { factor } else { 0.0 }));
    }
    let device = x.device();
    x * Tensor::from_data(TensorData::new(factors, shape), &device)
}
