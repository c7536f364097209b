//! `burn-var reconstruct`

use std::path::{Path, PathBuf};

use anyhow::Result;
use burn::tensor::{Device, Tensor, TensorData};
use burn_var::Tokenizer;
use burn_var::image::{ValueRange, to_images};
use burn_var::metrics::{MeanPsnr, psnr, ssim};
use burn_var_train::data::{ImageShape, load_image};
use burn_var_train::grid::write_png;
use image::RgbImage;
use serde::Serialize;

use crate::caption::{Row, sheet, stage_names};
use crate::generator::or_default;
use crate::models::{ModelArgs, check_target};
use crate::output::Output;

/// Side of the window of SSIM, in pixels.
const SSIM_WINDOW: usize = 11;

/// Encode images to tokens and decode them again, and measure the difference.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// PNG, JPEG or WebP files; resized and cropped to the tokenizer's size.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// Originals beside reconstructions, a PNG file. [default: burn-var-reconstruction.png]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Show each image after every scale of tokens, or every row of LlamaGen's.
    #[arg(long)]
    stages: bool,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    png: PathBuf,
    #[serde(rename = "pictures")]
    images: Vec<Measured>,
    /// Mean over the images with any error, dB.
    mean_psnr: f64,
}

#[derive(Debug, Serialize)]
struct Measured {
    path: PathBuf,
    /// dB.
    psnr: f64,
    /// `None` for images smaller than its window.
    ssim: Option<f64>,
}

pub(crate) fn run(args: &Args, device: &Device, output: Output) -> Result<()> {
    let png = or_default(args.out.as_ref(), "burn-var-reconstruction.png");
    check_target(&png)?;
    let (tokenizer, precision) = (args.model.load_tokenizer(device)?, args.model.precision(device));
    let [channels, height, width] = tokenizer.image_shape(tokenizer.scales());
    let shape = ImageShape::new(height, width, channels)?;
    let bar = output.bar(args.images.len(), "images");
    let (mut rows, mut found, mut mean) = (Vec::new(), Vec::new(), MeanPsnr::default());
    for path in &args.images {
        let values = load_image(path, shape)?;
        let original = Tensor::from_data(TensorData::new(values, [1, channels, height, width]), device);
        let stages = precision.scope(|| stages(&*tokenizer, original, args.stages))?;
        let row: Vec<RgbImage> = stages
            .iter()
            .map(|stage| Ok(to_images(stage.clone(), ValueRange::Signed)?.remove(0)))
            .collect::<Result<_>>()?;
        let [a, b] = [&row[0], &row[row.len() - 1]].map(|image| planes(image, channels));
        let psnr = psnr(&a, &b, 255.0)?;
        let large = height.min(width) >= SSIM_WINDOW;
        let ssim = large.then(|| ssim(&a, &b, [channels, height, width], 255.0)).transpose()?;
        mean.push(psnr);
        found.push(Measured { path: path.clone(), psnr, ssim });
        rows.push(Row { caption: stem(path), images: row });
        bar.inc(1);
    }
    bar.finish_and_clear();
    write_png(&png, &sheet(&rows, &headings(&*tokenizer, args.stages))?)?;
    let report = Report { png, images: found, mean_psnr: mean.mean() };
    output.result(&report, || {
        let line = |image: &Measured| {
            let ssim = image.ssim.map_or_else(|| "-".to_owned(), |ssim| format!("{ssim:.4}"));
            format!("PSNR {:.2} dB  SSIM {ssim}  {}\n", image.psnr, image.path.display())
        };
        let lines: String = report.images.iter().map(line).collect();
        format!("{lines}originals and reconstructions: {}", report.png.display())
    })
}

/// Returns the original, then the image after every stage, or after the last only.
fn stages(tokenizer: &dyn Tokenizer, original: Tensor<4>, all: bool) -> Result<Vec<Tensor<4>>> {
    let canvases = tokenizer.canvases(&tokenizer.encode(original.clone(), tokenizer.scales())?);
    let mut ends: Vec<usize> = tokenizer.scales().stages().into_iter().map(|stage| stage.end).collect();
    if !all {
        ends.drain(..ends.len() - 1);
    }
    let decoded = ends.into_iter().map(|end| tokenizer.preview(canvases[end - 1].clone(), tokenizer.scales()));
    Ok(std::iter::once(original).chain(decoded).collect())
}

/// Returns the pixels of an image channel by channel, as the metrics expect them.
pub(crate) fn planes(image: &RgbImage, channels: usize) -> Vec<f32> {
    (0..channels).flat_map(|channel| image.pixels().map(move |pixel| f32::from(pixel[channel]))).collect()
}

fn headings(tokenizer: &dyn Tokenizer, stages: bool) -> Vec<String> {
    let mut headings = vec!["original".to_owned()];
    if stages {
        headings.extend(stage_names(tokenizer.scales()));
    } else {
        headings.push("tokens".to_owned());
    }
    headings
}

fn stem(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    stem.chars().take(16).collect()
}
