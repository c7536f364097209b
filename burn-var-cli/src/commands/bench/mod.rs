//! `burn-var bench`

mod check;
mod evaluation;
mod guidance;
mod made_up;
mod profile;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use burn::module::Module;
use burn::tensor::{Device, Distribution, Tensor};
use burn_var::MapSize;
use burn_var::memory::peak_resident;
use burn_var::models::dino::VitConfig;
use burn_var::ops::{Precision, matmul};
use burn_var::pipeline::ModelPair;
use burn_var_train::engine::{Method, Trainer};
use clap::ValueEnum;
use serde::Serialize;
use tempfile::TempDir;

use self::made_up::{Preset, Trainable};
use self::profile::{Share, profile};
use crate::classes::equal_parts;
use crate::generator::{Generator, Pair, Plain, Wanted};
use crate::models::PairArgs;
use crate::output::{Output, bytes};
use crate::settings::SamplingArgs;

/// Measure speed and memory.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Measurements to run, separated by commas. [default: sample,train-tokenizer,train-var; with --preset sample]
    #[arg(long, value_enum, value_name = "MEASUREMENTS", value_delimiter = ',')]
    only: Vec<Measurement>,
    /// A published size with random weights, in place of a model: d16 to d36 of VAR, flexvar-d16 to flexvar-d24 of
    /// FlexVAR, gpt-b to gpt-3b of LlamaGen. Minutes per run on a CPU.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["model", "tokenizer", "transformer"])]
    preset: Option<Preset>,
    /// Number of timed runs, after one that is not timed; the median is shown.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Compare what the device computes with the CPU instead: logits, images, gradients, training steps. Fails if they differ by
    /// more than rounding.
    #[arg(long, conflicts_with_all = ["only", "runs", "train_batch", "profile"])]
    check: bool,
    /// Images in a training step. [default: 32, or 1 above 64 pixels]
    #[arg(long, value_name = "IMAGES", value_parser = clap::value_parser!(u32).range(1..))]
    train_batch: Option<u32>,
    /// Show the time of each operation in one more run. On flex only: other devices work asynchronously.
    #[arg(long)]
    profile: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: PairArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measurement {
    /// Images per second, by stage.
    Sample,
    /// Images to tokens.
    Encode,
    /// The last canvas to images.
    Decode,
    /// A training step of the tokenizer.
    TrainTokenizer,
    /// A training step of the transformer.
    TrainVar,
    /// DINO ViT-S/16 with random weights, images of 224 pixels.
    Dino,
    /// The same, with the gradient of the images.
    DinoBackward,
    /// AID-VAR's injector with random weights, at all scales of a batch: what it adds to sampling.
    Injector,
    /// Scaled Spatial Guidance, in the same way.
    Ssg,
    /// FID's Inception network, images of 299 pixels.
    Inception,
    /// The Frechet distance of two covariances of 2048 features.
    Frechet,
    /// Precision, recall, density and coverage of 10,000 images against 10,000, 2048 features each.
    Coverage,
    /// A matrix product of 2048 x 2048 numbers: the speed of the machine.
    Matmul,
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    device: String,
    threads: usize,
    results: Vec<Measured>,
    /// Peak memory of the process, in bytes; `None` where the system does not report it.
    peak_memory: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Measured {
    name: &'static str,
    unit: &'static str,
    /// Images in a run.
    batch: usize,
    median: f64,
    runs: Vec<f64>,
    /// Peak memory of the process so far, in bytes.
    peak_memory: Option<u64>,
    /// Time of each operation in a run, if asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    profile: Vec<Share>,
}

impl Measured {
    fn new(name: &'static str, unit: &'static str, batch: usize, runs: Vec<f64>) -> Self {
        let mut sorted = runs.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Self { name, unit, batch, median, runs, peak_memory: peak_resident(), profile: Vec::new() }
    }
}

impl Args {
    /// Returns the name of the model, and the model on a device.
    fn generator(&self, device: &Device, output: Output) -> Result<(String, Generator)> {
        let Some(preset) = self.preset else {
            let name = self.model.model.model.as_ref().map_or("compiled in", |_| "of your own");
            return Ok((name.to_owned(), Generator::of(&self.model, &self.sampling, Plain::Never, device)?));
        };
        output.note(format!("initializing the weights of {}", preset.name()));
        let settings = self.sampling.settings()?;
        let lora = settings.lora.as_deref();
        let scales = self.model.model.scales.clone();
        let pipeline = made_up::pipeline(preset, scales, self.model.weights.into(), lora, device)?;
        let pipeline = pipeline.with_precision(self.model.model.precision(device));
        let generator = Generator::with(self.model.sized(pipeline)?, None, &settings)?;
        let generator = generator.with_seed(self.sampling.seed).with_batch(self.sampling.batch);
        Ok((format!("{} with random weights", preset.name()), generator))
    }
}

pub(crate) fn run(args: &Args, device: &Device, output: Output) -> Result<()> {
    if args.check {
        return check::run(args, device, output);
    }
    let wanted = match (&args.only[..], args.preset) {
        ([], None) => &[Measurement::Sample, Measurement::TrainTokenizer, Measurement::TrainVar][..],
        ([], Some(_)) => &[Measurement::Sample],
        (only, _) => only,
    };
    let (name, generator) = args.generator(device, output)?;
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let Args { runs, profile, .. } = *args;
    let training = args.model.model.training_precision(device);
    let mut bench = Bench { runs, profile, device, training, output, folder, results: Vec::new() };
    let train_batch = args.train_batch.map(|batch| batch as usize);
    for what in wanted {
        generator.pipeline.precision().scope(|| match generator.pair()? {
            Pair::Var(pair) => bench.measure(*what, &generator, pair, train_batch),
            Pair::FlexVar(pair) => bench.measure(*what, &generator, pair, train_batch),
            Pair::LlamaGen(pair) => bench.measure(*what, &generator, pair, train_batch),
        })?;
    }
    let results = bench.results;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let device = format!("{device:?}");
    let report = Report { model: name, device, threads, results, peak_memory: peak_resident() };
    output.result(&report, || text(&report))
}

fn text(report: &Report) -> String {
    let line = |measured: &Measured| {
        let Measured { name, unit, batch, median, .. } = measured;
        let memory = measured.peak_memory.map(|peak| format!(", {} of memory so far", bytes(peak)));
        format!("{name:<24} {median:>10.3} {unit} (batch {batch}{})\n", memory.unwrap_or_default())
    };
    let lines: String = report.results.iter().map(line).collect();
    let profiles = report.results.iter().filter(|measured| !measured.profile.is_empty());
    let profiles: String =
        profiles.map(|measured| format!("\n{}", profile::table(measured.name, &measured.profile))).collect();
    let runs = report.results.first().map_or(0, |measured| measured.runs.len());
    let Report { model, device, threads, .. } = report;
    format!("model {model}, {device}, {threads} threads, medians of {runs} runs\n{lines}{profiles}")
}

/// The measurements so far, and the way to measure.
struct Bench<'a> {
    runs: u32,
    profile: bool,
    device: &'a Device,
    /// Precision of training steps.
    training: Precision,
    output: Output,
    /// Data of the trainers.
    folder: TempDir,
    results: Vec<Measured>,
}

impl Bench<'_> {
    /// Runs one measurement.
    fn measure<M: Trainable>(
        &mut self,
        what: Measurement,
        generator: &Generator,
        pair: &ModelPair<M::Tokenizer, M>,
        train_batch: Option<usize>,
    ) -> Result<()> {
        let pipeline = &generator.pipeline;
        let (tokenizer, scales, batch) = (pipeline.tokenizer(), pipeline.scales(), pipeline.batch_size());
        let [channels, height, width] = pipeline.image_shape();
        let train_batch = train_batch.unwrap_or(if height > 64 { 1 } else { 32 });
        let device = self.device;
        let random = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Uniform(-1.0, 1.0), device);
        match what {
            Measurement::Sample => self.sample(generator),
            Measurement::Encode => {
                let images = random([batch, channels, height, width]);
                self.rate("images to tokens", "images/s", batch as f64, batch, |_| {
                    Ok(tokenizer.encode(images.clone(), scales)?)
                })
            }
            Measurement::Decode => {
                let MapSize { height, width } = scales.finest();
                let canvas = random([batch, tokenizer.z_channels(), height, width]);
                self.rate("canvas to images", "images/s", batch as f64, batch, |_| Ok(tokenizer.decode(canvas.clone())))
            }
            Measurement::TrainTokenizer => {
                let folder = self.folder.path();
                let trainer = made_up::tokenizer_trainer(&pair.tokenizer, scales, folder, train_batch, device)?;
                self.steps("tokenizer training", trainer, train_batch)
            }
            Measurement::TrainVar => {
                let trainer = made_up::transformer_trainer(pair, scales, self.folder.path(), train_batch, device)?;
                self.steps("transformer training", trainer, train_batch)
            }
            Measurement::Dino => {
                let vit = VitConfig::dino_small_16().init(1, device)?;
                let images = random([batch, 3, 224, 224]);
                self.rate("DINO ViT-S/16", "images/s", batch as f64, batch, |_| Ok(vit.forward(images.clone())?))
            }
            Measurement::DinoBackward => {
                let vit = VitConfig::dino_small_16().init(1, &device.clone().autodiff())?.freeze();
                let images = random([batch, 3, 224, 224]);
                self.rate("DINO ViT-S/16, gradients", "images/s", batch as f64, batch, |_| {
                    let images = Tensor::from_inner(images.clone()).require_grad();
                    Ok(vit.forward(images)?.sum().backward())
                })
            }
            Measurement::Injector => self.injector(pipeline, batch),
            Measurement::Ssg => self.ssg(pipeline, batch),
            Measurement::Inception => self.inception(batch),
            Measurement::Frechet => self.frechet(),
            Measurement::Coverage => self.coverage(),
            Measurement::Matmul => {
                let size = 2048;
                let [a, b] = [(); 2].map(|()| random([1, 1, size, size]));
                self.rate("matrix product", "GFLOP/s", 2e-9 * (size as f64).powi(3), 1, |_| {
                    Ok(matmul(a.clone(), b.clone()))
                })
            }
        }
    }

    /// Runs `work` once to warm up, then the timed runs, then once more for the profile if asked for.
    fn each_run<R>(&self, name: &str, mut work: impl FnMut(u64) -> Result<R>) -> Result<(Vec<f64>, Vec<Share>)> {
        let mut times = Vec::new();
        for run in 0..=self.runs {
            self.output.note(format!("{name}, run {run} of {}", self.runs));
            let start = Instant::now();
            work(u64::from(run))?;
            self.device.sync().context("the device failed")?;
            times.push(start.elapsed().as_secs_f64());
        }
        let shares = match self.profile {
            true => {
                let (result, shares) = profile(|| work(u64::from(self.runs) + 1));
                result.map(|_| shares)?
            }
            false => Vec::new(),
        };
        Ok((times.split_off(1), shares))
    }

    /// Measures `amount` per second.
    fn rate<R>(
        &mut self,
        name: &'static str,
        unit: &'static str,
        amount: f64,
        batch: usize,
        work: impl FnMut(u64) -> Result<R>,
    ) -> Result<()> {
        let (times, profile) = self.each_run(name, work)?;
        let rates = times.into_iter().map(|seconds| amount / seconds).collect();
        self.results.push(Measured { profile, ..Measured::new(name, unit, batch, rates) });
        Ok(())
    }

    /// Measures seconds.
    fn seconds<R>(&mut self, name: &'static str, batch: usize, work: impl FnMut(u64) -> Result<R>) -> Result<()> {
        let (times, profile) = self.each_run(name, work)?;
        self.results.push(Measured { profile, ..Measured::new(name, "s", batch, times) });
        Ok(())
    }

    /// Measures one training step per run.
    fn steps<M: Method>(&mut self, name: &'static str, trainer: Trainer<M>, batch: usize) -> Result<()> {
        let mut trainer = trainer.with_precision(self.training)?;
        let (times, profile) = self.each_run(name, |step| Ok(trainer.step(step, false)?))?;
        self.results.push(Measured { profile, ..Measured::new(name, "s/step", batch, times) });
        Ok(())
    }

    /// Measures one batch of images per run.
    fn sample(&mut self, generator: &Generator) -> Result<()> {
        let batch = generator.pipeline.batch_size();
        let labels = equal_parts(&generator.classes(), batch);
        let mut stages: Vec<[Duration; 2]> = Vec::new();
        let (times, profile) = self.each_run("sampling", |_| {
            generator.run(&labels, Wanted::default(), |batch| {
                stages.push(batch.output.time);
                Ok(())
            })
        })?;
        let rates = |seconds: &mut dyn Iterator<Item = f64>| seconds.map(|seconds| batch as f64 / seconds).collect();
        // The first run is not timed, and a profiled one comes last.
        let stage = |name, stage: usize| {
            let seconds = &mut stages[1..=times.len()].iter().map(|times| times[stage].as_secs_f64());
            Measured::new(name, "images/s", batch, rates(seconds))
        };
        let stages = [stage("sampling: transformer", 0), stage("sampling: decoder", 1)];
        let whole = Measured::new("sampling", "images/s", batch, rates(&mut times.iter().copied()));
        self.results.push(Measured { profile, ..whole });
        self.results.extend(stages);
        Ok(())
    }
}
