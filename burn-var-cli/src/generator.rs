//! Images of a pipeline, batch by batch.

use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use burn_var::editing::KnownTokens;
use burn_var::guidance::AidWeight;
use burn_var::image::{ValueRange, to_images};
use burn_var::models::aid::Injector;
use burn_var::models::common::Lora;
use burn_var::models::flexvar::{FlexVae, FlexVar};
use burn_var::models::llamagen::{LlamaGen, LlamaGenVq};
use burn_var::models::var::{Var, VqVae};
use burn_var::ops::Precision;
use burn_var::pipeline::{ModelFiles, ModelPair, Pipeline};
use burn_var::weights::{Pretrained, StateDict};
use burn_var::{BatchRequest, Condition, MapSize, TokenPyramid};
use burn_var_train::data::Fingerprint;
use burn_var_train::eval::ImageSet;

use crate::classes::in_turn;
use crate::models::PairArgs;
use crate::output::{asked, usage};
use crate::settings::{AidSettings, FileSettings, SamplingArgs};

/// A pipeline with the settings of the command line. Clones share the weights.
#[derive(Clone)]
pub(crate) struct Generator {
    pub(crate) pipeline: Pipeline,
    /// The pipeline without injector, LoRA and guidance other than CFG, if [`Plain::Too`] was asked for.
    plain: Option<Pipeline>,
    /// Fingerprint of the LoRA.
    lora: Option<String>,
    aid: Option<InjectorInfo>,
    seed: u64,
}

/// Tells if images without injector, LoRA and guidance other than CFG are needed too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plain {
    Never,
    /// With a LoRA, this takes memory for a second transformer.
    Too,
}

/// Tokenizer and transformer of a family.
pub(crate) enum Pair<'a> {
    Var(&'a ModelPair<VqVae, Var>),
    FlexVar(&'a ModelPair<FlexVae, FlexVar>),
    LlamaGen(&'a ModelPair<LlamaGenVq, LlamaGen>),
}

/// The origin of an injector, for results.
#[derive(Debug, Clone, serde::Serialize)]
struct InjectorInfo {
    file: PathBuf,
    weights: String,
    weight: AidWeight,
}

/// The results of a batch that are needed besides its images.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted {
    /// The images after every scale, or after every row of a raster.
    pub(crate) stages: bool,
    /// The guided logits of every scale.
    pub(crate) logits: bool,
    /// Use the pipeline without injector, LoRA and guidance other than CFG.
    pub(crate) plain: bool,
}

/// A finished batch.
pub(crate) struct Batch<'a> {
    pub(crate) labels: &'a [usize],
    /// Number of the first image.
    pub(crate) first: u64,
    pub(crate) output: BatchOutput,
}

/// The results of a batch.
pub(crate) struct BatchOutput {
    /// `[batch, channels, height, width]` in `[-1, 1]`.
    pub(crate) images: Tensor<4>,
    /// If wanted, the images after every stage, the last one included.
    pub(crate) stages: Vec<Tensor<4>>,
    /// If wanted, the guided logits of every scale, `[batch, tokens, vocab]`.
    pub(crate) logits: Vec<Tensor<3>>,
    pub(crate) tokens: TokenPyramid,
    /// Time in the transformer and in the decoder.
    pub(crate) time: [Duration; 2],
}

/// The model and the settings of generation.
#[derive(Debug, clap::Args)]
pub(crate) struct DrawArgs {
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    model: PairArgs,
}

impl Generator {
    pub(crate) fn new(args: &DrawArgs, plain: Plain, device: &Device) -> Result<Self> {
        Self::of(&args.model, &args.sampling, plain, device)
    }

    pub(crate) fn of(model: &PairArgs, args: &SamplingArgs, plain: Plain, device: &Device) -> Result<Self> {
        let (files, settings) = (model.open()?, args.settings()?);
        let generator = Self::build(model, &files, &settings, plain, device)?;
        Ok(generator.with_seed(args.seed).with_batch(args.batch))
    }

    /// Loads a model with settings.
    pub(crate) fn build(
        model: &PairArgs,
        files: &ModelFiles,
        settings: &FileSettings,
        plain: Plain,
        device: &Device,
    ) -> Result<Self> {
        let pipeline = Self::load(model, files, settings.lora.as_ref(), device)?;
        let mut generator = Self::with(pipeline, files.injector.as_ref(), settings)?;
        if plain == Plain::Too {
            generator.plain = Some(match &settings.lora {
                Some(_) => {
                    let mut plain = Self::load(model, files, None, device)?;
                    plain.configure(&settings.pipeline()).map_err(asked)?;
                    plain.plain()
                }
                None => generator.pipeline.plain(),
            });
        }
        Ok(generator)
    }

    /// Loads a pipeline without injector: the settings decide about it, see [`Generator::with`].
    pub(crate) fn load(
        model: &PairArgs,
        files: &ModelFiles,
        lora: Option<&PathBuf>,
        device: &Device,
    ) -> Result<Pipeline> {
        let builder = model.builder(files, device)?.without_injector();
        let pipeline = match lora {
            Some(file) => builder.lora(file).build()?,
            None => builder.build()?,
        };
        model.sized(pipeline)
    }

    /// Adds an injector and settings to a pipeline, into which the LoRA of the settings is merged already.
    pub(crate) fn with(mut pipeline: Pipeline, own: Option<&StateDict>, settings: &FileSettings) -> Result<Self> {
        let mut aid = None;
        if let Some((dict, weight)) = settings.aid.as_ref().map(|aid| injector_file(aid, own)).transpose()?.flatten() {
            let injector = Injector::load(&dict, &pipeline.device())?;
            let weights = Fingerprint::new().module(&injector)?.finish();
            pipeline = pipeline.with_injector(injector, weight.clone())?;
            aid = Some(InjectorInfo { file: dict.origin().to_owned(), weights, weight });
        }
        pipeline.configure(&settings.pipeline()).map_err(asked)?;
        let lora = settings.lora.as_ref().map(|file| lora_fingerprint(file, &pipeline.device())).transpose()?;
        Ok(Self { pipeline, plain: None, lora, aid, seed: 0 })
    }

    pub(crate) fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Sets the number of images per batch, if it is given.
    pub(crate) fn with_batch(self, batch: Option<u32>) -> Self {
        match batch {
            Some(batch) => Self { pipeline: self.pipeline.with_batch_size(batch as usize), ..self },
            None => self,
        }
    }

    /// Returns true if [`Wanted::plain`] leaves anything out.
    pub(crate) fn is_guided(&self) -> bool {
        let guidance = self.pipeline.guidance();
        self.aid.is_some() || guidance.ssg.is_some() || guidance.vpg.is_some() || self.lora.is_some()
    }

    /// Returns tokenizer and transformer.
    pub(crate) fn pair(&self) -> Result<Pair<'_>> {
        let var = self.pipeline.pair().map(Pair::Var);
        let pair = var.or_else(|| self.pipeline.pair().map(Pair::FlexVar));
        let pair = pair.or_else(|| self.pipeline.pair().map(Pair::LlamaGen));
        pair.context("this command is for models of VAR, FlexVAR and LlamaGen only")
    }

    /// Returns labels for `count` images that cycle through all classes.
    pub(crate) fn labels_in_turn(&self, count: usize) -> Vec<usize> {
        in_turn(&self.classes(), count)
    }

    /// Returns the labels of all classes.
    pub(crate) fn classes(&self) -> Vec<usize> {
        (0..self.pipeline.classes().count).collect()
    }

    /// Generates one image per label, and calls `take` with every batch.
    pub(crate) fn run(
        &self,
        labels: &[usize],
        wanted: Wanted,
        take: impl FnMut(Batch<'_>) -> Result<()>,
    ) -> Result<()> {
        self.run_part(labels, 0..labels.len(), wanted, take)
    }

    /// Generates the batches of [`Generator::run`] that have images of `part`. The first and the last may have others, too:
    /// batches of the same size are computed alike.
    pub(crate) fn run_part(
        &self,
        labels: &[usize],
        part: Range<usize>,
        wanted: Wanted,
        mut take: impl FnMut(Batch<'_>) -> Result<()>,
    ) -> Result<()> {
        let size = self.pipeline.batch_size();
        (part.start - part.start % size..part.end).step_by(size).try_for_each(|first| {
            let labels = &labels[first..labels.len().min(first + size)];
            let output = self.draw(Condition::classes(labels), first as u64, None, wanted)?;
            take(Batch { labels, first: first as u64, output })
        })
    }

    /// Generates images of a class, or without a condition, of which some tokens are known; `first` is the number of the
    /// first image.
    pub(crate) fn edit(&self, label: Option<usize>, count: usize, first: u64, known: KnownTokens) -> Result<Tensor<4>> {
        let conditions = vec![Condition::from(label); count];
        Ok(self.draw(conditions, first, Some(known), Wanted::default())?.images)
    }

    /// Returns the guided logits of every scale and the images with all tokens given: those of a teacher-forced model. `first`
    /// is the number of the first image.
    pub(crate) fn teacher_forced(&self, labels: &[usize], first: u64, tokens: TokenPyramid) -> Result<BatchOutput> {
        let wanted = Wanted { logits: true, ..Default::default() };
        Ok(self.draw(Condition::classes(labels), first, Some(KnownTokens::all(tokens)), wanted)?)
    }

    fn draw(
        &self,
        conditions: Vec<Condition>,
        first: u64,
        known: Option<KnownTokens>,
        wanted: Wanted,
    ) -> burn_var::Result<BatchOutput> {
        let pipeline = self.plain.as_ref().filter(|_| wanted.plain).unwrap_or(&self.pipeline);
        let sampler = pipeline.sampler();
        let request = BatchRequest { first, sampler, known, ..BatchRequest::new(conditions, self.seed) };
        let (mut canvases, mut logits) = (Vec::new(), Vec::new());
        let ends: Vec<usize> = pipeline.scales().stages().into_iter().map(|stage| stage.end).collect();
        let start = Instant::now();
        let mut steps = pipeline.start(request)?;
        for step in steps.by_ref() {
            let step = step?;
            if wanted.stages && ends.contains(&(step.k() + 1)) {
                canvases.push(step.scale().canvas.clone());
            }
            if wanted.logits {
                logits.push(step.scale().logits.clone());
            }
        }
        let generated = steps.finish()?;
        self.sync()?;
        let drawn = Instant::now();
        let images = pipeline.decode(generated.canvas);
        self.sync()?;
        let time = [drawn - start, drawn.elapsed()];
        let stages = canvases.into_iter().map(|canvas| pipeline.preview(canvas, self.pipeline.scales())).collect();
        Ok(BatchOutput { images, stages, logits, tokens: generated.tokens, time })
    }

    /// Waits for the device.
    fn sync(&self) -> burn_var::Result<()> {
        self.pipeline.device().sync().map_err(burn_var::Error::device("finish its work"))
    }

    /// Returns the settings, for results.
    pub(crate) fn settings(&self) -> serde_json::Value {
        let mut settings = serde_json::json!(self.pipeline.guidance());
        settings["seed"] = serde_json::json!(self.seed);
        settings["sampler"] = serde_json::json!(self.pipeline.sampler());
        // The weights of other families determine it.
        if matches!(self.pair(), Ok(Pair::FlexVar(_) | Pair::LlamaGen(_))) {
            settings["scales"] = serde_json::json!(self.pipeline.scales());
        }
        if self.pipeline.precision() != Precision::Exact {
            settings["precision"] = serde_json::json!(self.pipeline.precision());
        }
        if let Some(aid) = &self.aid {
            settings["aid"] = serde_json::json!(aid);
        }
        if let Some(lora) = &self.lora {
            settings["lora"] = serde_json::json!(lora);
        }
        settings
    }
}

/// Opens the injector that the settings name, or the model's own, and returns its weight.
fn injector_file(settings: &AidSettings, own: Option<&StateDict>) -> Result<Option<(StateDict, AidWeight)>> {
    let dict = match (&settings.file, own) {
        (Some(file), _) => StateDict::open(file)?,
        (None, Some(own)) => own.clone(),
        (None, None) if settings.if_any => return Ok(None),
        (None, None) => return Err(usage("the model has no injector of its own: name one with --aid")),
    };
    // A file of another kind is refused before its missing weight could matter.
    let weight = settings.weight(AidWeight::of(&dict)?)?;
    Ok(Some((dict, weight)))
}

/// Returns the fingerprint of a model of any family.
fn fingerprint(pipeline: &Pipeline) -> Result<String> {
    fn of<T: Module + 'static, M: Module + 'static>(pipeline: &Pipeline) -> Option<burn_var_train::Result<String>> {
        let ModelPair { tokenizer, transformer } = pipeline.pair::<T, M>()?;
        let whole = || Ok(Fingerprint::new().module(tokenizer)?.module(transformer)?.finish());
        Some(whole())
    }
    let found = of::<VqVae, Var>(pipeline);
    let found = found.or_else(|| of::<FlexVae, FlexVar>(pipeline)).or_else(|| of::<LlamaGenVq, LlamaGen>(pipeline));
    Ok(found.context("the family of the model is not known")??)
}

fn lora_fingerprint(file: &PathBuf, device: &Device) -> Result<String> {
    Ok(Fingerprint::new().module(&Lora::load(&StateDict::open(file)?, device)?)?.finish())
}

/// A set of images that are generated when they are read. Clones share the weights.
#[derive(Clone)]
pub(crate) struct GeneratedSet {
    generator: Generator,
    /// One per image.
    labels: Vec<usize>,
    /// Fingerprint of the model.
    model: String,
}

impl GeneratedSet {
    pub(crate) fn new(generator: Generator, labels: Vec<usize>) -> Result<Self> {
        let model = fingerprint(&generator.pipeline)?;
        Ok(Self { generator, labels, model })
    }

    /// Returns images of the same model and labels with another seed.
    pub(crate) fn with_seed(self, seed: u64) -> Self {
        Self { generator: self.generator.with_seed(seed), ..self }
    }

    /// Returns the number of the model's classes.
    pub(crate) fn classes(&self) -> usize {
        self.generator.pipeline.classes().count
    }

    fn pixels(&self, numbers: Range<usize>) -> burn_var_train::Result<Vec<u8>> {
        let conditions = Condition::classes(&self.labels[numbers.clone()]);
        let output = self.generator.draw(conditions, numbers.start as u64, None, Wanted::default())?;
        let images = to_images(output.images, ValueRange::Signed)?;
        Ok(images.into_iter().flat_map(image::RgbImage::into_raw).collect())
    }
}

impl ImageSet for GeneratedSet {
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
        let [_, height, width] = self.generator.pipeline.image_shape();
        MapSize { height, width }
    }

    fn channels(&self) -> usize {
        self.generator.pipeline.image_shape()[0]
    }

    fn labels(&self) -> Option<&[usize]> {
        Some(&self.labels)
    }

    fn read(
        &mut self,
        Range { start, end }: Range<usize>,
        batch: usize,
        take: &mut dyn FnMut(&[u8]) -> burn_var_train::Result<()>,
    ) -> burn_var_train::Result<()> {
        (start..end).step_by(batch).try_for_each(|at| take(&self.pixels(at..end.min(at + batch))?))
    }

    /// Generates these images alone: an image depends on its number, not on the others.
    fn pick(&mut self, numbers: &[usize]) -> burn_var_train::Result<Vec<u8>> {
        let pixels = numbers.iter().map(|number| self.pixels(*number..number + 1));
        Ok(pixels.collect::<burn_var_train::Result<Vec<_>>>()?.concat())
    }
}

/// Returns the path of an output, or its default in the current folder.
pub(crate) fn or_default(path: Option<&PathBuf>, default: &str) -> PathBuf {
    path.cloned().unwrap_or_else(|| PathBuf::from(default))
}
