//! `burn-var sample`

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use burn::tensor::Device;
use burn_var::MapSize;
use burn_var::image::{ValueRange, to_images};
use burn_var_train::eval::{ImageSet, SampleFile, SampleShard, merge_samples, write_samples, write_shard};
use burn_var_train::grid::{write_gif, write_png};
use image::RgbImage;
use serde::Serialize;

use crate::caption::{Row, sheet, stage_names};
use crate::classes::{equal_parts, in_turn};
use crate::generator::{Batch, DrawArgs, GeneratedSet, Generator, Plain, Wanted, or_default};
use crate::models::check_target;
use crate::output::{Output, asked, usage};
use crate::shards::{ShardArgs, unfit};

/// Number of classes that are shown if none is named.
const MOST_CLASSES: usize = 10;
/// Images per class, if no number is named.
const PER_CLASS: usize = 8;
/// Images in a row of the sheet.
const COLUMNS: usize = 16;

/// Generate images, class by class.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Classes by name (or the beginning of one) or number; several with commas, or by repeating it. Default: all, or the first
    /// 10 of a model that has more.
    #[arg(long = "class", value_name = "NAME|NUMBER", allow_hyphen_values = true)]
    classes: Vec<String>,
    /// Number of images, in equal parts of the classes. [default: 8 per class]
    #[arg(long, value_name = "IMAGES", value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// The sheet of images, a PNG file. [default: burn-var-sample.png, none with --npz]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write `arr_0` (uint8, N x height x width x 3) and `arr_1` (int64 labels), the format of evaluation tools.
    #[arg(long, value_name = "FILE")]
    npz: Option<PathBuf>,
    /// Show how each image grows, one column per scale, or per row of tokens of LlamaGen.
    #[arg(long)]
    stages: bool,
    /// The sheet as it grows scale by scale, an animated GIF file.
    #[arg(long, value_name = "FILE", conflicts_with = "npz")]
    animate: Option<PathBuf>,
    /// Generate every image twice: without injector, LoRA and guidance other than CFG, and below with them.
    #[arg(long, conflicts_with = "npz")]
    compare: bool,
    #[command(flatten)]
    shards: ShardArgs,
    #[command(flatten)]
    pub(crate) draw: DrawArgs,
}

impl Args {
    /// Returns the parts of the images, which only an .npz file may have.
    pub(crate) fn shards(&self) -> Result<&ShardArgs> {
        let sheet = self.out.is_some() || self.stages;
        match self.shards.are_several() {
            true if self.npz.is_none() => Err(usage("several processes write an .npz file: name it with --npz")),
            true if sheet => Err(usage("one process draws a sheet: leave out --out and --stages")),
            _ => Ok(&self.shards),
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    #[serde(rename = "pictures")]
    images: usize,
    png: Option<PathBuf>,
    npz: Option<PathBuf>,
    gif: Option<PathBuf>,
    classes: Vec<Class>,
    settings: serde_json::Value,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct Class {
    label: usize,
    name: String,
    #[serde(rename = "pictures")]
    images: usize,
}

/// Generates the images, or puts those of the processes together that have taken the time `launched`.
pub(crate) fn run(args: &Args, device: &Device, launched: Duration, output: Output) -> Result<()> {
    let shard = args.shards.shard();
    let npz = args.npz.as_ref().map(|path| shard.map_or_else(|| path.clone(), |shard| shard.path(path)));
    let png = match (&args.out, &args.npz) {
        (None, Some(_)) if args.stages => return Err(usage("--stages draws a sheet: give it a name with --out")),
        (None, Some(_)) => None,
        (out, _) => Some(or_default(out.as_ref(), "burn-var-sample.png")),
    };
    png.iter().chain(&npz).chain(&args.animate).try_for_each(|path| check_target(path))?;
    let plain = if args.compare { Plain::Too } else { Plain::Never };
    let generator = Generator::new(&args.draw, plain, device)?;
    if args.compare && !generator.is_guided() {
        return Err(usage("--compare needs something to compare: --aid, --lora, --ssg or --vpg"));
    }
    let classes = generator.pipeline.classes();
    let mut chosen = classes.find_all(&args.classes).map_err(asked)?;
    if chosen.is_empty() {
        let most = if args.npz.is_some() { classes.count } else { MOST_CLASSES };
        chosen = (0..classes.count.min(most)).collect();
    }
    let count = args.count.map_or(chosen.len() * if args.stages { 1 } else { PER_CLASS }, |count| count as usize);
    // A sheet shows class by class; evaluation tools compute metrics over parts of a file.
    let labels = if args.npz.is_some() { in_turn(&chosen, count) } else { equal_parts(&chosen, count) };
    let part = shard.map_or(Ok(0..count), |shard| shard.range(count)).map_err(unfit)?;

    let start = Instant::now();
    let bar = output.bar(if args.compare { 2 * count } else { part.len() }, "images");
    let wanted = Wanted { stages: args.stages || args.animate.is_some(), ..Default::default() };
    let make = |sheets: &mut Sheets, plain: bool, take: &mut dyn FnMut(&[u8]) -> burn_var_train::Result<()>| {
        generator.run_part(&labels, part.clone(), Wanted { plain, ..wanted }, |batch| {
            let images = to_images(batch.output.images.clone(), ValueRange::Signed)?;
            let numbered = (batch.first as usize..).zip(&images);
            numbered.filter(|(number, _)| part.contains(number)).try_for_each(|(_, image)| take(image.as_raw()))?;
            let note = if args.compare && !plain { ", guided" } else { "" };
            sheets.add(&batch, images, |label| format!("{}{note}", classes.name(label)))?;
            bar.inc(batch.labels.len() as u64);
            Ok(())
        })
    };
    let empty = || Sheets {
        png: png.as_ref().map(|_| Rows::default()),
        stages_in_rows: args.stages,
        frames: args.animate.as_ref().map(|_| Vec::new()),
    };
    let mut sheets = empty();
    let [_, height, width] = generator.pipeline.image_shape();
    let size = MapSize { height, width };
    match (&npz, shard) {
        (Some(path), Some(shard)) => {
            let images = GeneratedSet::new(generator.clone(), labels.clone())?.identity()?;
            let run = format!("burn-var {}, {images}", env!("CARGO_PKG_VERSION"));
            let place = SampleShard { shard, images: count, run };
            match is_there(path, &place) {
                true => output.note(format!("`{}` is there already", path.display())),
                false => write_shard(path, &labels, size, (shard, &place.run), |take| make(&mut sheets, false, take))?,
            }
        }
        (Some(path), None) if args.shards.launches() => merge(&args.shards.files(path), path, &bar)?,
        (Some(path), None) => write_samples(path, &labels, size, |take| make(&mut sheets, false, take))?,
        (None, _) => make(&mut sheets, args.compare, &mut |_| Ok(()))?,
    }
    if args.compare {
        let mut guided = empty();
        make(&mut guided, false, &mut |_| Ok(()))?;
        sheets = sheets.in_turn(guided);
    }
    bar.finish_and_clear();
    if let (Some(path), Some(rows)) = (&png, sheets.png) {
        write_png(path, &sheet(&rows.finish(), &headings(&generator, args.stages))?)?;
    }
    if let (Some(path), Some(frames)) = (&args.animate, sheets.frames) {
        let frames: Result<Vec<RgbImage>> = frames.into_iter().map(|rows| sheet(&rows.finish(), &[])).collect();
        write_gif(path, frames?)?;
    }
    let seconds = (launched + start.elapsed()).as_secs_f64();
    let number = |class: &usize| labels[part.clone()].iter().filter(|label| *label == class).count();
    chosen.sort_unstable();
    chosen.dedup();
    let report = Report {
        images: part.len(),
        png,
        npz,
        gif: args.animate.clone(),
        classes: chosen
            .iter()
            .map(|class| Class { label: *class, name: classes.name(*class), images: number(class) })
            .collect(),
        settings: generator.settings(),
        seconds,
    };
    output.result(&report, || {
        let files: Vec<String> =
            report.png.iter().chain(&report.npz).chain(&report.gif).map(|path| path.display().to_string()).collect();
        format!("{} images in {seconds:.1} s: {}", report.images, files.join(", "))
    })
}

/// Returns `true` if a file is the shard that would be written there: the images would be the same.
fn is_there(path: &Path, place: &SampleShard) -> bool {
    let found = SampleFile::open(path).and_then(|mut file| file.shard());
    found.is_ok_and(|found| found.as_ref() == Some(place))
}

/// Puts the shards of a run together, and removes them.
fn merge(shards: &[PathBuf], path: &Path, bar: &indicatif::ProgressBar) -> Result<()> {
    merge_samples(shards, path, &mut |done| bar.set_position(done as u64))?;
    let remove =
        |shard: &PathBuf| std::fs::remove_file(shard).with_context(|| format!("cannot remove `{}`", shard.display()));
    shards.iter().try_for_each(remove)
}

/// The sheets of images, filled batch by batch.
struct Sheets {
    png: Option<Rows>,
    /// True if the sheet shows every image in a row of its own, with a column per scale.
    stages_in_rows: bool,
    /// A sheet for every scale.
    frames: Option<Vec<Rows>>,
}

impl Sheets {
    fn add(&mut self, batch: &Batch<'_>, images: Vec<RgbImage>, name: impl Fn(usize) -> String) -> Result<()> {
        let stages = batch.output.stages.iter().map(|stage| to_images(stage.clone(), ValueRange::Signed));
        let stages: Vec<Vec<RgbImage>> = stages.collect::<Result<_, _>>()?;
        if let Some(frames) = &mut self.frames {
            frames.resize_with(stages.len(), Rows::default);
            frames.iter_mut().zip(&stages).for_each(|(rows, stage)| rows.add(batch.labels, stage.clone(), &name));
        }
        match &mut self.png {
            Some(rows) if self.stages_in_rows => rows.0.extend(batch.labels.iter().enumerate().map(|(i, label)| Row {
                caption: name(*label),
                images: stages.iter().map(|stage| stage[i].clone()).collect(),
            })),
            Some(rows) => rows.add(batch.labels, images, &name),
            None => (),
        }
        Ok(())
    }

    /// Alternates rows of these sheets and of others.
    fn in_turn(self, others: Self) -> Self {
        let frames = self.frames.zip(others.frames);
        Self {
            png: self.png.zip(others.png).map(|(a, b)| a.in_turn(b)),
            frames: frames.map(|(a, b)| a.into_iter().zip(b).map(|(a, b)| a.in_turn(b)).collect()),
            ..self
        }
    }
}

/// The rows of a sheet.
#[derive(Default)]
struct Rows(Vec<Row>);

impl Rows {
    /// Adds each image to the row of its caption.
    fn add(&mut self, labels: &[usize], images: Vec<RgbImage>, name: impl Fn(usize) -> String) {
        for (label, image) in labels.iter().zip(images) {
            let caption = name(*label);
            match self.0.iter_mut().find(|row| row.caption == caption) {
                Some(row) => row.images.push(image),
                None => self.0.push(Row { caption, images: vec![image] }),
            }
        }
    }

    fn in_turn(self, others: Self) -> Self {
        Self(self.0.into_iter().zip(others.0).flat_map(|(a, b)| [a, b]).collect())
    }

    /// Returns the rows; long ones continue below, without a caption.
    fn finish(self) -> Vec<Row> {
        let cut = |row: Row| {
            let parts: Vec<Vec<RgbImage>> = row.images.chunks(COLUMNS).map(<[RgbImage]>::to_vec).collect();
            let captions = std::iter::once(row.caption).chain(std::iter::repeat(String::new()));
            parts.into_iter().zip(captions).map(|(images, caption)| Row { caption, images }).collect::<Vec<_>>()
        };
        self.0.into_iter().flat_map(cut).collect()
    }
}

/// Returns the headings of the columns, if every stage is shown.
fn headings(generator: &Generator, stages: bool) -> Vec<String> {
    if stages { stage_names(generator.pipeline.scales()) } else { Vec::new() }
}
