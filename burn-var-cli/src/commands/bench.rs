//! `burn-var bench`

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use burn::tensor::Device;
use burn_var::Tokenizer;
use burn_var::pretrained::{Usage, save_vqvae};
use burn_var::rng::Rng;
use burn_var::tokenizer::{VqVae, VqVaeConfig};
use burn_var::transformer::{VarInit, VarPreset};
use burn_var_train::data::{BatchLoader, PictureShape, Split, TokenCache, TokenCacheSpec, TokenCacheWriter, View};
use burn_var_train::grid::write_png;
use burn_var_train::run::Trainer;
use burn_var_train::tokenizer::{TokenizerConfig, TokenizerTrainer};
use burn_var_train::var::{VarTrainConfig, VarTrainer};
use clap::ValueEnum;
use image::{Rgb, RgbImage};
use serde::Serialize;

use crate::classes::equal_parts;
use crate::generator::{Generator, SamplingArgs};
use crate::memory;
use crate::models::{Pair, PairArgs};
use crate::output::{Output, bytes};

/// Made-up pictures to train on, a class.
const PICTURES: usize = 32;

/// Measure speed and memory.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to measure, several with commas. [default: all; with --preset sampling alone]
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<What>,
    /// A published size, d16 to d36, with random weights, in place of a model; minutes a run on a CPU.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["model", "tokenizer", "transformer"])]
    preset: Option<VarPreset>,
    /// Timed runs, after one that is not timed; medians are shown.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Pictures in a training step. [default: 32, or 1 above 64 pixels]
    #[arg(long, value_name = "PICTURES", value_parser = clap::value_parser!(u32).range(1..))]
    train_batch: Option<u32>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: PairArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Pictures a second, by stage.
    Sample,
    /// A training step of the tokenizer.
    TrainTokenizer,
    /// A training step of the transformer.
    TrainVar,
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    device: String,
    threads: usize,
    results: Vec<Measured>,
    /// Bytes, of the whole process; `None` where the system does not say.
    peak_memory: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Measured {
    name: &'static str,
    unit: &'static str,
    /// Pictures in a run.
    batch: usize,
    median: f64,
    runs: Vec<f64>,
    /// Bytes, of the process until then.
    peak_memory: Option<u64>,
}

impl Measured {
    fn new(name: &'static str, unit: &'static str, batch: usize, runs: Vec<f64>) -> Self {
        let mut sorted = runs.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Self { name, unit, batch, median, runs, peak_memory: memory::peak() }
    }
}

pub(crate) fn run(args: &Args, device: &Device, output: Output) -> Result<()> {
    let wanted = match (&args.only[..], args.preset) {
        ([], None) => &[What::Sample, What::TrainTokenizer, What::TrainVar][..],
        ([], Some(_)) => &[What::Sample],
        (only, _) => only,
    };
    let (name, pair) = match args.preset {
        Some(preset) => {
            output.note(format!("draws the weights of {}", preset.name()));
            (format!("{} with random weights", preset.name()), random_pair(preset, device)?)
        }
        None => (
            args.model.model.model.as_ref().map_or("compiled in", |_| "of your own").to_owned(),
            args.model.load(device)?,
        ),
    };
    let generator = Generator::of(pair, &args.sampling)?;
    let large = generator.pair.tokenizer.picture_shape()[1] > 64;
    let train_batch = args.train_batch.map_or(if large { 1 } else { 32 }, |batch| batch as usize);
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let mut results = Vec::new();
    for what in wanted {
        match what {
            What::Sample => results.extend(sample(&generator, args.runs, output)?),
            What::TrainTokenizer => {
                let data = made_up(folder.path(), &generator.pair.tokenizer)?;
                let config = toml::from_str(&training(train_batch, &data, ""))?;
                let config = TokenizerConfig { model: generator.pair.tokenizer.config().clone(), ..config };
                let mut trainer = TokenizerTrainer::new(config, folder.path(), device)?;
                results.push(steps("tokenizer training", &mut trainer, train_batch, args.runs, output)?);
            }
            What::TrainVar => {
                let mut trainer = var_trainer(&generator.pair, folder.path(), train_batch, device)?;
                results.push(steps("transformer training", &mut trainer, train_batch, args.runs, output)?);
            }
        }
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let device = format!("{device:?}");
    let report = Report { model: name, device, threads, results, peak_memory: memory::peak() };
    output.result(&report, || text(&report))
}

fn text(report: &Report) -> String {
    let line = |measured: &Measured| {
        let Measured { name, unit, batch, median, .. } = measured;
        let memory = measured.peak_memory.map(|peak| format!(", {} of memory so far", bytes(peak)));
        format!("{name:<24} {median:>10.3} {unit} (batch {batch}{})\n", memory.unwrap_or_default())
    };
    let lines: String = report.results.iter().map(line).collect();
    let runs = report.results.first().map_or(0, |measured| measured.runs.len());
    format!("model {}, {}, {} threads, medians of {runs} runs\n{lines}", report.model, report.device, report.threads)
}

/// One batch a run.
fn sample(generator: &Generator, runs: u32, output: Output) -> Result<Vec<Measured>> {
    let batch = generator.batch();
    let classes: Vec<usize> = (0..generator.pair.classes().count).collect();
    let labels = equal_parts(&classes, batch);
    let mut times: Vec<[Duration; 2]> = Vec::new();
    for run in 0..=runs {
        output.note(format!("sampling, run {run} of {runs}"));
        generator.run(&labels, false, |made| {
            times.push(made.time);
            Ok(())
        })?;
    }
    let rate = |seconds: fn(&[Duration; 2]) -> Duration| {
        times[1..].iter().map(|time| batch as f64 / seconds(time).as_secs_f64()).collect::<Vec<_>>()
    };
    Ok(vec![
        Measured::new("sampling", "pictures/s", batch, rate(|[a, b]| *a + *b)),
        Measured::new("sampling: transformer", "pictures/s", batch, rate(|time| time[0])),
        Measured::new("sampling: decoder", "pictures/s", batch, rate(|time| time[1])),
    ])
}

/// One step a run.
fn steps(name: &'static str, trainer: &mut dyn Trainer, batch: usize, runs: u32, output: Output) -> Result<Measured> {
    let mut times = Vec::new();
    for run in 0..=runs {
        output.note(format!("{name}, run {run} of {runs}"));
        let start = Instant::now();
        trainer.step(u64::from(run), false)?;
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(Measured::new(name, "s/step", batch, times.split_off(1)))
}

fn random_pair(preset: VarPreset, device: &Device) -> Result<Pair> {
    let config = preset.config()?;
    Ok(Pair {
        tokenizer: VqVaeConfig::public(config.patch_nums.clone()).init(1, device)?,
        transformer: config.init(VarInit::default(), 1, device)?,
        usage: Usage::default(),
    })
}

/// A run's configuration; what is not here is not measured.
fn training(batch: usize, data: &Path, rest: &str) -> String {
    // TOML takes a path as a string in Rust's notation, on Unix and on Windows.
    let model = "[model]\nch = 32\nch_mult = [1]\nnum_res_blocks = 1\nz_channels = 1\nvocab_size = 1\npatch_nums = [1]";
    let model = if rest.is_empty() { model } else { rest };
    format!("[run]\nsteps = 1000000\nbatch_size = {batch}\n[data]\npath = {data:?}\n{model}\n")
}

fn var_trainer(pair: &Pair, folder: &Path, batch: usize, device: &Device) -> Result<VarTrainer> {
    let data = made_up(folder, &pair.tokenizer)?;
    let file = folder.join("tokenizer.safetensors");
    save_vqvae(&pair.tokenizer, &file, false)?;
    let sizes = pair.transformer.config();
    let model = format!(
        "[model]\ndepth = {}\nembed_dim = {}\nnum_heads = {}\nmlp_ratio = {}\nshared_aln = {}\nattn_l2_norm = {}",
        sizes.depth, sizes.embed_dim, sizes.num_heads, sizes.mlp_ratio, sizes.shared_aln, sizes.attn_l2_norm
    );
    let mut config: VarTrainConfig =
        toml::from_str(&format!("tokenizer = {file:?}\n{}", training(batch, &data, &model)))?;
    config.run.batch_size = batch;
    let tokens = tokens(&data, &pair.tokenizer, &folder.join("tokens.safetensors"))?;
    // The trainer owns a tokenizer of its own.
    Ok(VarTrainer::new(config, pair.tokenizer.clone(), tokens, folder, device)?)
}

/// Tokens drawn at random: which ones makes no difference to the time.
fn tokens(data: &Path, tokenizer: &VqVae, path: &Path) -> Result<TokenCache> {
    let source = burn_var_train::data::open_pictures(data, Split::Train, &Default::default())?;
    let [channels, height, width] = tokenizer.picture_shape();
    let loader = BatchLoader::new(source, PictureShape::new(height, width, channels)?);
    let (scales, vocab) = (tokenizer.scales().clone(), tokenizer.vocab_size());
    let length = scales.tokens();
    let view = vec![View::Fixed { mirrored: false }];
    let spec = TokenCacheSpec::new(&**loader.source(), loader.shape(), view, scales, vocab, "random".to_owned());
    let mut writer = TokenCacheWriter::create(path, spec)?;
    for picture in 0..loader.source().len() {
        let mut rng = Rng::new(1, "bench tokens", picture as u64);
        let row: Vec<u32> = (0..length).map(|_| rng.below(vocab) as u32).collect();
        writer.push(loader.source().label(picture), &[row])?;
    }
    Ok(writer.finish()?)
}

/// A folder of noise in two classes, of the size that the model works with.
fn made_up(folder: &Path, tokenizer: &VqVae) -> Result<PathBuf> {
    let [_, height, width] = tokenizer.picture_shape();
    let data = folder.join("pictures");
    for class in ["a", "b"] {
        let class_folder = data.join(class);
        std::fs::create_dir_all(&class_folder)
            .with_context(|| format!("cannot create `{}`", class_folder.display()))?;
        for i in 0..PICTURES {
            let mut rng = Rng::new(1, class, i as u64);
            let mut picture = RgbImage::new(width as u32, height as u32);
            picture.pixels_mut().for_each(|pixel| *pixel = Rgb([(); 3].map(|()| rng.below(256) as u8)));
            write_png(class_folder.join(format!("{i}.png")), &picture)?;
        }
    }
    Ok(data)
}
