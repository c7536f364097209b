//! `burn-var eval tokenizer`

use std::path::PathBuf;

use anyhow::Result;
use burn::tensor::Device;
use burn_var::metrics::{MeanPsnr, psnr, ssim};
use burn_var::{TokenPyramid, Tokenizer};
use burn_var_train::data::{BatchLoader, PictureOptions, PictureShape, Split, View, open_pictures};
use burn_var_train::grid::{Range, pictures};
use serde::Serialize;

use crate::commands::reconstruct::planes;
use crate::models::ModelArgs;
use crate::output::Output;

/// Pictures reconstructed at a time.
const BATCH: usize = 50;

/// A tokenizer on the test pictures.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A folder of IDX files, or one with a sub-folder a class.
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
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

pub(crate) fn run(args: &Args, device: &Device, output: Output) -> Result<()> {
    let tokenizer = args.model.load_tokenizer(device)?;
    let shape @ [channels, height, width] = tokenizer.picture_shape();
    let source = open_pictures(&args.data, Split::Test, &PictureOptions::default())?;
    let loader = BatchLoader::new(source, PictureShape::new(height, width, channels)?);
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
