//! Student forcing: training on true targets with inputs that the model has drawn itself, at all scales or at some.
//!
//! The model draws its tokens scale by scale under the inputs that it is trained on. Attention is block-causal, so a
//! generation without gradients, then one teacher-forced pass over the inputs that it has collected, has the loss and the
//! gradients of unrolling the scales one by one.

use burn::tensor::{Int, Tensor};
use burn_var::editing::KnownTokens;
use burn_var::generation::Generation;
use burn_var::guidance::{Cfg, Guidance, Schedule};
use burn_var::rng::Rng;
use burn_var::sampling::Sampler;
use burn_var::scales::ScaleAt;
use burn_var::{BatchRequest, Condition, Error, Result, TokenPyramid, Tokenizer, ops};
use serde::{Deserialize, Serialize};

use super::loss::{Sampling, SarFamily, Target, no_requantization};

/// The scales whose inputs are made of the model's own tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForcingSchedule {
    /// No scale.
    TeacherForcing,
    /// All scales but the first, which has no input.
    Full,
    /// No scale and all scales, in turn by step.
    Alternate,
    /// Every second scale: the odd ones, counted from 0.
    Interleave,
    /// Scales of at least this side.
    HybridFrom(usize),
    /// Scales of more than this side, as in the released code.
    HybridReleased(usize),
}

impl ForcingSchedule {
    /// Returns true if the input of a scale is made of the model's own tokens in a step. The first has no input.
    pub fn is_own(self, at: ScaleAt<'_>, step: u64) -> bool {
        let side = at.size().height.max(at.size().width);
        !at.is_first()
            && match self {
                Self::TeacherForcing => false,
                Self::Full => true,
                Self::Alternate => step % 2 == 1,
                Self::Interleave => at.k() % 2 == 1,
                Self::HybridFrom(from) => side >= from,
                Self::HybridReleased(above) => side > above,
            }
    }
}

/// Settings of student forcing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudentForcing {
    /// The scales with inputs of the model's own tokens.
    pub schedule: ForcingSchedule,
    /// The tokens to predict, [`Target::Gt`] or [`Target::GtRequantised`].
    #[serde(default = "default_target")]
    pub target: Target,
    /// Draw of the model's own tokens.
    #[serde(default = "default_sampling")]
    pub sampling: Sampling,
    /// Guidance of the draw; `{ constant = 0.0 }` is none.
    #[serde(default = "default_cfg")]
    pub cfg: Schedule,
}

fn default_target() -> Target {
    Target::Gt
}

fn default_sampling() -> Sampling {
    Sampling::Sampler(Sampler::default())
}

fn default_cfg() -> Schedule {
    Schedule::Constant(0.0)
}

impl StudentForcing {
    /// Returns the settings of a schedule: true targets, and tokens drawn with the default sampler, without guidance.
    pub fn new(schedule: ForcingSchedule) -> Self {
        Self { schedule, target: default_target(), sampling: default_sampling(), cfg: default_cfg() }
    }

    /// Checks the settings for a model, whose tokens are residual or not.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self, residual: bool) -> Result<()> {
        match self.target {
            Target::Gt => {}
            Target::GtRequantised if residual => {}
            Target::GtRequantised => return Err(no_requantization()),
            target => {
                let expected = "gt or gt-requantised: there is no teacher-forced pass";
                return Err(Error::config("student_forcing.target", format!("{target:?}"), expected));
            }
        }
        self.sampling.validate("student_forcing.sampling")
    }
}

/// Tokens and randomness of a piece.
#[derive(Debug)]
pub struct ForcingBatch<'a> {
    /// The true tokens.
    pub tokens: &'a TokenPyramid,
    /// Conditions of the generation and of the pass, dropped where the labels are.
    pub conditions: &'a [Condition],
    /// Share of the target that is spread over all codes.
    pub label_smoothing: f64,
    /// The step, from 0.
    pub step: u64,
    /// Seed of the generation in this step.
    pub seed: u64,
    /// Index of the first image in the step's whole batch.
    pub first: u64,
    /// Streams of drop path, one per image; `None` disables it.
    pub drop_path: Option<Vec<Rng>>,
}

/// The loss of a piece.
#[derive(Debug)]
pub struct ForcingLoss {
    /// Mean over all tokens.
    pub loss: Tensor<1>,
    /// Logits, `[batch, L, vocabulary]`.
    pub logits: Tensor<3>,
    /// Tokens to predict, `[batch, L]`.
    pub targets: Tensor<2, Int>,
    /// Tokens that the inputs are made of: at each scale true ones, or those that the model has drawn.
    pub mixed: TokenPyramid,
    /// Inputs of all scales but the first, `[batch, L - tokens of the first scale, z_channels]`, off the autodiff graph.
    pub input: Tensor<3>,
}

/// Computes the loss of student forcing. `tokenizer` lies off the autodiff graph, `model` on it. With `own`, these are the
/// model's own tokens; else they are drawn.
///
/// # Errors
/// The errors of [`Generation`] and of [`TeacherForced::teacher_forced`](burn_var::TeacherForced::teacher_forced).
pub fn student_forcing_loss<M: SarFamily>(
    config: &StudentForcing,
    tokenizer: &M::Tokenizer,
    model: &M,
    mut batch: ForcingBatch<'_>,
    own: Option<&TokenPyramid>,
) -> Result<ForcingLoss> {
    let mixed = match own {
        Some(own) => mix(config.schedule, batch.step, batch.tokens, |k| own.map(k))?,
        None => roll_out(config, tokenizer, &model.valid(), &batch)?,
    };
    let scales = mixed.scales();
    let input = tokenizer.teacher_input(&mixed);
    let on_graph = Tensor::from_inner(input.clone());
    let logits = model.teacher_forced(batch.conditions, on_graph, scales, batch.drop_path.as_deref_mut())?;
    let targets = match config.target {
        Target::GtRequantised => M::requantized(tokenizer, batch.tokens, &mixed)?.sequence(),
        _ => batch.tokens.sequence(),
    };
    let loss = ops::cross_entropy(logits.clone(), targets.clone(), batch.label_smoothing).mean();
    Ok(ForcingLoss { loss, logits, targets, mixed, input })
}

/// Draws the model's own tokens, each scale under the inputs of the scales before, own ones or true ones.
fn roll_out<M: SarFamily>(
    config: &StudentForcing,
    tokenizer: &M::Tokenizer,
    model: &M,
    batch: &ForcingBatch<'_>,
) -> Result<TokenPyramid> {
    let tokens = batch.tokens;
    let scales = tokens.scales();
    let is_own = |k: usize| config.schedule.is_own(scales.at(k), batch.step);
    let Some(last) = (1..scales.len()).rev().find(|&k| is_own(k)) else { return Ok(tokens.clone()) };
    let known = |k: usize| {
        let known = if k + 1 < scales.len() && is_own(k + 1) { 0.0 } else { 1.0 };
        let shape = [tokens.batch(), scales.size(k).area()];
        Tensor::<2>::full(shape, known, &tokens.map(k).device()).greater_elem(0.5)
    };
    let request = BatchRequest {
        first: batch.first,
        sampler: config.sampling.sampler(),
        scales: Some(scales.clone()),
        known: Some(KnownTokens::with_masks(tokens.clone(), (0..scales.len()).map(known).collect())?),
        ..BatchRequest::new(batch.conditions.to_vec(), batch.seed)
    };
    let guidance: Vec<Box<dyn Guidance>> = vec![Box::new(Cfg::new(config.cfg.clone()))];
    let mut generation = Generation::new(tokenizer, model, guidance, request)?;
    let mut drawn = Vec::with_capacity(last);
    // The input of the last own scale is made of the tokens before it: no later ones are needed.
    while drawn.len() < last {
        match generation.next_scale()? {
            Some(done) => drawn.push(done.ids),
            None => break,
        }
    }
    generation.check()?;
    mix(config.schedule, batch.step, tokens, |k| drawn[k].clone())
}

/// Returns the true tokens, with the model's own where the input of the next scale is made of them.
fn mix(
    schedule: ForcingSchedule,
    step: u64,
    tokens: &TokenPyramid,
    own: impl Fn(usize) -> Tensor<2, Int>,
) -> Result<TokenPyramid> {
    let scales = tokens.scales();
    let feeds_own = |k: usize| k + 1 < scales.len() && schedule.is_own(scales.at(k + 1), step);
    let maps = (0..scales.len()).map(|k| if feeds_own(k) { own(k) } else { tokens.map(k) });
    TokenPyramid::new(scales.clone(), maps.collect())
}

#[cfg(test)]
mod tests {
    use burn_var::Scales;

    use super::*;

    #[test]
    fn schedules_are_those_of_the_paper() {
        let scales = Scales::square(&[1, 2, 3, 5]).unwrap();
        let own = |schedule: ForcingSchedule, step| -> Vec<usize> {
            scales.iter().filter(|at| schedule.is_own(*at, step)).map(|at| at.k()).collect()
        };
        assert!(own(ForcingSchedule::TeacherForcing, 1).is_empty());
        assert_eq!(own(ForcingSchedule::Full, 0), [1, 2, 3]);
        assert_eq!(own(ForcingSchedule::Interleave, 0), [1, 3]);
        assert_eq!(own(ForcingSchedule::HybridFrom(3), 0), [2, 3]);
        assert_eq!(own(ForcingSchedule::HybridReleased(3), 0), [3]);
        assert_eq!((own(ForcingSchedule::Alternate, 4), own(ForcingSchedule::Alternate, 5)), (vec![], vec![1, 2, 3]));
    }
}
