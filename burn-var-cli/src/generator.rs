//! Pictures by the batch.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use burn::tensor::{Device, Tensor};
use burn_var::guidance::{Aid, AidWeight, Guidance, GuidanceConfig, Keep, Schedule};
use burn_var::weights::{Pretrained, StateDict};
use burn_var::sampling::Sampler;
use burn_var::models::var::Var;
use burn_var::{MapSize, Request, TokenPyramid, Tokenizer, generate};
use burn_var_train::data::Fingerprint;
use burn_var_train::eval::PictureSet;
use burn_var_train::grid::{Range, pictures};

use crate::models::{Pair, PairArgs};
use crate::output::usage;
use crate::settings::{AidSettings, SamplingArgs, Settings};

/// A model with its settings.
pub(crate) struct Generator {
    pub(crate) pair: Pair,
    /// The transformer without its LoRA, if there is one and [`Wanted::plain`] may be asked for.
    plain: Option<Var>,
    /// The LoRA's fingerprint.
    lora: Option<String>,
    guidance: GuidanceConfig,
    aid: Option<(Aid, Injected)>,
    sampler: Sampler,
    seed: u64,
    batch: usize,
}

/// Whether pictures without injector, LoRA and guidance other than CFG will be asked for too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plain {
    /// A LoRA takes the place of what it changes, without memory for both.
    Never,
    /// Both are kept.
    Too,
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
    /// The guided logits of every scale.
    pub(crate) logits: bool,
    /// Pictures without injector, LoRA and guidance other than CFG.
    pub(crate) plain: bool,
}

/// A finished batch.
pub(crate) struct Batch<'a> {
    /// `[batch, channels, height, width]` in `[-1, 1]`.
    pub(crate) images: Tensor<4>,
    /// If wanted, the pictures after every scale, the last one too.
    pub(crate) stages: Vec<Tensor<4>>,
    /// If wanted, those of every scale, `[batch, tokens, vocab]`.
    pub(crate) logits: Vec<Tensor<3>>,
    pub(crate) labels: &'a [usize],
    /// The number of its first picture.
    pub(crate) first: u64,
    pub(crate) tokens: TokenPyramid,
    /// Time in the transformer and in the decoder.
    pub(crate) time: [Duration; 2],
}

/// What came out of the loop.
struct Drawn {
    images: Tensor<4>,
    stages: Vec<Tensor<4>>,
    logits: Vec<Tensor<3>>,
    tokens: TokenPyramid,
    time: [Duration; 2],
}

/// How pictures are drawn, and with which model.
#[derive(Debug, clap::Args)]
pub(crate) struct DrawArgs {
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    model: PairArgs,
}

impl Generator {
    pub(crate) fn new(args: &DrawArgs, plain: Plain, device: &Device) -> Result<Self> {
        Self::of(args.model.load(device)?, &args.sampling, plain)
    }

    pub(crate) fn of(pair: Pair, args: &SamplingArgs, plain: Plain) -> Result<Self> {
        Self::with(pair, &args.settings()?, args.seed, args.batch.map(|batch| batch as usize), plain)
    }

    pub(crate) fn with(
        mut pair: Pair,
        settings: &Settings,
        seed: u64,
        batch: Option<usize>,
        plain: Plain,
    ) -> Result<Self> {
        let (guidance, sampler) = (settings.guidance(&pair.usage), settings.sampler(&pair.usage));
        let asked = |error: burn_var::Error| usage(error.to_string());
        sampler.validate().map_err(asked)?;
        let device = pair.tokenizer.codebook().device();
        let aid = settings.aid.as_ref().map(|aid| injected(aid, &pair, &device)).transpose()?.flatten();
        let (mut without, mut lora) = (None, None);
        if let Some(file) = &settings.lora {
            let change = Lora::load(&StateDict::open(file)?, &device)?;
            lora = Some(Fingerprint::new().module(&change)?.finish());
            without = (plain == Plain::Too).then(|| pair.transformer.clone());
            pair.transformer = change.merge(pair.transformer)?;
        }
        let [_, height, _] = pair.tokenizer.image_shape();
        let batch = batch.unwrap_or(if height > 64 { 8 } else { 32 });
        let generator = Self { pair, plain: without, lora, guidance, aid, sampler, seed, batch };
        let scales = generator.pair.tokenizer.scales();
        let chain = generator.chain(false).map_err(asked)?;
        chain.iter().try_for_each(|part| part.check(scales)).map_err(asked)?;
        Ok(generator)
    }

    /// All guidance in its order.
    fn chain(&self, plain: bool) -> burn_var::Result<Vec<Box<dyn Guidance>>> {
        match plain {
            true => GuidanceConfig { vpg: None, ssg: None, ..self.guidance.clone() }.chain(None),
            false => self.guidance.chain(self.injector()),
        }
    }

    fn injector(&self) -> Option<Aid> {
        self.aid.as_ref().map(|(aid, _)| aid.clone())
    }

    /// Whether there is anything that [`Wanted::plain`] leaves out.
    pub(crate) fn is_guided(&self) -> bool {
        self.aid.is_some() || self.guidance.ssg.is_some() || self.guidance.vpg.is_some() || self.lora.is_some()
    }

    fn transformer(&self, plain: bool) -> &Var {
        self.plain.as_ref().filter(|_| plain).unwrap_or(&self.pair.transformer)
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
        let known: Vec<Label> = labels.iter().copied().map(Some).collect();
        let Drawn { images, stages, logits, tokens, time } =
            self.draw(known, first, wanted, self.chain(wanted.plain)?)?;
        Ok(Batch { images, stages, logits, labels, first, tokens, time })
    }

    /// Pictures of a label, or of none, of which some tokens are given; they are numbers `first` and following.
    pub(crate) fn edit(&self, label: Label, count: usize, first: u64, keep: Keep) -> Result<Tensor<4>> {
        let mut chain = match label {
            Some(_) => self.chain(false)?,
            // Both branches would be the same.
            None => GuidanceConfig { cfg: Schedule::Constant(0.0), ..self.guidance.clone() }.chain(self.injector())?,
        };
        chain.push(Box::new(keep));
        Ok(self.draw(vec![label; count], first, Wanted::default(), chain)?.images)
    }

    /// The guided logits of every scale where all tokens are given, of pictures `first` and following.
    pub(crate) fn taught(&self, labels: &[usize], first: u64, tokens: TokenPyramid) -> Result<Vec<Tensor<3>>> {
        let mut chain = self.chain(false)?;
        chain.push(Box::new(Keep::all(tokens)));
        let labels = labels.iter().copied().map(Some).collect();
        Ok(self.draw(labels, first, Wanted { logits: true, ..Default::default() }, chain)?.logits)
    }

    fn draw(
        &self,
        labels: Vec<Label>,
        first: u64,
        wanted: Wanted,
        mut chain: Vec<Box<dyn Guidance>>,
    ) -> burn_var::Result<Drawn> {
        let (tokenizer, transformer) = (&self.pair.tokenizer, self.transformer(wanted.plain));
        let request = Request { labels, seed: self.seed, first, sampler: self.sampler };
        let (mut canvases, mut logits) = (Vec::new(), Vec::new());
        let start = Instant::now();
        let made = generate(tokenizer, transformer, &mut chain, &request, &mut |scale| {
            if wanted.stages {
                canvases.push(scale.canvas.clone());
            }
            if wanted.logits {
                logits.push(scale.logits.clone());
            }
            ControlFlow::Continue(())
        })?;
        self.sync()?;
        let drawn = Instant::now();
        let images = tokenizer.decode(made.canvas);
        self.sync()?;
        let time = [drawn - start, drawn.elapsed()];
        let stages = canvases.into_iter().map(|canvas| tokenizer.decode(canvas)).collect();
        Ok(Drawn { images, stages, logits, tokens: made.tokens, time })
    }

    /// Waits for the device.
    fn sync(&self) -> burn_var::Result<()> {
        self.pair.tokenizer.codebook().device().sync().map_err(burn_var::Error::device("finish its work"))
    }

    /// What was used, for results.
    pub(crate) fn settings(&self) -> serde_json::Value {
        let mut settings = serde_json::json!(self.guidance);
        settings["seed"] = serde_json::json!(self.seed);
        settings["sampler"] = serde_json::json!(self.sampler);
        if let Some((_, injected)) = &self.aid {
            settings["aid"] = serde_json::json!(injected);
        }
        if let Some(lora) = &self.lora {
            settings["lora"] = serde_json::json!(lora);
        }
        settings
    }
}

/// The injector in a file, or a model's own, for its transformer.
fn injected(settings: &AidSettings, pair: &Pair, device: &Device) -> Result<Option<(Aid, Injected)>> {
    let dict = match (&settings.file, &pair.injector) {
        (Some(file), _) => StateDict::open(file)?,
        (None, Some(own)) => own.clone(),
        (None, None) if settings.if_any => return Ok(None),
        (None, None) => return Err(usage("the model has no injector of its own: name one with --aid")),
    };
    let injector = Injector::load(&dict, device)?;
    let weight = settings.weight(AidWeight::of(&dict)?)?;
    let weights = Fingerprint::new().module(&injector)?.finish();
    let aid = Aid::new(injector, &pair.transformer, weight.clone())?;
    Ok(Some((aid, Injected { file: dict.origin().to_owned(), weights, weight })))
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
        let [_, height, width] = self.generator.pair.tokenizer.image_shape();
        MapSize { height, width }
    }

    fn channels(&self) -> usize {
        self.generator.pair.tokenizer.image_shape()[0]
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
