//! `burn-var eval sweep`

mod file;
mod measure;
mod report;

use std::path::PathBuf;

use anyhow::Result;
use burn::tensor::Device;
use burn_var_train::eval::Shard;

use self::file::{Sweep, Training, Variant};
use self::measure::{Inputs, Pipelines};
use self::report::{Measured, Report, Run};
use super::network::{JudgeArgs, NetworkArgs, Networks};
use crate::models::{PairArgs, check_target};
use crate::output::{Output, UsageError, usage};
use crate::shards::{self, ShardArgs, unfit};

/// Evaluate many settings alike: tune settings, compare methods and trainings.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The settings, a TOML file: `count`, `seeds`, and for each `[[method]]` its `name`, the `settings` as in a file for
    /// --settings, and those to `vary`, such as `temperature = [0.7, 1.0]`. A method may name its own `tokenizer` and
    /// `transformer`, or several `transformers` that were trained with other seeds. `baseline = "NAME"` names the method
    /// that the others are compared with, and `reference = "validation"` compares with a part of the training images.
    file: PathBuf,
    /// Real images: a folder of IDX files, or one with a sub-folder per class. Its test images are the reference.
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    judges: JudgeArgs,
    /// Bootstrap resamples for the interval of the geometric mean over the judges; 0 for none. Each costs as much as a
    /// Frechet distance through every judge.
    #[arg(long, value_name = "TIMES", default_value_t = 200)]
    resamples: u32,
    /// Save measures in this folder. The same command resumes an interrupted sweep, and measures only what is new.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Plot the Frechet distance of each method over the share of recognized images, an SVG file.
    #[arg(long, value_name = "FILE", requires = "classifier")]
    plot: Option<PathBuf>,
    /// Draw the geometric mean over the judges with its interval and its trainings, an SVG file.
    #[arg(long, value_name = "FILE", requires = "judges")]
    bars: Option<PathBuf>,
    /// Images generated and measured at a time. It changes speed and memory, not the images: 50 suit a CPU, 500 a GPU.
    #[arg(long, value_name = "IMAGES", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    #[command(flatten)]
    pub(crate) shards: ShardArgs,
    #[command(flatten)]
    model: PairArgs,
}

pub(crate) fn run(args: &Args, device: &Device, output: Output) -> Result<()> {
    for path in [&args.plot, &args.bars].into_iter().flatten() {
        check_target(path)?;
    }
    if (1..20).contains(&args.resamples) {
        return Err(usage("--resamples: expected 0, or 20 and more for a 95% interval"));
    }
    let (sweep, variants, baseline) = Sweep::read(&args.file)?;
    let networks = Networks::load(&args.network, &args.judges, device)?;
    let mut pipelines = Pipelines::new(&args.model, device)?;
    // A file that is missing must be named before hours of work, not after.
    for variant in &variants {
        let check = |training: &Training| pipelines.files(training).map(|_| ());
        variant.trainings.iter().try_for_each(check).map_err(|error| named(variant, error))?;
    }
    let first = pipelines.generator(&variants[0].trainings[0]).map_err(|error| named(&variants[0], error))?;
    let shape = first.pipeline.image_shape();
    if let Some(shard) = args.shards.shard() {
        let images = collect_shard(args, &sweep, &variants, &networks, &mut pipelines, shard, output)?;
        return shards::result(output, shard, images, &args.out);
    }
    let inputs = Inputs::open(args, &sweep, &networks, shape, device, output)?;

    let mut measured = Vec::new();
    for variant in &variants {
        let mut measure = || -> Result<Measured> {
            let (mut runs, mut settings) = (Vec::new(), serde_json::Value::Null);
            for training in &variant.trainings {
                let (generator, set) = pipelines.images(training, sweep.count, args.batch)?;
                let mut seeds = Vec::new();
                for seed in &sweep.seeds {
                    let bar = output.bar(sweep.count, &format!("{}, seed {seed}", training.label(variant)));
                    let run = inputs.measure(set.clone().with_seed(*seed), *seed, &bar);
                    bar.finish_and_clear();
                    seeds.push(run?);
                }
                settings = generator.settings();
                runs.push(Run { training: training.name.clone(), seeds });
            }
            if let Some(settings) = settings.as_object_mut() {
                settings.remove("seed");
            }
            Ok(Measured::new(variant, settings, runs))
        };
        measured.push(measure().map_err(|error| named(variant, error))?);
    }
    let report = Report::new(&inputs, &sweep, measured, baseline)?;
    if let Some(path) = &args.plot {
        report.plot(path)?;
    }
    if let Some(path) = &args.bars {
        report.bars(path)?;
    }
    output.result(&report, || report.text())
}

/// Computes the features of one shard of all images of the sweep, and saves them; returns the number of images.
fn collect_shard(
    args: &Args,
    sweep: &Sweep,
    variants: &[Variant],
    networks: &Networks,
    pipelines: &mut Pipelines<'_>,
    shard: Shard,
    output: Output,
) -> Result<usize> {
    let (part, mut total) = (shard.range(sweep.count).map_err(unfit)?.len(), 0);
    for variant in variants {
        for training in &variant.trainings {
            let images = pipelines.images(training, sweep.count, args.batch);
            let (_, set) = images.map_err(|error| named(variant, error))?;
            for seed in &sweep.seeds {
                let bar = output.bar(part, &format!("{}, seed {seed}", training.label(variant)));
                let done = measure::collect_shard(args, networks, set.clone().with_seed(*seed), shard, &bar);
                bar.finish_and_clear();
                done.map_err(|error| named(variant, error))?;
                total += part;
            }
        }
    }
    Ok(total)
}

/// Adds the name of a method to an error.
fn named(variant: &Variant, error: anyhow::Error) -> anyhow::Error {
    let name = variant.name();
    match error.downcast::<UsageError>() {
        Ok(wrong) => usage(format!("the method `{name}`: {wrong}")),
        Err(error) => error.context(format!("the method `{name}`")),
    }
}
