//! `burn-var eval generated`

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::Device;
use burn_var_train::data::{PictureOptions, PictureShape, Split, open_pictures};
use burn_var_train::eval::{
    Copies, DataPictures, FeatureSource, FeatureTable, NpzFile, Options, PictureSet, PngFolder, Recognition, Reference,
    SampleFile, Scores, Statistics, evenly, score,
};
use burn_var_train::fs::atomic_write;
use serde::{Deserialize, Serialize};

use super::network::NetworkArgs;
use super::page;
use crate::classes::equal_parts;
use crate::generator::{Generated, Generator, SamplingArgs};
use crate::models::{PairArgs, check_target};
use crate::output::{Output, usage};

/// Pictures that a network looks at, at a time; more would only take memory.
const LOOK_BATCH: usize = 50;
/// Fewer pictures than papers use for FID.
const PUBLISHED: usize = 50_000;
/// The figures of a folder of results.
pub(super) const REPORT: &str = "report.json";
/// The features of a folder of results.
pub(super) const FEATURES: &str = "features";
/// The statistics that the pictures of a folder of results were compared with.
pub(super) const STATISTICS: &str = "reference.npz";

/// Pictures against real ones.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The pictures: an .npz file (`arr_0`, and labels in `arr_1`) or a folder of PNG files. [default: those that the
    /// model makes]
    #[arg(long, value_name = "PATH")]
    samples: Option<PathBuf>,
    /// Real pictures: a folder of IDX files, or one with a sub-folder a class. Its test pictures are the reference.
    #[arg(long, value_name = "FOLDER", required_unless_present = "reference")]
    data: Option<PathBuf>,
    /// The reference in place of test pictures: an .npz file of statistics or pictures, or a folder of PNG files.
    #[arg(long, value_name = "PATH", conflicts_with = "data")]
    reference: Option<PathBuf>,
    #[command(flatten)]
    network: NetworkArgs,
    /// Pictures to generate, all classes in equal parts.
    #[arg(long, value_name = "PICTURES", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(2..))]
    count: u32,
    /// Look for near copies of the training pictures of --data, among 1,000 of the pictures.
    #[arg(long, requires = "data")]
    copies: bool,
    /// Mirrored copies count as copies: the model was trained on mirrored pictures.
    #[arg(long, requires = "copies")]
    mirror: bool,
    /// How often pictures are drawn again for the interval of the Frechet distance; 0 for none.
    #[arg(long, value_name = "TIMES", default_value_t = 0)]
    resamples: u32,
    /// Keep features and figures in this folder. The same command goes on where it was interrupted, and `eval compare`
    /// and `eval report` read it.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Write a page about the pictures, an HTML file.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: PairArgs,
}

/// All that is known of a set of pictures.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Report {
    /// What was measured.
    pub(super) samples: String,
    /// What it was measured against.
    pub(super) reference: String,
    /// Through which network, by which protocol.
    pub(super) network: String,
    pub(super) scores: Scores,
    /// Of as many training pictures: what is possible.
    pub(super) floor: Option<Scores>,
    pub(super) recognised: Option<Recognition>,
    /// Of the reference: what is possible.
    pub(super) recognised_reference: Option<f64>,
    pub(super) copies_in_pixels: Option<Copies>,
    pub(super) copies_in_features: Option<Copies>,
    pub(super) class_names: Vec<String>,
    /// How pictures were drawn, if they were made here.
    pub(super) settings: serde_json::Value,
    pub(super) options: serde_json::Value,
    /// What to keep in mind with these figures.
    pub(super) notes: Vec<String>,
    pub(super) version: String,
    pub(super) seconds: f64,
}

pub(crate) fn run(args: &Args, device: &Device, output: Output) -> Result<()> {
    let start = Instant::now();
    if let Some(path) = &args.report {
        check_target(path)?;
    }
    let network =
        args.network.load(device)?.ok_or_else(|| usage("name a network: --inception, --classifier or --dino"))?;
    let (mut samples, settings, class_names) = args.samples(device)?;
    let shape = PictureShape::new(samples.size().height, samples.size().width, samples.channels())?;
    let folder = |name: &str| match &args.out {
        None => Ok(None),
        Some(out) => {
            let folder = out.join(name);
            std::fs::create_dir_all(&folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
            Ok::<_, anyhow::Error>(Some(folder))
        }
    };
    let look = |set: &mut dyn PictureSet, name: &str, folder: Option<&Path>, batch: usize| -> Result<FeatureTable> {
        let bar = output.bar(set.count(), name);
        let table = FeatureTable::collect(set, &*network, folder, batch, &mut |done| {
            bar.set_position(done as u64);
        });
        bar.finish_and_clear();
        Ok(table?)
    };
    let batch = args.sampling.batch.map_or(LOOK_BATCH, |batch| batch as usize);
    let table = look(&mut *samples, "pictures", folder(FEATURES)?.as_deref(), batch)?;

    let (reference, reference_name, reference_labels) = match (&args.data, &args.reference) {
        (Some(data), _) => {
            let source = open_pictures(data, Split::Test, &PictureOptions::default())?;
            let mut test = DataPictures::new(source, shape);
            let table = look(&mut test, "test pictures", folder("test")?.as_deref(), LOOK_BATCH)?;
            let labels = test.labels().map(<[usize]>::to_vec);
            (Reference::of(table)?, format!("test pictures of {}", test.describe()), labels)
        }
        (None, Some(path)) => {
            let statistics = path.is_file().then(|| NpzFile::open(path)).transpose()?;
            let known = statistics.as_ref().is_some_and(Statistics::are_in);
            let pictures = statistics.as_ref().is_none_or(|file| file.contains("arr_0"));
            let table = match pictures {
                false => None,
                true => Some(look(&mut *open_set(path)?, "reference", folder("reference")?.as_deref(), LOOK_BATCH)?),
            };
            let reference = match (known, table) {
                (true, table) => Reference { statistics: Statistics::read(path)?, table },
                (false, Some(table)) => Reference::of(table)?,
                (false, None) => {
                    return Err(usage(format!("`{}` holds neither statistics nor pictures", path.display())));
                }
            };
            (reference, path.display().to_string(), None)
        }
        (None, None) => return Err(usage("name real pictures with --data, or a --reference")),
    };

    output.note("compares them with the reference");
    let options = Options {
        splits: network.splits(),
        resamples: args.resamples as usize,
        seed: args.sampling.seed,
        ..Default::default()
    };
    let scores = score(&table, &reference, &options, device)?;
    let recognise = |table: &FeatureTable, labels: Option<&[usize]>| {
        let labels = labels.filter(|labels| labels.iter().all(|label| *label < table.dims[2]));
        labels.filter(|_| args.network.classifier.is_some()).map(|labels| Recognition::of(table, labels)).transpose()
    };
    let recognised = recognise(&table, samples.labels())?;
    let recognised_reference = match &reference.table {
        Some(table) => recognise(table, reference_labels.as_deref())?.map(|found| found.share),
        None => None,
    };
    let (mut floor, mut copies_in_pixels, mut copies_in_features) = (None, None, None);
    if let (Some(data), Some(test)) = (&args.data, &reference.table) {
        let source = open_pictures(data, Split::Train, &PictureOptions::default())?;
        let mut train = DataPictures::new(source.clone(), shape);
        let train_table = look(&mut train, "training pictures", folder("train")?.as_deref(), LOOK_BATCH)?;
        // As many as there are pictures, at even distances: the distance depends on the number.
        let as_many = chosen(&train_table, &evenly(train_table.count, table.count));
        floor = Some(score(&as_many, &reference, &Options { resamples: 0, ..options }, device)?);
        if args.copies {
            output.note("looks for copies");
            let mirrored = args.mirror.then(|| DataPictures::new(source, shape).mirrored());
            let picked = evenly(table.count, Copies::COMPARED);
            let mut features = train_table.features.features;
            let mut test_set = DataPictures::new(open_pictures(data, Split::Test, &PictureOptions::default())?, shape);
            let mut pixels = planes(&mut train, &[])?;
            if let Some(mut mirrored) = mirrored {
                let table = look(&mut mirrored, "mirrored pictures", folder("mirrored")?.as_deref(), LOOK_BATCH)?;
                features.extend(table.features.features);
                pixels.extend(planes(&mut mirrored, &[])?);
            }
            let made = chosen(&table, &picked).features.features;
            let dim = table.dims[0];
            copies_in_features = Some(Copies::of(&features, &made, &test.features.features, dim, device)?);
            let (made, tests) = (planes(&mut *samples, &picked)?, planes(&mut test_set, &[])?);
            copies_in_pixels = Some(Copies::of(&pixels, &made, &tests, shape.elements(), device)?);
        }
    }
    let report = Report {
        samples: samples.describe(),
        reference: reference_name,
        network: network.describe(),
        notes: notes(&*network, &scores),
        scores,
        floor,
        recognised,
        recognised_reference,
        copies_in_pixels,
        copies_in_features,
        class_names,
        settings,
        options: serde_json::to_value(options).context("options as JSON")?,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        seconds: start.elapsed().as_secs_f64(),
    };
    if let Some(out) = &args.out {
        reference.statistics.write(out.join(STATISTICS))?;
        let text = serde_json::to_string_pretty(&report).context("figures as JSON")?;
        atomic_write(out.join(REPORT), text.as_bytes())?;
    }
    if let Some(path) = &args.report {
        let grids = page::grids(&mut *samples, &table, args.network.classifier.is_some())?;
        atomic_write(path, page::page(&[("pictures".to_owned(), report.clone())], &grids)?.as_bytes())?;
    }
    output.result(&report, || text(&report))
}

impl Args {
    /// The pictures, how they are drawn, and the names of their classes.
    fn samples(&self, device: &Device) -> Result<(Box<dyn PictureSet>, serde_json::Value, Vec<String>)> {
        if let Some(path) = &self.samples {
            return Ok((open_set(path)?, serde_json::Value::Null, Vec::new()));
        }
        let generator = Generator::new(&self.model, &self.sampling, device)?;
        let classes = generator.pair.classes();
        let names = (0..classes.count).map(|class| classes.name(class)).collect();
        let labels = equal_parts(&(0..classes.count).collect::<Vec<usize>>(), self.count as usize);
        let settings = generator.settings();
        Ok((Box::new(Generated::new(generator, labels)?), settings, names))
    }
}

/// A file or folder of pictures.
fn open_set(path: &Path) -> Result<Box<dyn PictureSet>> {
    Ok(if path.is_dir() { Box::new(PngFolder::open(path)?) } else { Box::new(SampleFile::open(path)?) })
}

/// The rows of some pictures.
fn chosen(table: &FeatureTable, numbers: &[usize]) -> FeatureTable {
    let pick = |rows: &[f32], dim: usize| -> Vec<f32> {
        numbers.iter().flat_map(|i| &rows[i * dim..][..dim]).copied().collect()
    };
    let [features, spatial, logits] = table.dims;
    let features = burn_var_train::eval::Features {
        features: pick(&table.features.features, features),
        spatial: pick(&table.features.spatial, spatial),
        logits: pick(&table.features.logits, logits),
    };
    FeatureTable { count: numbers.len(), dims: table.dims, features }
}

/// Pixels in `[-1, 1]` of some pictures of a set, or of all if none is named; of grey ones one number a pixel.
fn planes(set: &mut dyn PictureSet, numbers: &[usize]) -> Result<Vec<f32>> {
    let step = 3 / set.channels();
    let convert = |pixels: &[u8]| pixels.iter().step_by(step).map(|x| f32::from(*x) / 127.5 - 1.0).collect::<Vec<_>>();
    if !numbers.is_empty() {
        return Ok(convert(&set.pick(numbers)?));
    }
    let mut all = Vec::new();
    set.read(0, LOOK_BATCH, &mut |pixels| {
        all.extend(convert(pixels));
        Ok(())
    })?;
    Ok(all)
}

fn notes(network: &dyn FeatureSource, scores: &Scores) -> Vec<String> {
    let mut notes = Vec::new();
    let count = scores.count;
    if !network.is_fid() {
        notes.push("the network is not FID's: compare these figures only with others of the same network".to_owned());
    } else if count < PUBLISHED {
        notes.push(format!("{count} pictures: papers use {PUBLISHED}, and FID falls with their number"));
    }
    if count <= network.dims()[0] {
        notes.push(format!("fewer pictures ({count}) than features ({}): the distances say little", network.dims()[0]));
    }
    notes
}

/// The rows of the table: name, figure, and the same of what is possible.
pub(super) fn rows(report: &Report) -> Vec<[String; 3]> {
    let number = |value: f64| format!("{value:.4}");
    let percent = |share: f64| format!("{:.2}%", 100.0 * share);
    let mut rows: Vec<[String; 3]> = Vec::new();
    let mut row = |name: &str, value: Option<String>, possible: Option<String>| {
        if let Some(value) = value {
            rows.push([name.to_owned(), value, possible.unwrap_or_default()]);
        }
    };
    let (scores, floor) = (&report.scores, report.floor.as_ref());
    row("pictures", Some(scores.count.to_string()), scores.reference_count.map(|count| count.to_string()));
    let interval = scores.frechet_interval.map(|found| format!(" ({:.4} to {:.4})", found.low, found.high));
    let frechet = format!("{}{}", number(scores.frechet), interval.unwrap_or_default());
    row("Frechet distance", Some(frechet), floor.map(|floor| number(floor.frechet)));
    let of = |value: fn(&Scores) -> Option<f64>, show: fn(f64) -> String| {
        (value(scores).map(show), floor.and_then(value).map(show))
    };
    let mut scored = |name: &str, value: fn(&Scores) -> Option<f64>, show: fn(f64) -> String| {
        let (value, possible) = of(value, show);
        row(name, value, possible);
    };
    scored("spatial Frechet distance", |scores| scores.spatial_frechet, |x| format!("{x:.4}"));
    scored("Inception Score", |scores| scores.inception_score.map(|[mean, _]| mean), |x| format!("{x:.3}"));
    scored("precision", |scores| scores.precision, |x| format!("{x:.4}"));
    scored("recall", |scores| scores.recall, |x| format!("{x:.4}"));
    scored("density", |scores| scores.density, |x| format!("{x:.4}"));
    scored("coverage", |scores| scores.coverage, |x| format!("{x:.4}"));
    scored("kernel distance x 1000", |scores| scores.kid.map(|[mean, _]| 1e3 * mean), |x| format!("{x:.4}"));
    let recognised = report.recognised.as_ref().map(|found| percent(found.share));
    row("recognised as asked", recognised, report.recognised_reference.map(percent));
    for (name, copies) in
        [("near copies by pixels", report.copies_in_pixels), ("near copies by features", report.copies_in_features)]
    {
        row(name, copies.map(|copies| percent(copies.generated)), copies.map(|copies| percent(copies.test)));
    }
    rows
}

fn text(report: &Report) -> String {
    let mut lines = vec![format!("{:<26} {:>28} {:>14}", "", "these", "real pictures")];
    lines.extend(rows(report).iter().map(|[name, value, possible]| format!("{name:<26} {value:>28} {possible:>14}")));
    lines.extend(report.notes.iter().map(|note| format!("note: {note}")));
    lines.join("\n")
}
