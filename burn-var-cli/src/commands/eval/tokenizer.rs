//! `burn-var eval tokenizer`

use std::path::PathBuf;

use anyhow::Result;
use burn::tensor::{Device, Tensor, TensorData};
use burn_var::image::{ValueRange, to_images};
use burn_var::metrics::{Lpips, MeanPsnr, psnr, ssim};
use burn_var::weights::StateDict;
use burn_var::{MapSize, TokenPyramid};
use burn_var_train::data::{BatchLoader, ImageOptions, ImageShape, Split, View, open_images};
use burn_var_train::eval::{FeatureTable, Options, Reference, score};
use image::RgbImage;
use serde::Serialize;

use super::network::NetworkArgs;
use crate::commands::reconstruct::planes;
use crate::models::ModelArgs;
use crate::output::Output;

/// Images reconstructed at a time.
const BATCH: usize = 50;

/// Evaluate a tokenizer on the test images.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A folder of IDX files, or one with a sub-folder per class. Its test images are reconstructed.
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// torchvision's VGG16, `vgg16-397923af.pth`, for LPIPS.
    #[arg(long, value_name = "FILE")]
    vgg: Option<PathBuf>,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    #[serde(rename = "pictures")]
    images: usize,
    /// Mean over the images with any error, dB.
    psnr: f64,
    /// Mean over the images (11x11 Gaussian window).
    ssim: f64,
    /// Mean over the images.
    lpips: Option<f64>,
    /// Frechet distance between reconstructions and originals: rFID, with FID's network.
    frechet: Option<f64>,
    network: Option<String>,
    /// Share of the codes that occur in the tokens of the test images.
    codes_in_use: f64,
    /// The same for each scale; the tokens of a raster count as one.
    codes_in_use_by_scale: Vec<f64>,
    /// Perplexity of the codes of each scale, `exp(-sum p log p)`: the number of equally frequent codes with this entropy.
    perplexity_by_scale: Vec<f64>,
}

pub(crate) fn run(args: &Args, device: &Device, output: Output) -> Result<()> {
    let (tokenizer, precision) = (args.model.load_tokenizer(device)?, args.model.precision(device));
    let network = args.network.load(device)?;
    let lpips = match &args.vgg {
        Some(file) => Some(Lpips::load(&StateDict::open(file)?, &Lpips::published_heads()?, device)?),
        None => None,
    };
    let shape @ [channels, height, width] = tokenizer.image_shape(tokenizer.scales());
    let size = MapSize { height, width };
    let source = open_images(&args.data, Split::Test, &ImageOptions::default())?;
    let loader = BatchLoader::new(source, ImageShape::new(height, width, channels)?);
    let all: Vec<usize> = (0..loader.source().len()).collect();
    let bar = output.bar(all.len(), "images");
    let scales = tokenizer.scales();
    let parts: Vec<std::ops::Range<usize>> = match scales.raster_size() {
        Some(_) => std::iter::once(0..scales.tokens()).collect(),
        None => (0..scales.len()).map(|k| scales.range(k)).collect(),
    };
    let mut used = vec![vec![0_usize; tokenizer.vocabulary().size]; parts.len()];
    let (mut mean, mut similarity, mut distance) = (MeanPsnr::default(), 0.0, 0.0);
    let mut tables = network.as_ref().map(|network| [(); 2].map(|()| FeatureTable::new(&**network)));
    for indices in all.chunks(BATCH) {
        let images = loader.load(indices, View::Fixed { mirrored: false }, device)?.images;
        let tokens: TokenPyramid = tokenizer.encode(images.clone(), scales)?;
        for row in tokens.to_rows()? {
            for (part, used) in parts.iter().zip(&mut used) {
                row[part.clone()].iter().for_each(|code| used[*code as usize] += 1);
            }
        }
        let Some(canvas) = tokenizer.canvases(&tokens).pop() else { continue };
        // As 8-bit images, like files.
        let decoded = precision.scope(|| tokenizer.decode(canvas));
        let sides = [images, decoded].map(|images| to_images(images, ValueRange::Signed));
        let [originals, reconstructions] = sides;
        let (originals, reconstructions) = (originals?, reconstructions?);
        for (a, b) in originals.iter().zip(&reconstructions) {
            let [a, b] = [a, b].map(|image| planes(image, channels));
            mean.push(psnr(&a, &b, 255.0)?);
            similarity += ssim(&a, &b, shape, 255.0)?;
        }
        if let Some(lpips) = &lpips {
            let [a, b] = [&originals, &reconstructions].map(|side| tensor(side, shape, device));
            let distances = lpips.distance(a, b)?.try_into_vec_as::<f64>();
            distance += distances.map_err(burn_var::Error::device("read distances"))?.iter().sum::<f64>();
        }
        if let (Some(network), Some(tables)) = (&network, &mut tables) {
            for (table, side) in tables.iter_mut().zip([originals, reconstructions]) {
                let pixels: Vec<u8> = side.into_iter().flat_map(RgbImage::into_raw).collect();
                table.add(&**network, &pixels, size)?;
            }
        }
        bar.inc(indices.len() as u64);
    }
    bar.finish_and_clear();
    let frechet = match tables {
        None => None,
        Some([originals, reconstructions]) => {
            let reference = Reference::of(originals)?;
            Some(score(&reconstructions, &reference, &Options::default(), device)?.frechet)
        }
    };
    let share = |counts: &[usize]| counts.iter().filter(|count| **count > 0).count() as f64 / counts.len() as f64;
    let anywhere: Vec<usize> =
        (0..tokenizer.vocabulary().size).map(|code| used.iter().map(|used| used[code]).sum()).collect();
    let report = Report {
        images: all.len(),
        psnr: mean.mean(),
        ssim: similarity / all.len() as f64,
        lpips: lpips.map(|_| distance / all.len() as f64),
        frechet,
        network: network.map(|network| network.identity().to_string()),
        codes_in_use: share(&anywhere),
        codes_in_use_by_scale: used.iter().map(|used| share(used)).collect(),
        perplexity_by_scale: used.iter().map(|used| perplexity(used)).collect(),
    };
    output.result(&report, || text(&report))
}

fn text(report: &Report) -> String {
    let mut lines = vec![
        format!("images            {}", report.images),
        format!("PSNR              {:.2} dB", report.psnr),
        format!("SSIM              {:.4}", report.ssim),
    ];
    lines.extend(report.lpips.map(|lpips| format!("LPIPS             {lpips:.4}")));
    lines.extend(report.frechet.map(|frechet| format!("Frechet distance  {frechet:.4}")));
    lines.push(format!("codes in use      {:.1}%", 100.0 * report.codes_in_use));
    let perplexities: Vec<String> = report.perplexity_by_scale.iter().map(|value| format!("{value:.0}")).collect();
    lines.push(format!("perplexity        {} (for each scale)", perplexities.join(", ")));
    lines.join("\n")
}

fn perplexity(counts: &[usize]) -> f64 {
    let total: usize = counts.iter().sum();
    let entropy = |count: &usize| {
        let p = *count as f64 / total.max(1) as f64;
        if p > 0.0 { -p * p.ln() } else { 0.0 }
    };
    counts.iter().map(entropy).sum::<f64>().exp()
}

/// Converts images to a batch in `[-1, 1]`.
fn tensor(images: &[RgbImage], [channels, height, width]: [usize; 3], device: &Device) -> Tensor<4> {
    let values: Vec<f32> = images.iter().flat_map(|image| planes(image, channels)).collect();
    let data = TensorData::new(values, [images.len(), channels, height, width]);
    Tensor::from_data(data, device) / 127.5 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perplexity_counts_equally_frequent_codes() {
        assert!((perplexity(&[5, 5, 0, 5]) - 3.0).abs() < 1e-12, "three codes");
        assert_eq!(perplexity(&[0, 9]), 1.0, "one code");
        assert!(perplexity(&[99, 1]) < 1.1, "one code, nearly");
    }
}
