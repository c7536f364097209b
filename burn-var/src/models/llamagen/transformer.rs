//! The LlamaGen transformer, conditioned on a class (`autoregressive/models/gpt.py` of its code).

use burn::module::Module;
use burn::nn::{Embedding, Linear};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::block::{Layer, RmsNorm};
use super::lora::LlamaGenLora;
use crate::error::require_positive;
use crate::generation::{Condition, NextScale, ScaleInput, State, TeacherForced, TeacherInput, Vocabulary};
use crate::guidance::Schedule;
use crate::init::{Init, initialize};
use crate::math::Constants;
use crate::models::common::KvCache;
use crate::models::common::attention::Context;
use crate::models::common::dropout::dropout;
use crate::models::common::trunk::embed_classes;
use crate::ops::Sight;
use crate::rng::Rng;
use crate::scales::ScaleAt;
use crate::{Error, MapSize, Result, Scales, nn, ops};

/// Sizes of a [`LlamaGen`]. Fields are named as in the authors' code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlamaGenConfig {
    /// Width.
    pub dim: usize,
    /// Number of layers.
    pub n_layer: usize,
    /// Heads of queries; must divide the width into heads of a multiple of 4 channels.
    pub n_head: usize,
    /// Heads of keys and values, a divisor of `n_head`; `n_head` if absent, as in all published models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_kv_head: Option<usize>,
    /// Hidden width of the feed-forward; see [`LlamaGenConfig::ffn_hidden`].
    pub ffn_hidden: usize,
    /// Epsilon of the norms.
    #[serde(default = "default_norm_eps")]
    pub norm_eps: f64,
    /// Base of the frequencies of rotary positions.
    #[serde(default = "default_rope_base")]
    pub rope_base: f64,
    /// Number of codes.
    pub vocab_size: usize,
    /// Number of classes, the null class not counted.
    pub num_classes: usize,
    /// Default scale schedule, a raster. The weights serve rasters of any size.
    pub patch_nums: Scales,
    /// Share of the values of token embeddings that is dropped in training.
    #[serde(default = "default_dropout")]
    pub token_dropout_p: f64,
    /// Share of the values that attention adds.
    #[serde(default = "default_dropout")]
    pub resid_dropout_p: f64,
    /// Share of the values that the feed-forward adds.
    #[serde(default = "default_dropout")]
    pub ffn_dropout_p: f64,
    /// Drop path rate of the last layer, for training; it rises linearly from 0 at the first. The authors use either this or
    /// the dropout of attention and feed-forward.
    #[serde(default)]
    pub drop_path_rate: f64,
}

fn default_norm_eps() -> f64 {
    1e-5
}

fn default_rope_base() -> f64 {
    10000.0
}

fn default_dropout() -> f64 {
    0.1
}

impl LlamaGenConfig {
    /// Creates the sizes of a transformer with the authors' other settings.
    pub fn new(dim: usize, n_layer: usize, n_head: usize, patch_nums: Scales) -> Self {
        Self {
            dim,
            n_layer,
            n_head,
            n_kv_head: None,
            ffn_hidden: Self::ffn_hidden(dim, 256),
            norm_eps: default_norm_eps(),
            rope_base: default_rope_base(),
            vocab_size: 16384,
            num_classes: 1000,
            patch_nums,
            token_dropout_p: default_dropout(),
            resid_dropout_p: default_dropout(),
            ffn_dropout_p: default_dropout(),
            drop_path_rate: 0.0,
        }
    }

    /// Returns the hidden width of the feed-forward in the authors' code: 8/3 of the width, rounded up to a multiple of
    /// `multiple_of`, which is 256.
    pub fn ffn_hidden(dim: usize, multiple_of: usize) -> usize {
        (8 * dim / 3).next_multiple_of(multiple_of.max(1))
    }

    /// Returns the number of heads of keys and values.
    pub fn kv_heads(&self) -> usize {
        self.n_kv_head.unwrap_or(self.n_head)
    }

    /// Returns the channels of a head.
    pub fn head_dim(&self) -> usize {
        self.dim / self.n_head.max(1)
    }

    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field, what it is, and what would be accepted.
    pub fn validate(&self) -> Result<()> {
        require_positive(&[
            ("dim", self.dim),
            ("n_layer", self.n_layer),
            ("n_head", self.n_head),
            ("n_kv_head", self.kv_heads()),
            ("ffn_hidden", self.ffn_hidden),
            ("vocab_size", self.vocab_size),
            ("num_classes", self.num_classes),
        ])?;
        if !self.dim.is_multiple_of(self.n_head) || !self.head_dim().is_multiple_of(4) {
            let expected = format!("a divisor of dim {} into heads of a multiple of 4 channels", self.dim);
            return Err(Error::config("n_head", self.n_head, expected));
        }
        if !self.n_head.is_multiple_of(self.kv_heads()) {
            return Err(Error::config("n_kv_head", self.kv_heads(), format!("a divisor of n_head {}", self.n_head)));
        }
        for (name, value) in [("norm_eps", self.norm_eps), ("rope_base", self.rope_base)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::config(name, value, "a positive number"));
            }
        }
        let rates = [
            ("token_dropout_p", self.token_dropout_p),
            ("resid_dropout_p", self.resid_dropout_p),
            ("ffn_dropout_p", self.ffn_dropout_p),
            ("drop_path_rate", self.drop_path_rate),
        ];
        for (name, rate) in rates {
            if !(0.0..1.0).contains(&rate) {
                return Err(Error::config(name, rate, "a fraction in 0..1"));
            }
        }
        raster_size(&self.patch_nums).map(|_| ())
    }

    /// Creates a transformer with the authors' initial weights, drawn from `seed`: normal with a standard deviation of 0.02,
    /// a head of zeros, norms of one.
    ///
    /// # Errors
    /// The errors of [`LlamaGenConfig::validate`].
    pub fn init(&self, seed: u64, device: &Device) -> Result<LlamaGen> {
        Ok(initialize(self.init_zeros(device)?, seed, |param| match param.path {
            "output.weight" => Init::Constant(0.0),
            path if path.ends_with("norm.weight") => Init::Constant(1.0),
            _ => Init::Normal(0.02),
        }))
    }

    /// Creates a transformer whose weights take no memory until they are loaded.
    ///
    /// # Errors
    /// The errors of [`LlamaGenConfig::validate`].
    pub fn init_zeros(&self, device: &Device) -> Result<LlamaGen> {
        self.validate()?;
        Ok(LlamaGen {
            cls_embedding: LabelEmbedding { embedding_table: nn::embedding(self.num_classes + 1, self.dim, device) },
            tok_embeddings: nn::embedding(self.vocab_size, self.dim, device),
            layers: (0..self.n_layer).map(|index| Layer::new(self, index, device)).collect(),
            norm: RmsNorm::new(self, device),
            output: nn::linear(self.dim, self.vocab_size, false, device),
            config: self.clone(),
        })
    }
}

/// Returns the map that a raster walks over.
///
/// # Errors
/// [`Error::Config`] for a schedule of whole maps.
pub(super) fn raster_size(scales: &Scales) -> Result<MapSize> {
    scales.raster_size().ok_or_else(|| {
        Error::config("scale schedule", scales, "a raster, `raster:16` for instance: this model draws token by token")
    })
}

/// Class embedding; the last row is the null class.
#[derive(Module, Debug)]
struct LabelEmbedding {
    embedding_table: Embedding,
}

/// The LlamaGen transformer. Field names are those of the checkpoints.
#[derive(Module, Debug)]
pub struct LlamaGen {
    cls_embedding: LabelEmbedding,
    tok_embeddings: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    output: Linear,
    #[module(skip)]
    config: LlamaGenConfig,
}

impl LlamaGen {
    /// Returns the sizes.
    pub fn config(&self) -> &LlamaGenConfig {
        &self.config
    }

    /// Returns the rotary table of a map, `[1 + tokens, channels of a head]`: cosine and sine of each pair of channels, side
    /// by side. The first half of the pairs turns by the row, the second by the column.
    ///
    /// The first row, that of the class token, is zero: its queries and keys become zero vectors, as in the authors' code.
    /// It attends evenly to what it sees, and others see it with a score of 0.
    pub fn positions(&self, size: MapSize) -> Tensor<2> {
        static TABLES: Constants<(MapSize, usize, u64), 2> = Constants::new();
        let (width, base) = (self.config.head_dim(), self.config.rope_base);
        let device = self.output.weight.val().device();
        TABLES.get((size, width, base.to_bits()), &device, || {
            let pairs = width / 4;
            let frequency = |pair: usize| base.powf(-((4 * pair) as f64) / width as f64);
            let mut table = vec![0.0; width];
            for position in 0..size.area() {
                for axis in [position / size.width, position % size.width] {
                    for pair in 0..pairs {
                        let angle = axis as f64 * frequency(pair);
                        table.extend([angle.cos() as f32, angle.sin() as f32]);
                    }
                }
            }
            (table, [1 + size.area(), width])
        })
    }

    /// Embeds classes as the token before all others, `[batch, 1, dim]`.
    fn class_token(&self, conditions: &[Condition]) -> Result<Tensor<3>> {
        let table = &self.cls_embedding.embedding_table;
        Ok(embed_classes(table, conditions, self.config.num_classes)?.unsqueeze_dim(1))
    }

    /// Computes teacher-forced logits, with low-rank updates beside the weights if there are any.
    pub(super) fn all_logits(
        &self,
        conditions: &[Condition],
        input: TeacherInput,
        scales: &Scales,
        mut noise: Option<&mut [Rng]>,
        lora: Option<&LlamaGenLora>,
    ) -> Result<Tensor<3>> {
        let (ids, size, batch) = (input.ids()?, raster_size(scales)?, conditions.len());
        if ids.dims() != [batch, size.area()] {
            return Err(Error::shape("token ids", format!("[{batch}, {}]", size.area()), ids.dims()));
        }
        if let Some(noise) = noise.as_deref().filter(|noise| noise.len() != batch) {
            return Err(Error::shape("noise", format!("{batch} streams, one per image"), [noise.len()]));
        }
        let before = size.area() - 1;
        let mut x = self.class_token(conditions)?;
        if before > 0 {
            x = Tensor::cat(vec![x, self.tok_embeddings.forward(ids.narrow(1, 0, before))], 1);
        }
        x = dropout(x, self.config.token_dropout_p, noise.as_deref_mut());
        let positions = self.positions(size).narrow(0, 0, size.area());
        let mask = ops::scale_mask(scales, Sight::Causal, &x.device());
        for (index, layer) in self.layers.iter().enumerate() {
            let lora = lora.and_then(|lora| lora.layer(index));
            x = layer.forward(x, &positions, Context::Masked(&mask), lora, noise.as_deref_mut());
        }
        Ok(self.logits(x))
    }

    pub(super) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    pub(super) fn layers_mut(&mut self) -> &mut [Layer] {
        &mut self.layers
    }

    fn logits(&self, x: Tensor<3>) -> Tensor<3> {
        nn::apply(&self.output, self.norm.forward(x))
    }
}

/// State of a batch of a [`LlamaGen`].
#[derive(Debug, Clone)]
pub struct LlamaGenState {
    /// Class token, `[batch, 1, dim]`.
    class: Tensor<3>,
    /// Rotary table of all tokens.
    positions: Tensor<2>,
    caches: Vec<KvCache>,
}

impl State for LlamaGenState {
    fn sequences(&self) -> usize {
        self.class.dims()[0]
    }

    fn keep_first(self, count: usize) -> Self {
        Self {
            class: self.class.narrow(0, 0, count),
            caches: self.caches.into_iter().map(|cache| cache.keep_first(count)).collect(),
            ..self
        }
    }

    fn detach(&mut self) {
        self.caches.iter_mut().for_each(KvCache::detach);
    }
}

impl NextScale for LlamaGen {
    type State = LlamaGenState;

    fn scales(&self) -> &Scales {
        &self.config.patch_nums
    }

    fn vocabulary(&self) -> Vocabulary {
        Vocabulary::codes(self.config.vocab_size)
    }

    fn num_classes(&self) -> usize {
        self.config.num_classes
    }

    /// Accepts any raster: positions are row and column numbers.
    fn check_scales(&self, scales: &Scales) -> Result<()> {
        raster_size(scales).map(|_| ())
    }

    fn start(&self, conditions: &[Condition], scales: &Scales) -> Result<LlamaGenState> {
        Ok(LlamaGenState {
            class: self.class_token(conditions)?,
            positions: self.positions(raster_size(scales)?),
            caches: vec![KvCache::new(scales.tokens()); self.layers.len()],
        })
    }

    /// Embeds the token before; the class, before the first.
    fn embed(&self, state: &LlamaGenState, _at: ScaleAt<'_>, input: ScaleInput<'_>) -> Tensor<3> {
        match input.ids {
            Some(ids) => self.tok_embeddings.forward(ids.clone()),
            None => state.class.clone(),
        }
    }

    fn step(&self, state: &mut LlamaGenState, at: ScaleAt<'_>, hidden: Tensor<3>) -> Tensor<3> {
        let range = at.range();
        let positions = state.positions.clone().narrow(0, range.start, range.len());
        let mut x = hidden;
        for (layer, cache) in self.layers.iter().zip(&mut state.caches) {
            x = layer.forward(x, &positions, Context::Cached(cache), None, None);
        }
        self.logits(x)
    }
}

impl TeacherForced for LlamaGen {
    fn teacher_forced(
        &self,
        conditions: &[Condition],
        input: impl Into<TeacherInput>,
        scales: &Scales,
        noise: Option<&mut [Rng]>,
    ) -> Result<Tensor<3>> {
        self.all_logits(conditions, input.into(), scales, noise, None)
    }

    fn cfg(strength: f64) -> Schedule {
        Schedule::Constant(strength)
    }
}
