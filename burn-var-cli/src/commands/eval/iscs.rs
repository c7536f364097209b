//! `burn-var eval iscs`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use burn_var::TokenPyramid;
use burn_var::metrics::{Iscs, IscsScore, Side};
use burn_var::models::dino::Vit;
use burn_var::ops;
use burn_var::pipeline::Pipeline;
use burn_var::weights::{Pretrained, StateDict};
use burn_var_train::curves::{Chart, Series};
use burn_var_train::data::{BatchLoader, ImageOptions, ImageShape, Split, View, open_images};
use burn_var_train::eval::evenly;
use clap::ValueEnum;
use serde::Serialize;

use crate::generator::{DrawArgs, Generator, Plain, Wanted};
use crate::models::check_target;
use crate::output::{Output, usage};

/// Measure whether images change from scale to scale as real ones do: AID-VAR's inter-scale consistency score.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Real images: a folder of IDX files, or one with a sub-folder per class. Its test images are encoded, and decoded scale
    /// by scale.
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// The feature of an image at each scale.
    #[arg(long, value_enum, default_value_t)]
    feature: Feature,
    /// The vision transformer for `dino-cls`.
    #[arg(long, value_name = "FILE")]
    dino: Option<PathBuf>,
    /// Images to generate, in equal parts of all classes, and real images to compare them with. The score depends on it.
    #[arg(long, value_name = "IMAGES", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(2..))]
    count: u32,
    /// Plot the score of every transition, an SVG file.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    draw: DrawArgs,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Feature {
    /// The class token of a DINO vision transformer for the decoded image, as in the papers.
    #[default]
    DinoCls,
    /// The mean of the scale's token embeddings in the transformer, as in an earlier version of the authors' code.
    VaeTokens,
}

#[derive(Debug, Serialize)]
struct Report {
    feature: Feature,
    #[serde(rename = "pictures")]
    images: usize,
    #[serde(rename = "real_pictures")]
    real_images: usize,
    /// The score with classifier-free guidance alone.
    baseline: IscsScore,
    /// The score with the requested injector, LoRA or guidance.
    guided: Option<IscsScore>,
    /// Share of tokens that differ between the two, which use the same seeds.
    tokens_changed: Option<f64>,
    settings: serde_json::Value,
}

/// Computes the feature of images at each scale.
enum ScaleFeatures {
    Dino(Box<Vit>),
    Tokens,
}

impl ScaleFeatures {
    fn load(args: &Args, device: &Device) -> Result<Self> {
        match (args.feature, &args.dino) {
            (Feature::DinoCls, None) => Err(usage("--feature dino-cls needs a network: name one with --dino")),
            (Feature::DinoCls, Some(file)) => {
                let dict = StateDict::open(file)?;
                Ok(Self::Dino(Box::new(Vit::load(&dict, device)?)))
            }
            (Feature::VaeTokens, Some(_)) => Err(usage("--dino applies to --feature dino-cls only")),
            (Feature::VaeTokens, None) => Ok(Self::Tokens),
        }
    }

    /// Returns the features of a batch at each scale. `stages` are the images decoded after each scale, for `Dino`.
    fn extract(&self, stages: Vec<Tensor<4>>, tokens: &TokenPyramid, pipeline: &Pipeline) -> Result<Vec<Vec<f32>>> {
        let read = |features: Tensor<2>| -> Result<Vec<f32>> {
            Ok(features.try_into_vec_as::<f32>().map_err(burn_var::Error::device("read features"))?)
        };
        match self {
            Self::Dino(vit) => stages.into_iter().map(|images| read(vit.forward(vit.prepare(images)?)?)).collect(),
            Self::Tokens => {
                let embedding = code_embedding(pipeline)?;
                let bias = embedding.bias.as_ref().map(|bias| bias.val());
                let embed = |codes| ops::linear(codes, embedding.weight.val(), bias.clone());
                (0..tokens.scales().len())
                    .map(|k| read(embed(pipeline.tokenizer().lookup(tokens.map(k))).mean_dim(1).squeeze_dim::<2>(1)))
                    .collect()
            }
        }
    }

    fn dim(&self, pipeline: &Pipeline) -> Result<usize> {
        Ok(match self {
            Self::Dino(vit) => vit.config().embed_dim,
            Self::Tokens => code_embedding(pipeline)?.weight.dims()[1],
        })
    }
}

fn code_embedding(pipeline: &Pipeline) -> Result<&Linear> {
    pipeline.code_embedding().context("--feature vae-tokens needs a model that embeds code vectors; use dino-cls")
}

pub(crate) fn run(args: &Args, device: &Device, output: Output) -> Result<()> {
    if let Some(path) = &args.plot {
        check_target(path)?;
    }
    let features = ScaleFeatures::load(args, device)?;
    let generator = Generator::new(&args.draw, Plain::Too, device)?;
    let pipeline = &generator.pipeline;
    let (tokenizer, scales) = (pipeline.tokenizer(), pipeline.scales());
    let stages = matches!(features, ScaleFeatures::Dino(_));
    let mut empty = Iscs::new(scales.len(), features.dim(pipeline)?)?;

    let [channels, height, width] = pipeline.image_shape();
    let source = open_images(&args.data, Split::Test, &ImageOptions::default())?;
    let loader = BatchLoader::new(source, ImageShape::new(height, width, channels)?);
    let chosen = evenly(loader.source().len(), args.count as usize);
    let bar = output.bar(chosen.len(), "real images");
    for numbers in chosen.chunks(pipeline.batch_size()) {
        let images = loader.load(numbers, View::Fixed { mirrored: false }, device)?.images;
        let tokens = tokenizer.encode(images, scales)?;
        let canvases = if stages { tokenizer.canvases(&tokens) } else { Vec::new() };
        let stages = canvases.into_iter().map(|canvas| tokenizer.preview(canvas, scales)).collect();
        empty.push(Side::Real, &features.extract(stages, &tokens, pipeline)?)?;
        bar.inc(numbers.len() as u64);
    }
    bar.finish_and_clear();

    let labels = generator.labels_in_turn(args.count as usize);
    let score = |plain: bool, name: &'static str| -> Result<(IscsScore, Vec<Vec<u32>>)> {
        let (mut iscs, mut tokens) = (empty.clone(), Vec::new());
        let bar = output.bar(labels.len(), name);
        generator.run(&labels, Wanted { stages, plain, ..Default::default() }, |batch| {
            let output = batch.output;
            iscs.push(Side::Generated, &features.extract(output.stages, &output.tokens, pipeline)?)?;
            tokens.extend(output.tokens.to_rows()?);
            bar.inc(batch.labels.len() as u64);
            Ok(())
        })?;
        bar.finish_and_clear();
        Ok((iscs.score()?, tokens))
    };
    let (baseline, drawn) = score(true, "images")?;
    let guided = generator.is_guided().then(|| score(false, "guided images")).transpose()?;
    let tokens_changed = guided.as_ref().map(|(_, others)| differing(&drawn, others));
    let report = Report {
        feature: args.feature,
        images: labels.len(),
        real_images: chosen.len(),
        baseline,
        guided: guided.map(|(score, _)| score),
        tokens_changed,
        settings: generator.settings(),
    };
    if let Some(path) = &args.plot {
        plot(path, &report)?;
    }
    output.result(&report, || text(&report))
}

/// Returns the share of places where two lists of equal length differ.
fn differing(a: &[Vec<u32>], b: &[Vec<u32>]) -> f64 {
    let pairs = || a.iter().flatten().zip(b.iter().flatten());
    pairs().filter(|(a, b)| a != b).count() as f64 / pairs().count() as f64
}

fn plot(path: &Path, report: &Report) -> Result<()> {
    let series = |name: &str, score: &IscsScore| {
        let points = score.transitions.iter().map(|transition| (transition.to as f64, transition.score)).collect();
        Series { name: name.to_owned(), points }
    };
    let mut lines = vec![series("baseline", &report.baseline)];
    lines.extend(report.guided.iter().map(|guided| series("guided", guided)));
    let chart = Chart { smoothing: 0.0, ..Chart::new("Consistency of each scale with the scale before", "1 / FD") };
    Ok(chart.write(path, &lines)?)
}

fn text(report: &Report) -> String {
    let Report { baseline, guided, images, real_images, .. } = report;
    let mut lines = vec![
        format!("inter-scale consistency of {images} generated and {real_images} real images; higher is better"),
        format!("{:<6}{:>12}{:>12}", "scale", "baseline", if guided.is_some() { "guided" } else { "" }),
    ];
    let line = |name: String, of: &dyn Fn(&IscsScore) -> f64| {
        let guided = guided.as_ref().map(|guided| format!("{:>12.4}", of(guided))).unwrap_or_default();
        format!("{name:<6}{:>12.4}{guided}", of(baseline))
    };
    for (i, transition) in baseline.transitions.iter().enumerate() {
        lines.push(line(transition.to.to_string(), &|score| score.transitions[i].score));
    }
    lines.push(line("total".into(), &|score| score.total));
    lines.extend(report.tokens_changed.map(|share| format!("tokens changed: {:.1}%", 100.0 * share)));
    lines.join("\n")
}
