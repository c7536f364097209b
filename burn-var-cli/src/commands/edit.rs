//! `burn-var edit`

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result};
use burn::tensor::{Device, Tensor, TensorData};
use burn_var::TokenPyramid;
use burn_var::editing::KnownTokens;
use burn_var::image::{ValueRange, to_images};
use burn_var::pipeline::Pipeline;
use burn_var_train::data::{ImageShape, load_image};
use burn_var_train::grid::write_png;
use image::RgbImage;
use serde::Serialize;

use crate::caption::{Row, sheet};
use crate::generator::{DrawArgs, Generator, Plain, or_default};
use crate::models::check_target;
use crate::output::{Output, asked, usage};

/// Generate a part of an image anew: in-painting, out-painting, another class, completion.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A PNG, JPEG or WebP file; resized and cropped to the model's size.
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    /// Classes of the new part, by name or number, with a row of the sheet each. Default: none; the new part depends on
    /// the rest of the image alone.
    #[arg(long = "class", value_name = "NAME|NUMBER", allow_hyphen_values = true)]
    classes: Vec<String>,
    #[command(flatten)]
    part: Part,
    /// Images to generate of each class.
    #[arg(long, value_name = "IMAGES", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Put the image's own pixels back where it is kept; otherwise they are decoded from its tokens.
    #[arg(long, conflicts_with = "complete")]
    paste: bool,
    /// The image, its kept part and the results side by side, a PNG file. [default: burn-var-edit.png]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Also write every result into this folder, in the model's size.
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    #[command(flatten)]
    draw: DrawArgs,
}

/// The part of the image that is generated anew.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Part {
    /// In-painting: generate a box anew, in pixels of the model's size from the top left; several by repeating it.
    #[arg(long, value_name = "LEFT,TOP,WIDTH,HEIGHT")]
    redraw: Vec<Rectangle>,
    /// Out-painting: keep a box, and generate all around it anew; several by repeating it.
    #[arg(long, value_name = "LEFT,TOP,WIDTH,HEIGHT")]
    keep: Vec<Rectangle>,
    /// Generate anew where this image is white. It is resized and cropped as the image is.
    #[arg(long, value_name = "FILE")]
    mask: Option<PathBuf>,
    /// Completion: keep the tokens of this number of scales, from the coarsest, and generate the finer ones.
    #[arg(long, value_name = "SCALES")]
    complete: Option<usize>,
}

/// A part of an image, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rectangle {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
}

impl FromStr for Rectangle {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let numbers: Result<Vec<usize>, _> = text.split(',').map(|part| part.trim().parse()).collect();
        match numbers.as_deref() {
            Ok(&[left, top, width, height]) if width > 0 && height > 0 => Ok(Self { left, top, width, height }),
            _ => Err("four numbers are expected: left, top, width and height, the last two above 0".to_owned()),
        }
    }
}

impl Rectangle {
    fn has(&self, x: usize, y: usize) -> bool {
        (self.left..self.left + self.width).contains(&x) && (self.top..self.top + self.height).contains(&y)
    }
}

#[derive(Debug, Serialize)]
struct Report {
    png: PathBuf,
    /// The results, if a folder was named.
    files: Vec<PathBuf>,
    #[serde(rename = "pictures")]
    images: usize,
    /// Number of tokens of each scale that were drawn; the others are the image's own.
    drawn_tokens: Vec<usize>,
    settings: serde_json::Value,
}

pub(crate) fn run(args: &Args, device: &Device, output: Output) -> Result<()> {
    let png = or_default(args.out.as_ref(), "burn-var-edit.png");
    check_target(&png)?;
    let generator = Generator::new(&args.draw, Plain::Never, device)?;
    let classes = generator.pipeline.classes();
    let chosen: Vec<Option<usize>> = match classes.find_all(&args.classes).map_err(asked)? {
        chosen if chosen.is_empty() => vec![None],
        chosen => chosen.into_iter().map(Some).collect(),
    };
    let tokenizer = generator.pipeline.tokenizer();
    let [channels, height, width] = generator.pipeline.image_shape();
    let values = load_image(&args.image, ImageShape::new(height, width, channels)?)?;
    let original: Tensor<4> = Tensor::from_data(TensorData::new(values, [1, channels, height, width]), device);
    let tokens = tokenizer.encode(original.clone(), generator.pipeline.scales())?;
    let change = Change::new(&args.part, [height, width], &tokens, device)?;
    let drawn_tokens = change.known(&tokens, 1).map_err(asked)?.drawn()?;
    if drawn_tokens.iter().all(|drawn| *drawn == 0) {
        let size = generator.pipeline.scales().finest();
        return Err(usage(format!(
            "nothing would be drawn: the part covers less than half of every token, of which the image has {size}"
        )));
    }

    let count = args.count as usize;
    let bar = output.bar(count * chosen.len(), "images");
    let stays = change.stays(&tokens, &original, &generator.pipeline);
    let beside = [first(&original)?, first(&stays)?];
    let (mut rows, mut files) = (Vec::new(), Vec::new());
    for label in &chosen {
        let mut results: Vec<RgbImage> = Vec::with_capacity(count);
        while results.len() < count {
            let batch = generator.pipeline.batch_size().min(count - results.len());
            let known = change.known(&tokens, batch)?;
            let images = generator.edit(*label, batch, results.len() as u64, known)?;
            let images = if args.paste { change.paste(&original, images) } else { images };
            results.extend(to_images(images, ValueRange::Signed)?);
            bar.inc(batch as u64);
        }
        let name = label.map(|label| classes.name(label)).unwrap_or_default();
        if let Some(folder) = &args.folder {
            files.extend(write_all(folder, *label, &results)?);
        }
        rows.push(Row { caption: name, images: beside.iter().cloned().chain(results).collect() });
    }
    bar.finish_and_clear();
    write_png(&png, &sheet(&rows, &["image".to_owned(), "stays".to_owned()])?)?;
    let (images, settings) = (count * chosen.len(), generator.settings());
    let report = Report { png, files, images, drawn_tokens, settings };
    output.result(&report, || {
        let drawn: usize = report.drawn_tokens.iter().sum();
        let all = generator.pipeline.scales().tokens();
        format!("{images} images, {drawn} of {all} tokens drawn anew: {}", report.png.display())
    })
}

/// The part that is generated anew.
enum Change {
    /// `[1, 1, height, width]`: 1 where the image is kept.
    Where(Box<Tensor<4>>),
    /// All scales after this number of them.
    After(usize),
}

impl Change {
    fn new(part: &Part, [height, width]: [usize; 2], tokens: &TokenPyramid, device: &Device) -> Result<Self> {
        if let Some(kept) = part.complete {
            let last = tokens.scales().len() - 1;
            return match (1..=last).contains(&kept) {
                true => Ok(Self::After(kept)),
                false => Err(usage(format!("--complete {kept}: 1 to {last} of this model's {} scales", last + 1))),
            };
        }
        for part in part.redraw.iter().chain(&part.keep) {
            if part.left.saturating_add(part.width) > width || part.top.saturating_add(part.height) > height {
                let Rectangle { left, top, width: w, height: h } = part;
                return Err(usage(format!(
                    "the box {left},{top},{w},{h} does not lie in an image of {width}x{height}, this model's size"
                )));
            }
        }
        let inside = |boxes: &[Rectangle]| -> Vec<bool> {
            let pixels = (0..height * width).map(|i| (i % width, i / width));
            pixels.map(|(x, y)| boxes.iter().any(|part| part.has(x, y))).collect()
        };
        let stays: Vec<bool> = match &part.mask {
            Some(file) => {
                let shape = ImageShape::new(height, width, 1)?;
                let mask = load_image(file, shape).with_context(|| format!("the mask `{}`", file.display()))?;
                mask.into_iter().map(|white| white <= 0.0).collect()
            }
            None if part.keep.is_empty() => inside(&part.redraw).into_iter().map(|redrawn| !redrawn).collect(),
            None => inside(&part.keep),
        };
        let stays: Vec<f32> = stays.into_iter().map(|stays| if stays { 1.0 } else { 0.0 }).collect();
        let stays: Tensor<4> = Tensor::from_data(TensorData::new(stays, [1, 1, height, width]), device);
        Ok(Self::Where(Box::new(stays)))
    }

    /// Returns the tokens that are kept, repeated for a batch.
    fn known(&self, tokens: &TokenPyramid, batch: usize) -> burn_var::Result<KnownTokens> {
        let maps = (0..tokens.scales().len()).map(|k| tokens.map(k).repeat_dim(0, batch)).collect();
        let tokens = TokenPyramid::new(tokens.scales().clone(), maps)?;
        Ok(match self {
            Self::Where(stays) => KnownTokens::masked(tokens, Tensor::clone(stays).repeat_dim(0, batch))?,
            Self::After(scales) => KnownTokens::first(tokens, *scales),
        })
    }

    /// Returns the kept part of the image: gray where it is generated anew, or its coarse scales.
    fn stays(&self, tokens: &TokenPyramid, original: &Tensor<4>, pipeline: &Pipeline) -> Tensor<4> {
        match self {
            Self::Where(stays) => original.clone() * Tensor::clone(stays),
            Self::After(scales) => pipeline.decode(pipeline.tokenizer().canvases(tokens).swap_remove(scales - 1)),
        }
    }

    /// Puts the original's pixels over the result, where the image is kept.
    fn paste(&self, original: &Tensor<4>, result: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Where(stays) => result.clone() + (original.clone() - result) * Tensor::clone(stays),
            Self::After(_) => result,
        }
    }
}

fn first(images: &Tensor<4>) -> Result<RgbImage> {
    Ok(to_images(images.clone(), ValueRange::Signed)?.remove(0))
}

/// Writes the results of a class into a folder.
fn write_all(folder: &Path, label: Option<usize>, results: &[RgbImage]) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
    let class = label.map_or_else(|| "any".to_owned(), |label| format!("class-{label}"));
    let write = |(number, image): (usize, &RgbImage)| {
        let path = folder.join(format!("{class}-{number:04}.png"));
        write_png(&path, image)?;
        Ok(path)
    };
    results.iter().enumerate().map(write).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_four_numbers() {
        let found: Rectangle = "1, 2,3,4".parse().expect("a box");
        assert_eq!(found, Rectangle { left: 1, top: 2, width: 3, height: 4 });
        assert!(found.has(3, 5) && !found.has(4, 5) && !found.has(3, 6) && !found.has(0, 2));
        for wrong in ["", "1,2,3", "1,2,3,4,5", "1,2,0,4", "a,2,3,4", "-1,2,3,4"] {
            wrong.parse::<Rectangle>().expect_err(wrong);
        }
    }
}
