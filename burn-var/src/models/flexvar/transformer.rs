//! The FlexVAR transformer (`models/flexvar.py` of its code): VAR's blocks, over a table of positions that is resized to
//! each scale.
#![allow(non_snake_case, reason = "fields bear the checkpoints' names")]

use burn::module::{Module, Param};
use burn::nn::{Embedding, Linear};
use burn::tensor::{Bool, Device, Int, Tensor};
use serde::{Deserialize, Serialize};

use super::first_scale::{FirstScale, SeenScales, Unmasking, check_masked};
use crate::error::require_positive;
use crate::generation::{Condition, NextScale, ScaleInput, State, TeacherForced, TeacherInput, Vocabulary};
use crate::init::{Init, initialize};
use crate::math::Resize;
use crate::models::common::trunk::{check_teacher_input, embed_classes};
use crate::models::common::{Block, BlockSizes, BlockStack, HeadNorm, Lora, LoraTarget, StackState, VarInit};
use crate::ops::Sight;
use crate::rng::Rng;
use crate::scales::ScaleAt;
use crate::{Error, MapSize, Result, Scales, nn, ops};

/// Side of the table of positions in the published models.
pub(super) const POSITIONS: usize = 32;

/// Sizes of a [`FlexVar`]. Fields are named as in the authors' code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlexVarConfig {
    /// Number of blocks.
    pub depth: usize,
    /// Width C; in the published models 64 times the depth.
    pub embed_dim: usize,
    /// Attention heads; must divide the width.
    pub num_heads: usize,
    /// Hidden width of the feed-forward, as a multiple of the width.
    #[serde(default = "default_mlp_ratio")]
    pub mlp_ratio: f64,
    /// Epsilon of the layer norms.
    #[serde(default = "default_norm_eps")]
    pub norm_eps: f64,
    /// Shares one adaptive norm projection among all blocks.
    #[serde(default)]
    pub shared_aln: bool,
    /// Normalizes queries and keys to unit length, with a learned scale per head.
    #[serde(default = "default_attn_l2_norm")]
    pub attn_l2_norm: bool,
    /// Number of codes.
    pub vocab_size: usize,
    /// Channels of a code.
    pub z_channels: usize,
    /// Number of classes, the null class not counted.
    pub num_classes: usize,
    /// Default scale schedule. The weights depend on none.
    pub patch_nums: Scales,
    /// Side of the learned table of positions.
    #[serde(default = "default_positions")]
    pub positions: usize,
    /// Drop path rate of the last block, for training; it rises linearly from 0 at the first. 0.1 * depth / 24 in the
    /// published recipes.
    #[serde(default)]
    pub drop_path_rate: f64,
    /// Prediction of the first scale: masked in the hybrid of SAR's pre-study.
    #[serde(default, skip_serializing_if = "is_default")]
    pub first: FirstScale,
    /// Tokens that a scale sees besides its own.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sees: SeenScales,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn default_mlp_ratio() -> f64 {
    4.0
}

fn default_norm_eps() -> f64 {
    1e-6
}

fn default_attn_l2_norm() -> bool {
    true
}

fn default_positions() -> usize {
    POSITIONS
}

impl FlexVarConfig {
    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// [`crate::Error::Config`] naming the field, what it is, and what would be accepted.
    pub fn validate(&self) -> Result<()> {
        require_positive(&[
            ("vocab_size", self.vocab_size),
            ("z_channels", self.z_channels),
            ("num_classes", self.num_classes),
            ("positions", self.positions),
        ])?;
        match self.first {
            FirstScale::Masked(_) => check_masked(&self.patch_nums, None)?,
            FirstScale::OneShot if self.sees == SeenScales::ClassTokenReleased => {
                return Err(Error::config("sees", "class-token-released", "class-token, or a masked first scale"));
            }
            FirstScale::OneShot => {}
        }
        self.blocks().validate(self.mlp_ratio)
    }

    /// Creates a transformer with the authors' initial weights, drawn from `seed`.
    ///
    /// # Errors
    /// The errors of [`FlexVarConfig::validate`].
    pub fn init(&self, start: VarInit, seed: u64, device: &Device) -> Result<FlexVar> {
        let sizes = self.blocks();
        Ok(initialize(self.init_zeros(device)?, seed, |param| match param.path {
            "pos_1LC" => Init::Values(sinusoid(self.embed_dim, self.positions)),
            _ => start.of(&sizes, param),
        }))
    }

    /// Creates a transformer whose weights take no memory until they are loaded.
    ///
    /// # Errors
    /// The errors of [`FlexVarConfig::validate`].
    pub fn init_zeros(&self, device: &Device) -> Result<FlexVar> {
        self.validate()?;
        let (width, sizes) = (self.embed_dim, self.blocks());
        let token = || nn::zeros([1, 1, width], device);
        let [pos_start, mask_token, randar_pos_embed] = match self.first {
            FirstScale::OneShot => [Some(token()), None, None],
            FirstScale::Masked(masked) => {
                let tokens = self.patch_nums.size(0).area();
                [None, Some(token()), masked.own_positions.then(|| nn::zeros([1, tokens, width], device))]
            }
        };
        Ok(FlexVar {
            word_embed: nn::linear(self.z_channels, width, true, device),
            class_emb: nn::embedding(self.num_classes + 1, width, device),
            pos_start,
            mask_token,
            randar_pos_embed,
            pos_1LC: nn::zeros([1, width, self.positions, self.positions], device),
            shared_ada_lin: self.shared_aln.then(|| nn::linear(width, 6 * width, true, device)),
            blocks: Block::stack(&sizes, device),
            head_nm: HeadNorm::new(&sizes, device),
            head: nn::linear(width, self.vocab_size, true, device),
            config: self.clone(),
        })
    }

    fn blocks(&self) -> BlockSizes {
        BlockSizes {
            depth: self.depth,
            width: self.embed_dim,
            heads: self.num_heads,
            hidden: BlockSizes::hidden(self.embed_dim, self.mlp_ratio),
            norm_eps: self.norm_eps,
            shared_aln: self.shared_aln,
            attn_l2_norm: self.attn_l2_norm,
            drop_path_rate: self.drop_path_rate,
        }
    }
}

/// Returns the initial table of positions, `[1, width, side, side]`: `sin(y w_j)` in channel 2j and `cos(x w_j)` in channel
/// 2j + 1, with `w_j = 10000^(-2j / width)`. Not the usual two-dimensional sinusoid, which has both of each; training
/// changes it.
fn sinusoid(width: usize, side: usize) -> Vec<f32> {
    let mut table = Vec::with_capacity(width * side * side);
    for channel in 0..width {
        let frequency = 10000f64.powf(-((channel / 2 * 2) as f64) / width as f64);
        for y in 0..side {
            for x in 0..side {
                let value = match channel % 2 {
                    0 => (y as f64 * frequency).sin(),
                    _ => (x as f64 * frequency).cos(),
                };
                table.push(value as f32);
            }
        }
    }
    table
}

/// The FlexVAR transformer. Field names are those of the checkpoints.
#[derive(Module, Debug)]
pub struct FlexVar {
    word_embed: Linear,
    class_emb: Embedding,
    /// Added to the class embedding where it is the input of a one-shot first scale.
    pos_start: Option<Param<Tensor<3>>>,
    /// Input of the masked tokens of a masked first scale.
    mask_token: Option<Param<Tensor<3>>>,
    /// A masked first scale's own table of positions, `[1, tokens, width]`.
    randar_pos_embed: Option<Param<Tensor<3>>>,
    /// Table of positions, `[1, width, positions, positions]`.
    pos_1LC: Param<Tensor<4>>,
    shared_ada_lin: Option<Linear>,
    blocks: Vec<Block>,
    head_nm: HeadNorm,
    head: Linear,
    #[module(skip)]
    config: FlexVarConfig,
}

impl FlexVar {
    /// Returns the sizes.
    pub fn config(&self) -> &FlexVarConfig {
        &self.config
    }

    /// Returns the positions of a token map, `[1, tokens, width]`: the table, area-resized to its size.
    pub fn positions(&self, size: MapSize) -> Tensor<3> {
        ops::transpose(Resize::Area.apply(self.pos_1LC.val(), size).flatten::<3>(2, 3))
    }

    /// Computes the logits of scales from their inputs and the class token alone, `[batch, L, vocab_size]`: no scale sees
    /// another. This is the pass over the model's own predictions in the released code of SAR.
    ///
    /// `input` is `[batch, L, z_channels]`. Without a masked first scale, the class token has a position, but not the start
    /// embedding: unlike generation, in both. With [`SeenScales::ClassTokenReleased`] it sees all scales.
    ///
    /// # Errors
    /// The errors of [`TeacherForced::teacher_forced`].
    pub fn class_and_scales(
        &self,
        conditions: &[Condition],
        input: Tensor<3>,
        scales: &Scales,
        noise: Option<&mut [Rng]>,
    ) -> Result<Tensor<3>> {
        let sequence = behind_class(scales)?;
        check_teacher_input(conditions.len(), &sequence, &input, self.config.z_channels, noise.as_deref())?;
        let stack = self.start_stack(conditions, sequence.tokens())?;
        let mut class = class_token(&stack);
        if self.mask_token.is_none() {
            class = class + self.positions(MapSize::square(1));
        }
        let positions = scales.sizes().iter().map(|size| self.positions(*size)).collect();
        let x = nn::apply(&self.word_embed, input) + Tensor::cat(positions, 1);
        let x = Tensor::cat(vec![class, x], 1);
        let sight = match self.config.sees {
            SeenScales::ClassTokenReleased => Sight::FirstSeesAll,
            SeenScales::Before | SeenScales::ClassToken => Sight::FirstAndOwn,
        };
        let mask = ops::scale_mask(&sequence, sight, &x.device());
        let logits = self.stack().teacher_forced(&stack, x, &mask, noise);
        Ok(logits.narrow(1, 1, scales.tokens()))
    }

    /// Computes teacher-forced logits of a model with a masked first scale, some of whose tokens are known, `[batch, L,
    /// vocab_size]`.
    ///
    /// `codes` has the code vectors of all scales, `[batch, L, z_channels]`: the true ones of the first scale, then the
    /// inputs of the others. `masked`, `[batch, tokens of the first scale]`, is true for the tokens that are not known. The
    /// schedule has one map of the first size.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a model with a one-shot first scale; else the errors of
    /// [`TeacherForced::teacher_forced`].
    pub fn masked_teacher_forced(
        &self,
        conditions: &[Condition],
        codes: Tensor<3>,
        masked: Tensor<2, Bool>,
        scales: &Scales,
        noise: Option<&mut [Rng]>,
    ) -> Result<Tensor<3>> {
        let sequence = behind_class(scales)?;
        check_teacher_input(conditions.len(), &sequence, &codes, self.config.z_channels, noise.as_deref())?;
        let expected = [conditions.len(), scales.size(0).area()];
        if masked.dims() != expected {
            return Err(Error::shape("masked", format!("{expected:?}, the tokens of the first scale"), masked.dims()));
        }
        let Some(mask_token) = &self.mask_token else {
            let hint = "this model predicts the first scale in one shot, as `first` of its configuration says";
            return Err(Error::unsupported("a masked first scale", hint));
        };
        self.check_scales(scales)?;
        if scales.first_repeats() > 1 {
            return Err(Error::config("scale schedule", scales, "one map of the first size: training has no steps"));
        }
        let state = self.start(conditions, scales)?;
        let first = expected[1];
        let x = nn::apply(&self.word_embed, codes);
        let known = x.clone().narrow(1, 0, first);
        let mut parts = vec![mask_tokens(mask_token, known, masked.bool_not())];
        if scales.len() > 1 {
            parts.push(x.narrow(1, first, scales.tokens() - first));
        }
        let x = Tensor::cat(parts, 1) + state.positions;
        let x = Tensor::cat(vec![class_token(&state.stack), x], 1);
        let mask = ops::scale_mask(&sequence, self.config.sees.sight(), &x.device());
        let logits = self.stack().teacher_forced(&state.stack, x, &mask, noise);
        Ok(logits.narrow(1, 1, scales.tokens()))
    }

    /// Returns the positions of a scale, `[1, tokens, width]`.
    fn positions_at(&self, at: ScaleAt<'_>) -> Tensor<3> {
        match &self.randar_pos_embed {
            Some(own) if at.k() < at.scales().first_repeats() => own.val(),
            _ => self.positions(at.size()),
        }
    }

    fn start_stack(&self, conditions: &[Condition], tokens: usize) -> Result<StackState> {
        let condition = embed_classes(&self.class_emb, conditions, self.config.num_classes)?;
        Ok(self.stack().start(condition, tokens))
    }

    /// Returns the tokens of a one-shot first scale without positions, `[batch, tokens, width]`: class embedding plus start
    /// embedding, the same for each of them.
    fn start_tokens(&self, start: &Param<Tensor<3>>, state: &FlexVarState, tokens: usize) -> Tensor<3> {
        let token = class_token(&state.stack) + start.val();
        if tokens == 1 { token } else { token.repeat_dim(1, tokens) }
    }

    fn stack(&self) -> BlockStack<'_> {
        BlockStack {
            blocks: &self.blocks,
            shared_ada_lin: self.shared_ada_lin.as_ref(),
            head_nm: &self.head_nm,
            head: &self.head,
            norm_eps: self.config.norm_eps,
        }
    }
}

/// Replaces embedded tokens, `[batch, tokens, width]`, by the mask token where they are not known.
fn mask_tokens(mask_token: &Param<Tensor<3>>, tokens: Tensor<3>, known: Tensor<2, Bool>) -> Tensor<3> {
    let shape = tokens.dims();
    mask_token.val().expand(shape).mask_where(known.unsqueeze_dim::<3>(2).expand(shape), tokens)
}

/// Returns the class embeddings as tokens, `[batch, 1, width]`.
fn class_token(stack: &StackState) -> Tensor<3> {
    stack.condition.clone().unsqueeze_dim(1)
}

/// Returns the schedule of a sequence that begins with the class token, as a map of its own.
fn behind_class(scales: &Scales) -> Result<Scales> {
    Scales::new([&[MapSize::square(1)], scales.sizes()].concat())
}

/// State of a batch of a [`FlexVar`].
#[derive(Debug, Clone)]
pub struct FlexVarState {
    /// Positions of all scales, `[1, L, width]`.
    positions: Tensor<3>,
    stack: StackState,
    /// Progress of a masked first scale.
    unmasking: Option<Unmasking>,
}

impl FlexVarState {
    /// Sets the order in which the tokens of a masked first scale are unmasked, `[images, tokens]`: the rank of each token,
    /// from 0. Without it, a random order is drawn for each image.
    #[must_use]
    pub fn with_order(mut self, order: Tensor<2, Int>) -> Self {
        if let Some(unmasking) = &mut self.unmasking {
            unmasking.set_order(order);
        }
        self
    }
}

impl State for FlexVarState {
    fn sequences(&self) -> usize {
        self.stack.sequences()
    }

    fn keep_first(self, count: usize) -> Self {
        Self { stack: self.stack.keep_first(count), ..self }
    }

    fn detach(&mut self) {
        self.stack.detach();
    }
}

impl NextScale for FlexVar {
    type State = FlexVarState;

    fn scales(&self) -> &Scales {
        &self.config.patch_nums
    }

    fn vocabulary(&self) -> Vocabulary {
        Vocabulary::codes(self.config.vocab_size)
    }

    fn num_classes(&self) -> usize {
        self.config.num_classes
    }

    fn code_embedding(&self) -> Option<&Linear> {
        Some(&self.word_embed)
    }

    /// Accepts any schedule, since positions are resized to each scale; a masked first scale has at most as many steps as
    /// tokens, and the size of its own table of positions if it has one.
    fn check_scales(&self, scales: &Scales) -> Result<()> {
        match self.config.first {
            FirstScale::OneShot => Ok(()),
            FirstScale::Masked(masked) => {
                check_masked(scales, masked.own_positions.then(|| self.config.patch_nums.size(0).area()))
            }
        }
    }

    fn start(&self, conditions: &[Condition], scales: &Scales) -> Result<FlexVarState> {
        let unmasking = match self.config.first {
            FirstScale::OneShot => None,
            FirstScale::Masked(masked) => Some(Unmasking::new(masked, scales)),
        };
        let stack = self.start_stack(conditions, 1 + scales.tokens())?;
        let positions = scales.iter().map(|at| self.positions_at(at)).collect();
        Ok(FlexVarState { positions: Tensor::cat(positions, 1), stack, unmasking })
    }

    fn embed(&self, state: &FlexVarState, at: ScaleAt<'_>, input: ScaleInput<'_>) -> Tensor<3> {
        let range = at.range();
        let positions = state.positions.clone().narrow(1, range.start, range.len());
        let sequences = state.sequences();
        let codes = nn::apply(&self.word_embed, ops::transpose(input.map.flatten::<3>(2, 3)));
        let known = state.unmasking.as_ref().and_then(|unmasking| unmasking.unmasked(at.k()));
        let tokens = match (&self.pos_start, &self.mask_token, known) {
            (Some(start), ..) if at.is_first() => self.start_tokens(start, state, range.len()),
            (_, Some(mask_token), None) if at.is_first() => mask_token.val().expand(codes.dims()),
            (_, Some(mask_token), Some(known)) => {
                let branches = sequences / known.dims()[0];
                mask_tokens(mask_token, codes, known.repeat_dim(0, branches))
            }
            _ => codes,
        };
        tokens + positions
    }

    fn step(&self, state: &mut FlexVarState, at: ScaleAt<'_>, hidden: Tensor<3>) -> Tensor<3> {
        let (sees, stack) = (self.config.sees, &mut state.stack);
        let Some(unmasking) = &state.unmasking else {
            if sees == SeenScales::ClassToken && !at.is_first() {
                stack.truncate(at.scales().size(0).area());
            }
            return self.stack().step(stack, hidden);
        };
        if sees == SeenScales::ClassTokenReleased {
            stack.truncate(0);
            let tokens = hidden.dims()[1];
            let logits = self.stack().step(stack, Tensor::cat(vec![class_token(stack), hidden], 1));
            return logits.narrow(1, 1, tokens);
        }
        if at.is_first() {
            let class = class_token(stack);
            self.stack().step(stack, class);
        } else if sees == SeenScales::ClassToken || unmasking.is_step(at.k()) {
            stack.truncate(1);
        }
        self.stack().step(stack, hidden)
    }

    fn kept(&self, state: &mut FlexVarState, at: ScaleAt<'_>, rngs: &mut [Rng]) -> Result<Option<Tensor<2, Bool>>> {
        let device = state.positions.device();
        Ok(state.unmasking.as_mut().and_then(|unmasking| unmasking.kept(at.k(), rngs, &device)))
    }
}

impl TeacherForced for FlexVar {
    /// Computes the logits of all scales; all tokens of a masked first scale are masked.
    fn teacher_forced(
        &self,
        conditions: &[Condition],
        input: impl Into<TeacherInput>,
        scales: &Scales,
        noise: Option<&mut [Rng]>,
    ) -> Result<Tensor<3>> {
        let input = input.into();
        if self.pos_start.is_some() {
            return self.teacher_forced_from(&self.start(conditions, scales)?, input, scales, noise);
        }
        let (input, z_channels) = (input.codes, self.config.z_channels);
        check_teacher_input(conditions.len(), scales, &input, z_channels, noise.as_deref())?;
        let first = [conditions.len(), scales.size(0).area()];
        let unknown = Tensor::zeros([first[0], first[1], z_channels], &input.device());
        let masked = Tensor::<2>::ones(first, &input.device()).greater_elem(0.5);
        self.masked_teacher_forced(conditions, Tensor::cat(vec![unknown, input], 1), masked, scales, noise)
    }
}

impl LoraTarget for FlexVar {
    fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    fn blocks_mut(&mut self) -> &mut [Block] {
        &mut self.blocks
    }

    fn adapt(state: &mut FlexVarState, lora: Lora) {
        state.stack.adapt(lora);
    }

    fn teacher_forced_from(
        &self,
        state: &FlexVarState,
        input: TeacherInput,
        scales: &Scales,
        noise: Option<&mut [Rng]>,
    ) -> Result<Tensor<3>> {
        let Some(start) = &self.pos_start else {
            let hint = "adapt a model that predicts the first scale in one shot";
            return Err(Error::unsupported("a LoRA of a model with a masked first scale", hint));
        };
        let input = input.codes;
        check_teacher_input(state.sequences(), scales, &input, self.config.z_channels, noise.as_deref())?;
        let start = self.start_tokens(start, state, scales.size(0).area());
        let x = match scales.len() {
            1 => start,
            _ => Tensor::cat(vec![start, nn::apply(&self.word_embed, input)], 1),
        };
        let x = x + state.positions.clone();
        let mask = ops::scale_mask(scales, self.config.sees.sight(), &x.device());
        Ok(self.stack().teacher_forced(&state.stack, x, &mask, noise))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::flexvar::{FlexVarPreset, MaskedFirst};

    #[test]
    fn published_sizes_have_their_number_of_parameters() {
        let counts = [315.6, 607.5, 1041.3];
        for (preset, millions) in FlexVarPreset::ALL.into_iter().zip(counts) {
            let model = preset.config().init_zeros(&Device::flex()).unwrap();
            let found = crate::weights::export(&model, &<FlexVar as crate::weights::Pretrained>::keys(model.config()));
            let found = found.unwrap();
            let count: usize = found.keys().map(|key| found.shape(key).unwrap().iter().product::<usize>()).sum();
            assert_eq!((count as f64 / 1e5).round() / 10.0, millions, "million parameters of {}", preset.name());
        }
    }

    fn tiny(first: FirstScale, sees: SeenScales, sides: &[usize]) -> FlexVar {
        let config = FlexVarConfig {
            depth: 2,
            embed_dim: 12,
            num_heads: 2,
            vocab_size: 7,
            z_channels: 3,
            num_classes: 4,
            patch_nums: Scales::square(sides).unwrap(),
            positions: 5,
            first,
            sees,
            ..FlexVarPreset::D16.config()
        };
        initialize(config.init_zeros(&Device::default()).unwrap(), 1, |_| Init::Normal(0.4))
    }

    fn noise(shape: [usize; 3], purpose: &str) -> Tensor<3> {
        let mut rng = Rng::new(5, purpose, 0);
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal() as f32).collect();
        Tensor::from_data(burn::tensor::TensorData::new(values, shape), &Device::default())
    }

    /// Runs the steps of generation over given maps, `codes` being those of all scales: logits of each.
    fn step_by_step(model: &FlexVar, codes: &Tensor<3>, order: Option<&Tensor<2, Int>>) -> Vec<Tensor<3>> {
        let scales = model.scales();
        let steps = scales.first_repeats();
        let conditions = Condition::classes(&[3, 0]);
        let mut state = model.start(&conditions, scales).unwrap();
        if let Some(order) = order {
            state = state.with_order(order.clone());
        }
        let single = scales.without_repeats();
        let at_step = |at: ScaleAt<'_>| {
            let MapSize { height, width } = at.size();
            let range = single.range((at.k() + 1).saturating_sub(steps));
            let map = codes.clone().narrow(1, range.start, range.len());
            let map = ops::transpose(map).reshape([2, 3, height, width]);
            let hidden = model.embed(&state, at, ScaleInput { map, ids: None });
            model.step(&mut state, at, hidden)
        };
        scales.iter().map(at_step).collect()
    }

    fn close(found: Tensor<3>, expected: Tensor<3>, what: &str) {
        let apart: f32 = (found - expected).abs().max().into_scalar();
        assert!(apart < 2e-5, "{what}: {apart}");
    }

    #[test]
    fn generation_agrees_with_training_whatever_scales_see() {
        for sees in [SeenScales::Before, SeenScales::ClassToken] {
            let model = tiny(FirstScale::OneShot, sees, &[2, 3, 4]);
            let codes = noise([2, 29, 3], "codes");
            let found = Tensor::cat(step_by_step(&model, &codes, None), 1);
            let input = codes.narrow(1, 4, 25);
            let conditions = Condition::classes(&[3, 0]);
            let expected = model.teacher_forced(&conditions, input.clone(), model.scales(), None).unwrap();
            close(found, expected.clone(), "one-shot");
            // The second scale's input, changed, reaches the third only through attention.
            let other = Tensor::cat(vec![noise([2, 9, 3], "other"), input.narrow(1, 9, 16)], 1);
            let other = model.teacher_forced(&conditions, other, model.scales(), None).unwrap();
            let apart: f32 = (other - expected).narrow(1, 13, 16).abs().max().into_scalar();
            assert_eq!(apart > 1e-3, sees == SeenScales::Before, "{sees:?}: {apart}");
        }
        for (sees, own_positions) in [(SeenScales::Before, true), (SeenScales::ClassToken, false)] {
            let masked = FirstScale::Masked(MaskedFirst { own_positions, rewrite: false });
            let model = tiny(masked, sees, &[2, 2, 2, 3, 4]);
            let codes = noise([2, 29, 3], "codes");
            let order = Tensor::<2, Int>::from_ints([[2, 0, 3, 1], [1, 3, 0, 2]], &Device::default());
            let found = step_by_step(&model, &codes, Some(&order));
            let scales = model.scales().without_repeats();
            let known = [&[0], &MaskedFirst::unmasked(4, 3)[..2]].concat();
            for (step, known) in known.into_iter().enumerate() {
                let masked = order.clone().greater_equal_elem(known as i64);
                let conditions = Condition::classes(&[3, 0]);
                let expected = model.masked_teacher_forced(&conditions, codes.clone(), masked, &scales, None).unwrap();
                close(found[step].clone(), expected.clone().narrow(1, 0, 4), "a step of the first scale");
                if step == 2 {
                    let behind = Tensor::cat(found[3..].to_vec(), 1);
                    close(behind, expected.narrow(1, 4, 25), "scales that see the last step's");
                }
            }
        }
    }

    #[test]
    fn unmasked_tokens_stay_unless_they_are_rewritten() {
        for rewrite in [false, true] {
            let masked = FirstScale::Masked(MaskedFirst { own_positions: false, rewrite });
            let model = tiny(masked, SeenScales::Before, &[3, 3, 3, 3, 4]);
            let mut state = model.start(&Condition::classes(&[1, 2]), model.scales()).unwrap();
            let mut rngs = vec![Rng::new(1, "order", 0), Rng::new(1, "order", 1)];
            let mut kept = Vec::new();
            for at in model.scales().iter() {
                let tokens = model.kept(&mut state, at, &mut rngs).unwrap();
                kept.push(tokens.map(|tokens| tokens.int().sum_dim(1).try_into_vec_as::<i64>().unwrap()));
            }
            let after = MaskedFirst::unmasked(9, 4);
            let expected = |k: usize| (!rewrite).then(|| vec![after[k] as i64; 2]);
            assert_eq!(kept, [None, expected(0), expected(1), expected(2), None], "rewrite: {rewrite}");
        }
        let model = tiny(FirstScale::OneShot, SeenScales::Before, &[3, 3]);
        let mut state = model.start(&Condition::classes(&[1]), model.scales()).unwrap();
        assert!(model.kept(&mut state, model.scales().at(1), &mut []).unwrap().is_none(), "one-shot");
    }

    #[test]
    fn schedules_that_do_not_fit_a_masked_first_scale_are_refused() {
        let masked = FirstScale::Masked(MaskedFirst { own_positions: true, rewrite: false });
        let model = tiny(masked, SeenScales::Before, &[2, 2, 3]);
        let check = |sides: &[usize]| model.check_scales(&Scales::square(sides).unwrap()).map_err(|e| e.to_string());
        assert_eq!(check(&[2, 2, 2, 2, 5]), Ok(()));
        assert!(check(&[3, 5]).unwrap_err().contains("first map of 4 tokens"));
        assert!(check(&[2; 5]).unwrap_err().contains("at most 4 maps"));
        let one_shot = tiny(FirstScale::OneShot, SeenScales::Before, &[2, 3]);
        let mask = Tensor::<2>::ones([1, 4], &Device::default()).greater_elem(0.5);
        let refused = one_shot.masked_teacher_forced(
            &Condition::classes(&[0]),
            noise([1, 13, 3], "codes"),
            mask,
            one_shot.scales(),
            None,
        );
        assert!(refused.unwrap_err().to_string().contains("one shot"));
    }
}
