//! Pictures by the batch.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use burn::tensor::{Device, Tensor};
use burn_var::guidance::{Aid, AidWeight, Cfg, CfgSchedule, Guidance, Ssg, SsgConfig, Uncertainty};
use burn_var::pretrained::{StateDict, injector_config, injector_weight, load_injector, load_lora};
use burn_var::sampler::Sampler;
use burn_var::transformer::Var;
use burn_var::{MapSize, Request, TokenPyramid, Tokenizer, generate};
use burn_var_train::data::Fingerprint;
use burn_var_train::eval::PictureSet;
use burn_var_train::grid::{Range, pictures};
use clap::{Args, ValueEnum};

use crate::models::{Pair, PairArgs};
use crate::output::usage;

/// How pictures are drawn; what is left out comes from the transformer's file, or from the VAR paper.
#[derive(Debug, Clone, Default, Args)]
#[command(
    next_help_heading = "Sampling (default: what the transformer's file says, else cfg 1.5, top-k 900, top-p 0.96)"
)]
pub(crate) struct SamplingArgs {
    /// The seed of the whole set: picture i of a seed is the same whatever the batch.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Strength of classifier-free guidance at the last scale, 0 at the first and linear between. 0 is none.
    #[arg(long, value_name = "STRENGTH", allow_negative_numbers = true)]
    cfg: Option<f64>,
    /// Strength of classifier-free guidance at every scale, `0,0.5,1,1.5` for instance.
    #[arg(
        long,
        value_name = "STRENGTHS",
        value_delimiter = ',',
        conflicts_with = "cfg",
        allow_negative_numbers = true
    )]
    cfg_schedule: Option<Vec<f64>>,
    /// Strength of Scaled Spatial Guidance, which decays from scale to scale; 0.3 is a place to start.
    #[arg(long, value_name = "STRENGTH", allow_negative_numbers = true)]
    ssg: Option<f64>,
    /// AID-VAR's guidance injector: corrects what enters the transformer, scale by scale.
    #[arg(long, value_name = "FILE")]
    aid: Option<PathBuf>,
    /// How much of the injector's map is added. [default: what the injector's file says, else 0.001]
    #[arg(long, value_name = "WEIGHT", requires = "aid", allow_negative_numbers = true)]
    aid_weight: Option<f64>,
    /// Scale that weight by how uncertain the model was at the scale before.
    #[arg(long, value_enum, value_name = "MEASURE", requires = "aid")]
    aid_adaptive: Option<Adaptive>,
    /// A LoRA of the transformer, from `burn-var train aid`.
    #[arg(long, value_name = "FILE")]
    lora: Option<PathBuf>,
    /// Draw from so many of the most likely codes; 0 is all, 1 is always the most likely.
    #[arg(long, value_name = "CODES")]
    top_k: Option<usize>,
    /// Draw from the most likely codes that have this share of the probability together; 0 is all.
    #[arg(long, value_name = "SHARE")]
    top_p: Option<f64>,
    /// Divides the logits: below 1 is more certain, above 1 more varied.
    #[arg(long, value_name = "FACTOR")]
    temperature: Option<f64>,
    /// Mix codes instead of choosing one (Gumbel softmax, VAR's `more_smooth`): for looks, not for figures.
    #[arg(long)]
    smooth: bool,
    /// Pictures at a time. It changes speed and memory, not the pictures. [default: 32, or 8 above 64 pixels]
    #[arg(long, value_name = "PICTURES", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch: Option<u32>,
}

/// How the weight of an injector adapts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Adaptive {
    /// By the mean entropy of a scale's tokens.
    Entropy,
    /// By the mean margin between the two likeliest codes.
    Margin,
    /// By entropy, position by position.
    EntropyMap,
    /// By margin, position by position.
    MarginMap,
}

impl Adaptive {
    fn weight(self, most: f64) -> AidWeight {
        let by = match self {
            Self::Entropy | Self::EntropyMap => Uncertainty::Entropy,
            Self::Margin | Self::MarginMap => Uncertainty::Margin,
        };
        AidWeight::Adaptive { most, by, per_position: matches!(self, Self::EntropyMap | Self::MarginMap) }
    }
}

/// A model with its settings.
pub(crate) struct Generator {
    pub(crate) pair: Pair,
    /// The transformer with a LoRA in it, and the latter's fingerprint.
    adapted: Option<(Var, String)>,
    cfg: Cfg,
    ssg: Option<SsgConfig>,
    aid: Option<(Aid, Injected)>,
    sampler: Sampler,
    seed: u64,
    batch: usize,
}

/// Where an injector came from, for results.
#[derive(Debug, Clone, serde::Serialize)]
struct Injected {
    file: PathBuf,
    weights: String,
    weight: AidWeight,
}

/// What of a batch is wanted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted {
    /// The pictures after every scale too.
    pub(crate) stages: bool,
    /// Pictures without injector, LoRA and guidance other than CFG.
    pub(crate) plain: bool,
}

/// A finished batch.
pub(crate) struct Batch<'a> {
    /// `[batch, channels, height, width]` in `[-1, 1]`.
    pub(crate) images: Tensor<4>,
    /// If wanted, the pictures after every scale, the last one too.
    pub(crate) stages: Vec<Tensor<4>>,
    pub(crate) labels: &'a [usize],
    pub(crate) tokens: TokenPyramid,
    /// Time in the transformer and in the decoder.
    pub(crate) time: [Duration; 2],
}

impl Generator {
    pub(crate) fn new(model: &PairArgs, args: &SamplingArgs, device: &Device) -> Result<Self> {
        Self::of(model.load(device)?, args)
    }

    pub(crate) fn of(pair: Pair, args: &SamplingArgs) -> Result<Self> {
        let schedule = match (&args.cfg_schedule, args.cfg) {
            (Some(strengths), _) => CfgSchedule::PerScale(strengths.clone()),
            (None, Some(strength)) => CfgSchedule::Ramp(strength),
            (None, None) => pair.usage.cfg.clone(),
        };
        let known = pair.usage.sampler;
        let sampler = Sampler {
            top_k: args.top_k.unwrap_or(known.top_k),
            top_p: args.top_p.unwrap_or(known.top_p),
            temperature: args.temperature.unwrap_or(known.temperature),
            more_smooth: args.smooth || known.more_smooth,
        };
        let asked = |error: burn_var::Error| usage(error.to_string());
        sampler.validate().map_err(asked)?;
        let device = pair.tokenizer.codebook().device();
        let aid = args.aid.as_ref().map(|file| injected(file, args, &pair, &device)).transpose()?;
        let adapted = args.lora.as_ref().map(|file| adapted(file, &pair.transformer, &device)).transpose()?;
        let [_, height, _] = pair.tokenizer.picture_shape();
        let batch = args.batch.map_or(if height > 64 { 8 } else { 32 }, |batch| batch as usize);
        let ssg = args.ssg.map(SsgConfig::paper);
        let (cfg, seed) = (Cfg { schedule }, args.seed);
        let generator = Self { pair, adapted, cfg, ssg, aid, sampler, seed, batch };
        let scales = generator.pair.tokenizer.scales();
        generator.chain(false).iter().try_for_each(|part| part.check(scales)).map_err(asked)?;
        Ok(generator)
    }

    /// All guidance in its order: what changes the way in, classifier-free guidance, and what works on its result.
    fn chain(&self, plain: bool) -> Vec<Box<dyn Guidance>> {
        if plain {
            return vec![Box::new(self.cfg.clone())];
        }
        let mut chain: Vec<Box<dyn Guidance>> = Vec::new();
        chain.extend(self.aid.iter().map(|(aid, _)| Box::new(aid.clone()) as Box<dyn Guidance>));
        chain.push(Box::new(self.cfg.clone()));
        chain.extend(self.ssg.iter().map(|ssg| Box::new(Ssg::new(ssg.clone())) as Box<dyn Guidance>));
        chain
    }

    /// Whether there is anything that [`Wanted::plain`] leaves out.
    pub(crate) fn is_guided(&self) -> bool {
        self.aid.is_some() || self.ssg.is_some() || self.adapted.is_some()
    }

    fn transformer(&self, plain: bool) -> &Var {
        self.adapted.as_ref().filter(|_| !plain).map_or(&self.pair.transformer, |(adapted, _)| adapted)
    }

    /// Pictures in a batch.
    pub(crate) fn batch(&self) -> usize {
        self.batch
    }

    /// Generates one picture a label, and hands them on batch by batch.
    pub(crate) fn run(
        &self,
        labels: &[usize],
        wanted: Wanted,
        mut take: impl FnMut(Batch<'_>) -> Result<()>,
    ) -> Result<()> {
        let starts = (0..).step_by(self.batch);
        starts.zip(labels.chunks(self.batch)).try_for_each(|(first, part)| take(self.make(part, first, wanted)?))
    }

    /// One batch, the first picture of which has a number.
    fn make<'a>(&self, labels: &'a [usize], first: u64, wanted: Wanted) -> burn_var::Result<Batch<'a>> {
        let (tokenizer, transformer) = (&self.pair.tokenizer, self.transformer(wanted.plain));
        let request = Request { first, sampler: self.sampler, ..Request::new(labels, self.seed) };
        let mut canvases = Vec::new();
        let start = Instant::now();
        let made = generate(tokenizer, transformer, &mut self.chain(wanted.plain), &request, &mut |scale| {
            if wanted.stages {
                canvases.push(scale.canvas.clone());
            }
            ControlFlow::Continue(())
        })?;
        self.sync()?;
        let drawn = Instant::now();
        let images = tokenizer.decode(made.canvas);
        self.sync()?;
        let time = [drawn - start, drawn.elapsed()];
        let stages = canvases.into_iter().map(|canvas| tokenizer.decode(canvas)).collect();
        Ok(Batch { images, stages, labels, tokens: made.tokens, time })
    }

    /// Waits for the device.
    fn sync(&self) -> burn_var::Result<()> {
        self.pair.tokenizer.codebook().device().sync().map_err(burn_var::Error::device("finish its work"))
    }

    /// What was used, for results.
    pub(crate) fn settings(&self) -> serde_json::Value {
        let mut settings = serde_json::json!({ "seed": self.seed, "cfg": self.cfg.schedule, "sampler": self.sampler });
        if let Some(ssg) = &self.ssg {
            settings["ssg"] = serde_json::json!(ssg);
        }
        if let Some((_, injected)) = &self.aid {
            settings["aid"] = serde_json::json!(injected);
        }
        if let Some((_, lora)) = &self.adapted {
            settings["lora"] = serde_json::json!(lora);
        }
        settings
    }
}

/// The injector in a file, for the transformer of a model.
fn injected(file: &Path, args: &SamplingArgs, pair: &Pair, device: &Device) -> Result<(Aid, Injected)> {
    let dict = StateDict::open(file)?;
    let injector = load_injector(&dict, &injector_config(&dict)?, device)?;
    let weight = match args.aid_weight {
        Some(weight) => AidWeight::Constant(weight),
        None => injector_weight(&dict)?.unwrap_or_default(),
    };
    let weight = match (args.aid_adaptive, weight) {
        (None, weight) => weight,
        (Some(adaptive), AidWeight::Constant(most)) => adaptive.weight(most),
        (Some(_), _) => return Err(usage("--aid-adaptive wants one number: name it with --aid-weight")),
    };
    let weights = Fingerprint::new().module(&injector)?.finish();
    let aid = Aid::new(injector, &pair.transformer, weight.clone())?;
    Ok((aid, Injected { file: file.into(), weights, weight }))
}

/// A transformer with the LoRA in a file.
fn adapted(file: &Path, transformer: &Var, device: &Device) -> Result<(Var, String)> {
    let lora = load_lora(&StateDict::open(file)?, device)?;
    Ok((lora.merge(transformer.clone())?, Fingerprint::new().module(&lora)?.finish()))
}

/// A set of pictures that do not exist before they are asked for.
pub(crate) struct Generated {
    generator: Generator,
    /// The class of each.
    labels: Vec<usize>,
    /// The model's fingerprint.
    model: String,
}

impl Generated {
    pub(crate) fn new(generator: Generator, labels: Vec<usize>) -> Result<Self> {
        let (tokenizer, transformer) = (&generator.pair.tokenizer, generator.transformer(false));
        let model = Fingerprint::new().module(tokenizer)?.module(transformer)?.finish();
        Ok(Self { generator, labels, model })
    }

    fn pixels(&self, numbers: std::ops::Range<usize>) -> burn_var_train::Result<Vec<u8>> {
        let made = self.generator.make(&self.labels[numbers.clone()], numbers.start as u64, Wanted::default())?;
        Ok(pictures(made.images, Range::Signed)?.into_iter().flat_map(image::RgbImage::into_raw).collect())
    }
}

impl PictureSet for Generated {
    fn describe(&self) -> String {
        format!("generated, model {}", &self.model[..12])
    }

    fn identity(&self) -> burn_var_train::Result<String> {
        let labels: Vec<u8> = self.labels.iter().flat_map(|label| label.to_le_bytes()).collect();
        let labels = Fingerprint::new().field(&labels).finish();
        Ok(format!("generated by {}, {}, labels {}", self.model, self.generator.settings(), &labels[..12]))
    }

    fn count(&self) -> usize {
        self.labels.len()
    }

    fn size(&self) -> MapSize {
        let [_, height, width] = self.generator.pair.tokenizer.picture_shape();
        MapSize { height, width }
    }

    fn channels(&self) -> usize {
        self.generator.pair.tokenizer.picture_shape()[0]
    }

    fn labels(&self) -> Option<&[usize]> {
        Some(&self.labels)
    }

    fn read(
        &mut self,
        first: usize,
        batch: usize,
        take: &mut dyn FnMut(&[u8]) -> burn_var_train::Result<()>,
    ) -> burn_var_train::Result<()> {
        let count = self.labels.len();
        (first..count).step_by(batch).try_for_each(|at| take(&self.pixels(at..count.min(at + batch))?))
    }

    /// A picture depends on nothing but its number, so the others need not be made.
    fn pick(&mut self, numbers: &[usize]) -> burn_var_train::Result<Vec<u8>> {
        let pixels = numbers.iter().map(|number| self.pixels(*number..number + 1));
        Ok(pixels.collect::<burn_var_train::Result<Vec<_>>>()?.concat())
    }
}

/// The path of an output, or its default in the present folder.
pub(crate) fn or_default(path: Option<&PathBuf>, default: &str) -> PathBuf {
    path.cloned().unwrap_or_else(|| PathBuf::from(default))
}
