//! `burn-var eval`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use burn::tensor::Device;
use burn_var::classifier::Classifier;
use burn_var::metrics::{MeanPsnr, psnr, ssim};
use burn_var::pretrained::{StateDict, load_classifier};
use burn_var::{TokenPyramid, Tokenizer};
use burn_var_train::data::{BatchLoader, PictureOptions, PictureShape, PictureSource, Split, View, open_pictures};
use burn_var_train::figures::{Collection, Real, figures};
use burn_var_train::grid::{Range, pictures};
use serde::Serialize;

use crate::classes::equal_parts;
use crate::commands::reconstruct::planes;
use crate::generator::{Generator, SamplingArgs};
use crate::models::{ModelArgs, PairArgs};
use crate::output::{Output, usage};

/// Pictures reconstructed at a time.
const BATCH: usize = 50;

/// What to measure.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Generated pictures: are they recognised, how far are they from real ones, are they copies.
    Generated(GeneratedArgs),
    /// The tokenizer: PSNR and SSIM of reconstructed test pictures, and the share of its codes in use.
    Tokenizer(TokenizerArgs),
}

/// Generated pictures against real ones.
#[derive(Debug, clap::Args)]
pub(crate) struct GeneratedArgs {
    /// A folder of IDX files, or one with a sub-folder a class.
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// The classifier's file, from `burn-var train classifier`.
    #[arg(long, value_name = "FILE")]
    classifier: PathBuf,
    /// Pictures to generate, all classes in equal parts.
    #[arg(long, value_name = "PICTURES", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(2..))]
    count: u32,
    /// Mirrored copies of training pictures count as copies: the model was trained on mirrored pictures.
    #[arg(long)]
    mirror: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: PairArgs,
}

/// A tokenizer on the test pictures.
#[derive(Debug, clap::Args)]
pub(crate) struct TokenizerArgs {
    /// A folder of IDX files, or one with a sub-folder a class.
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
}

pub(crate) fn run(command: &Command, device: &Device, output: Output) -> Result<()> {
    match command {
        Command::Generated(args) => generated(args, device, output),
        Command::Tokenizer(args) => tokenizer(args, device, output),
    }
}

fn open(data: &Path, split: Split, shape: PictureShape) -> Result<BatchLoader> {
    let source: Arc<dyn PictureSource> = open_pictures(data, split, &PictureOptions::default())?;
    Ok(BatchLoader::new(source, shape))
}

fn generated(args: &GeneratedArgs, device: &Device, output: Output) -> Result<()> {
    let classifier: Classifier = load_classifier(&StateDict::open(&args.classifier)?, device)?;
    let generator = Generator::new(&args.model, &args.sampling, device)?;
    let shape @ [channels, height, width] = generator.pair.tokenizer.picture_shape();
    if classifier.config().picture_shape() != shape {
        let found = classifier.config().picture_shape();
        return Err(usage(format!("the classifier takes pictures of {found:?}, the model makes {shape:?}")));
    }
    let shape = PictureShape::new(height, width, channels)?;
    let [train, test] = [Split::Train, Split::Test].map(|split| open(&args.data, split, shape));
    let (train, test) = (train?, test?);
    let classes: Vec<usize> = (0..generator.pair.classes().count).collect();
    let labels = equal_parts(&classes, args.count as usize);
    let bar = output.bar(labels.len(), "pictures");
    let mut collection = Collection::default();
    generator.run(&labels, false, |batch| {
        bar.inc(batch.labels.len() as u64);
        Ok(collection.add(&classifier, batch.images, batch.labels)?)
    })?;
    bar.finish_and_clear();
    output.note("compares them with real pictures");
    let real = Real { train: &train, mirror: args.mirror, test: &test };
    let found = figures(&classifier, &collection, real, device)?;
    let mut report = serde_json::to_value(&found).context("figures as JSON")?;
    report["settings"] = generator.settings();
    output.result(&report, || {
        let percent = |share: f64| format!("{:.2}%", 100.0 * share);
        let copies = |name: &str, copies: burn_var_train::figures::Copies| {
            let (made, test) = (percent(copies.generated), percent(copies.test));
            format!("near copies by {name:<13} {made} of {} generated (test pictures: {test})", copies.compared)
        };
        [
            format!("pictures                   {}", found.generated),
            format!(
                "recognised as asked        {} (test pictures: {})",
                percent(found.recognised),
                percent(found.recognised_test)
            ),
            format!("Frechet distance to test   {:.3} (training pictures: {:.3})", found.frechet, found.frechet_floor),
            copies("pixels", found.copies_in_pixels),
            copies("features", found.copies_in_features),
        ]
        .join("\n")
    })
}

#[derive(Debug, Serialize)]
struct TokenizerReport {
    pictures: usize,
    /// Mean over pictures, dB.
    psnr: f64,
    /// Mean over pictures.
    ssim: f64,
    /// Share of all codes that at least one token of the test pictures is.
    codes_in_use: f64,
    /// The same for each scale.
    codes_in_use_by_scale: Vec<f64>,
}

fn tokenizer(args: &TokenizerArgs, device: &Device, output: Output) -> Result<()> {
    let tokenizer = args.model.load_tokenizer(device)?;
    let shape @ [channels, height, width] = tokenizer.picture_shape();
    let loader = open(&args.data, Split::Test, PictureShape::new(height, width, channels)?)?;
    let all: Vec<usize> = (0..loader.source().len()).collect();
    let bar = output.bar(all.len(), "pictures");
    let scales = tokenizer.scales();
    let mut used = vec![vec![false; tokenizer.vocab_size()]; scales.len()];
    let (mut mean, mut similarity) = (MeanPsnr::default(), 0.0);
    for indices in all.chunks(BATCH) {
        let images = loader.load(indices, View::Fixed { mirrored: false }, device)?.images;
        let tokens: TokenPyramid = tokenizer.tokenize(images.clone())?;
        for row in tokens.to_rows()? {
            for (k, used) in used.iter_mut().enumerate() {
                row[scales.range(k)].iter().for_each(|code| used[*code as usize] = true);
            }
        }
        let Some(canvas) = tokenizer.canvases(&tokens).pop() else { continue };
        let made = pictures(tokenizer.decode(canvas), Range::Signed)?;
        for (a, b) in pictures(images, Range::Signed)?.iter().zip(&made) {
            let [a, b] = [a, b].map(|picture| planes(picture, channels));
            mean.push(psnr(&a, &b, 255.0)?);
            similarity += ssim(&a, &b, shape, 255.0)?;
        }
        bar.inc(indices.len() as u64);
    }
    bar.finish_and_clear();
    let share = |used: &[bool]| used.iter().filter(|used| **used).count() as f64 / used.len() as f64;
    let anywhere: Vec<bool> = (0..tokenizer.vocab_size()).map(|code| used.iter().any(|used| used[code])).collect();
    let report = TokenizerReport {
        pictures: all.len(),
        psnr: mean.mean(),
        ssim: similarity / all.len() as f64,
        codes_in_use: share(&anywhere),
        codes_in_use_by_scale: used.iter().map(|used| share(used)).collect(),
    };
    output.result(&report, || {
        format!(
            "pictures      {}\nPSNR          {:.2} dB\nSSIM          {:.4}\ncodes in use  {:.1}%",
            report.pictures,
            report.psnr,
            report.ssim,
            100.0 * report.codes_in_use
        )
    })
}
