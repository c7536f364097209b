//! The losses of SAR, for any model: one teacher-forced pass over true tokens, tokens drawn from its logits, and a student
//! pass over the inputs that these give.

use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Int, Tensor, TensorData};
use burn_var::guidance::Schedule;
use burn_var::models::flexvar::{FlexVae, FlexVar};
use burn_var::models::var::{Var, VqVae};
use burn_var::rng::Rng;
use burn_var::sampling::{Noise, Sampler};
use burn_var::weights::Pretrained;
use burn_var::{Condition, Error, MapSize, Result, Scales, TeacherForced, TokenPyramid, Tokenizer, ops};
use serde::{Deserialize, Serialize};

/// A transformer that SAR and student forcing train, and the tokenizer of its family.
pub trait SarFamily: TeacherForced + Pretrained {
    /// The tokenizer.
    type Tokenizer: Tokenizer + Pretrained;

    /// True if the tokens of a scale complete those of the scales before, so that other coarse tokens call for other fine
    /// ones.
    const RESIDUAL: bool;

    /// Computes the logits of one scale from its input and the class token alone, see [`FlexVar::class_and_scales`].
    ///
    /// # Errors
    /// [`Error::Config`] naming `sar.context` if the model cannot.
    fn class_and_scale(
        &self,
        conditions: &[Condition],
        input: Tensor<3>,
        size: MapSize,
        noise: Option<&mut [Rng]>,
    ) -> Result<Tensor<3>>;

    /// Returns the tokens that lead back to the true image where the tokens before a scale are `own`: at each scale, those of
    /// the difference between the true canvas and the canvas of `own`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the target if the tokens of a scale do not depend on those before.
    fn requantized(tokenizer: &Self::Tokenizer, truth: &TokenPyramid, own: &TokenPyramid) -> Result<TokenPyramid>;
}

impl SarFamily for FlexVar {
    type Tokenizer = FlexVae;

    const RESIDUAL: bool = false;

    fn class_and_scale(
        &self,
        conditions: &[Condition],
        input: Tensor<3>,
        size: MapSize,
        noise: Option<&mut [Rng]>,
    ) -> Result<Tensor<3>> {
        self.class_and_scales(conditions, input, &Scales::new(vec![size])?, noise)
    }

    fn requantized(_: &FlexVae, _: &TokenPyramid, _: &TokenPyramid) -> Result<TokenPyramid> {
        Err(no_requantization())
    }
}

impl SarFamily for Var {
    type Tokenizer = VqVae;

    const RESIDUAL: bool = true;

    fn class_and_scale(&self, _: &[Condition], _: Tensor<3>, _: MapSize, _: Option<&mut [Rng]>) -> Result<Tensor<3>> {
        Err(no_class_only())
    }

    /// The true canvas is that of the true tokens, which are all that training keeps of an image.
    fn requantized(tokenizer: &VqVae, truth: &TokenPyramid, own: &TokenPyramid) -> Result<TokenPyramid> {
        let scales = truth.scales();
        let target = tokenizer.canvases(truth).pop();
        let mut maps = vec![truth.map(0)];
        if let Some(target) = target {
            for (canvas, k) in tokenizer.canvases(own).into_iter().zip(1..scales.len()) {
                maps.push(tokenizer.quantize.quantize_scale(&(target.clone() - canvas), k, scales));
            }
        }
        TokenPyramid::new(scales.clone(), maps)
    }
}

/// Returns the error of a context that VAR does not have.
pub(super) fn no_class_only() -> Error {
    let expected = "full, for VAR: its positions and levels are those of one scale schedule";
    Error::config("sar.context", "class-only", expected)
}

/// Returns the error of a target that FlexVAR does not have.
pub(super) fn no_requantization() -> Error {
    let expected = "another target, gt for instance: each scale of FlexVAR stands for the whole image, so its true tokens do \
                    not depend on the scales before";
    Error::config("target", "gt-requantised", expected)
}

/// The scales of the student's loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StudentScales {
    /// The last.
    Last,
    /// This one, counted from 0; the last one of shorter schedules.
    One(usize),
    /// One that is drawn for each step.
    RandomOne,
    /// All but the first, whose input is no prediction.
    All,
}

impl StudentScales {
    /// Returns the scales for a schedule; none if it has a single scale. `rng` is the stream of the step.
    pub fn of(self, scales: &Scales, rng: &mut Rng) -> Vec<usize> {
        let last = scales.len() - 1;
        match self {
            _ if last == 0 => Vec::new(),
            Self::Last => vec![last],
            Self::One(k) => vec![k.clamp(1, last)],
            Self::RandomOne => vec![1 + rng.below(last)],
            Self::All => (1..=last).collect(),
        }
    }
}

/// Context of the student: the tokens that it sees besides those of the predicted scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StudentContext {
    /// The class token alone, without the start embedding: one pass per scale, as released. Generation differs in both.
    ClassOnly,
    /// The inputs of all scales before, as in generation: one pass for all scales.
    Full,
}

/// The tokens that a pass is to predict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The tokens drawn from the teacher-forced logits, guided ones if guidance is on.
    TfHard,
    /// The teacher-forced distribution, without guidance; no gradient passes to it.
    TfSoft,
    /// The true tokens.
    Gt,
    /// For residual tokens: those that lead back to the true image from the canvas of the model's own tokens. An extension.
    GtRequantised,
}

/// The draw of the model's own tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sampling {
    /// The most likely tokens.
    Argmax,
    /// Tokens drawn by a sampler, as in generation.
    Sampler(Sampler),
}

impl Sampling {
    /// Returns the settings of generation.
    pub fn sampler(self) -> Sampler {
        match self {
            Self::Argmax => Sampler::greedy(),
            Self::Sampler(sampler) => sampler,
        }
    }

    /// Checks the settings; `name` is their place in messages.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting.
    pub fn validate(self, name: &str) -> Result<()> {
        let sampler = self.sampler();
        sampler.validate()?;
        for (flag, set) in [("more_smooth", sampler.more_smooth), ("greedy_unlisted", sampler.greedy_unlisted)] {
            if set {
                return Err(Error::config(format!("{name}.{flag}"), true, "false: it is for generation alone"));
            }
        }
        Ok(())
    }

    /// Draws the tokens of all scales from logits `[batch, L, vocabulary]` off the autodiff graph, with the noise of
    /// each image. Only a sampler reads the logits back.
    fn draw(self, logits: Tensor<3>, scales: &Scales, noise: &[Noise], codes: &Tensor<2>) -> Result<TokenPyramid> {
        let sampler = match self {
            Self::Argmax => {
                return TokenPyramid::from_sequence(scales.clone(), logits.argmax(2).squeeze_dim::<2>(2));
            }
            Self::Sampler(sampler) => sampler,
        };
        let shape = logits.dims();
        let values = logits.try_into_vec_as::<f32>().map_err(Error::device("read logits"))?;
        TokenPyramid::from_sequence(scales.clone(), sampler.draw(values, shape, noise, 0.0, codes)?.ids)
    }
}

/// Reduction of the student's losses of several scales to one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// The mean over all tokens: fine scales weigh most.
    TokenMean,
    /// The sum over the scales of their means.
    ScaleSum,
}

/// The axes on which the paper of SAR, its algorithm and its code differ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SarConfig {
    /// Scales of the student's loss.
    pub scales: StudentScales,
    /// Context of the student.
    pub context: StudentContext,
    /// The student's target.
    pub target: Target,
    /// Weight of the student's loss; the teacher-forced one has weight 1.
    pub weight: f64,
    /// Reduction of the student's loss.
    pub reduction: Reduction,
    /// Draw of the tokens that the student's inputs are made of, from the teacher-forced logits.
    pub sampling: Sampling,
    /// Guidance of these logits; `{ constant = 0.0 }` is none.
    pub cfg: Schedule,
}

impl SarConfig {
    /// Names of the presets.
    pub const PRESETS: [&'static str; 2] = ["released", "paper"];

    /// Returns the released code: the last scale alone after the class token, hard targets of the teacher-forced pass, tokens
    /// drawn with top-k 900, top-p 0.96 and guidance up to 2.5, weight 0.01.
    pub fn released() -> Self {
        Self {
            scales: StudentScales::Last,
            context: StudentContext::ClassOnly,
            target: Target::TfHard,
            weight: 0.01,
            reduction: Reduction::TokenMean,
            sampling: Sampling::Sampler(Sampler { top_k: 900, top_p: 0.96, ..Sampler::default() }),
            cfg: Schedule::HalfRamp(2.5),
        }
    }

    /// Returns the paper's equations: all scales but the first in one pass as in generation. The paper leaves the weight
    /// open: it is the released one.
    pub fn paper() -> Self {
        Self { scales: StudentScales::All, context: StudentContext::Full, ..Self::released() }
    }

    /// Returns a preset.
    pub fn preset(name: &str) -> Option<Self> {
        match name {
            "released" => Some(Self::released()),
            "paper" => Some(Self::paper()),
            _ => None,
        }
    }

    /// Checks the axes for a model, whose tokens are residual or not.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self, residual: bool) -> Result<()> {
        if residual && self.context == StudentContext::ClassOnly {
            return Err(no_class_only());
        }
        if !residual && self.target == Target::GtRequantised {
            return Err(no_requantization());
        }
        if self.scales == StudentScales::One(0) {
            return Err(Error::config("sar.scales", "one = 0", "a scale after the first: its input is no prediction"));
        }
        if !(self.weight.is_finite() && self.weight >= 0.0) {
            return Err(Error::config("sar.weight", self.weight, "a finite number of at least 0"));
        }
        self.sampling.validate("sar.sampling")
    }
}

/// Tokens and randomness of a piece.
#[derive(Debug)]
pub struct SarBatch<'a> {
    /// The true tokens.
    pub tokens: &'a TokenPyramid,
    /// The conditions of both passes, dropped where the labels are.
    pub conditions: &'a [Condition],
    /// Share of hard targets that is spread over all codes.
    pub label_smoothing: f64,
    /// Scales of the student's loss, from [`StudentScales::of`].
    pub scales: &'a [usize],
    /// Streams of the sampler, one per image.
    pub sample: Vec<Rng>,
    /// Streams of drop path for the teacher-forced and the student pass, one per image; `None` disables it.
    pub drop_path: Option<[Vec<Rng>; 2]>,
}

/// The student's pass over one scale.
#[derive(Debug)]
pub struct StudentPass {
    /// The scale.
    pub k: usize,
    /// Input of the pass, `[batch, tokens, z_channels]`, off the autodiff graph.
    pub input: Tensor<3>,
    /// Logits of the pass, `[batch, tokens, vocabulary]`.
    pub logits: Tensor<3>,
}

/// The losses of a piece.
#[derive(Debug)]
pub struct SarLoss {
    /// Teacher-forced loss: the mean over all tokens.
    pub teacher: Tensor<1>,
    /// The student's loss; 0 if there is no scale to train it on.
    pub student: Tensor<1>,
    /// Their weighted sum.
    pub total: Tensor<1>,
    /// Teacher-forced logits, `[batch, L, vocabulary]`.
    pub logits: Tensor<3>,
    /// The model's own tokens, of which the student's inputs are made.
    pub own: TokenPyramid,
    /// The student's passes.
    pub passes: Vec<StudentPass>,
}

/// Logits of the tokens that the model draws for itself, off the autodiff graph.
#[derive(Debug)]
pub struct GuidedLogits {
    /// Guided logits, `(1 + t) cond - t null`, `[batch, L, vocabulary]`.
    pub guided: Tensor<3>,
    /// Logits of the null condition; `None` without guidance.
    pub null: Option<Tensor<3>>,
}

/// Guides teacher-forced logits, `[batch, L, vocabulary]`, by those of the null condition over the same `input`, without
/// gradients.
///
/// # Errors
/// [`Error::Config`] naming `sar.cfg`, and those of [`TeacherForced::teacher_forced`].
pub fn guided_logits<M: SarFamily>(
    model: &M,
    logits: &Tensor<3>,
    input: Tensor<3>,
    scales: &Scales,
    cfg: &Schedule,
    drop_path: Option<&mut [Rng]>,
) -> Result<GuidedLogits> {
    cfg.check("sar.cfg", scales)?;
    let cond = logits.clone().inner();
    let strengths: Vec<f32> =
        scales.iter().flat_map(|at| std::iter::repeat_n(cfg.at(at) as f32, at.size().area())).collect();
    if strengths.iter().all(|strength| *strength == 0.0) {
        return Ok(GuidedLogits { guided: cond, null: None });
    }
    let conditions = vec![Condition::Null; cond.dims()[0]];
    let null = model.valid().teacher_forced(&conditions, input, scales, drop_path)?;
    let shape = [1, strengths.len(), 1];
    let strength = Tensor::<3>::from_data(TensorData::new(strengths, shape), &cond.device());
    Ok(GuidedLogits { guided: cond.clone() + (cond - null.clone()) * strength, null: Some(null) })
}

/// Computes the losses of SAR. `tokenizer` lies off the autodiff graph, `model` on it. With `own`, these are the model's own
/// tokens; else they are drawn.
///
/// # Errors
/// The errors of [`TeacherForced::teacher_forced`] and [`guided_logits`]; [`Error::Device`] if logits cannot be read back.
pub fn sar_loss<M: SarFamily>(
    config: &SarConfig,
    tokenizer: &M::Tokenizer,
    model: &M,
    batch: SarBatch<'_>,
    own: Option<TokenPyramid>,
) -> Result<SarLoss> {
    let SarBatch { tokens, conditions, label_smoothing, scales: chosen, mut sample, drop_path } = batch;
    let scales = tokens.scales();
    let input = tokenizer.teacher_input(tokens);
    let [mut teacher_noise, mut student_noise] = drop_path.map_or([None, None], |streams| streams.map(Some));
    // The null pass drops the branches that the pass with conditions drops.
    let mut null_noise = teacher_noise.clone();

    let noise = teacher_noise.as_deref_mut();
    let logits = model.teacher_forced(conditions, Tensor::from_inner(input.clone()), scales, noise)?;
    let teacher = ops::cross_entropy(logits.clone(), tokens.sequence(), label_smoothing).mean();
    let own = match own {
        Some(own) => own,
        None => {
            let found = guided_logits(model, &logits, input, scales, &config.cfg, null_noise.as_deref_mut())?;
            let noise: Vec<Noise> = sample.iter_mut().map(Noise::new).collect();
            config.sampling.draw(found.guided, scales, &noise, &tokenizer.codebook())?
        }
    };

    let passes =
        student_passes(config.context, tokenizer, model, conditions, &own, chosen, student_noise.as_deref_mut())?;
    let requantized = match config.target {
        Target::GtRequantised => Some(M::requantized(tokenizer, tokens, &own)?),
        _ => None,
    };
    let losses: Vec<Tensor<2>> = passes
        .iter()
        .map(|pass| {
            let hard = |ids: Tensor<2, Int>| ops::cross_entropy(pass.logits.clone(), ids, label_smoothing);
            let k = pass.k;
            match config.target {
                Target::TfHard => hard(own.map(k)),
                Target::Gt => hard(tokens.map(k)),
                Target::GtRequantised => hard(requantized.as_ref().map_or_else(|| tokens.map(k), |ids| ids.map(k))),
                Target::TfSoft => {
                    let range = scales.range(k);
                    let teacher = logits.clone().inner().narrow(1, range.start, range.len());
                    let probabilities = Tensor::from_inner(softmax(teacher, 2));
                    (probabilities * log_softmax(pass.logits.clone(), 2)).sum_dim(2).squeeze_dim::<2>(2).neg()
                }
            }
        })
        .collect();
    let student = match config.reduction {
        _ if losses.is_empty() => teacher.zeros_like(),
        Reduction::TokenMean => Tensor::cat(losses, 1).mean(),
        Reduction::ScaleSum => Tensor::cat(losses.into_iter().map(Tensor::mean).collect(), 0).sum(),
    };
    let total = teacher.clone() + student.clone() * config.weight;
    Ok(SarLoss { teacher, student, total, logits, own, passes })
}

/// Runs the student over inputs made of its own tokens.
fn student_passes<M: SarFamily>(
    context: StudentContext,
    tokenizer: &M::Tokenizer,
    model: &M,
    conditions: &[Condition],
    own: &TokenPyramid,
    chosen: &[usize],
    mut noise: Option<&mut [Rng]>,
) -> Result<Vec<StudentPass>> {
    let scales = own.scales();
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    let inputs = tokenizer.teacher_input(own);
    let first = scales.range(0).len();
    let input = |k: usize| inputs.clone().narrow(1, scales.range(k).start - first, scales.range(k).len());
    let mut passes = Vec::with_capacity(chosen.len());
    match context {
        StudentContext::ClassOnly => {
            for &k in chosen {
                let on_graph = Tensor::from_inner(input(k));
                let logits =
                    SarFamily::class_and_scale(model, conditions, on_graph, scales.size(k), noise.as_deref_mut())?;
                passes.push(StudentPass { k, input: input(k), logits });
            }
        }
        StudentContext::Full => {
            let logits = model.teacher_forced(conditions, Tensor::from_inner(inputs.clone()), scales, noise)?;
            for &k in chosen {
                let range = scales.range(k);
                let logits = logits.clone().narrow(1, range.start, range.len());
                passes.push(StudentPass { k, input: input(k), logits });
            }
        }
    }
    Ok(passes)
}
