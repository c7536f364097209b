//! `burn-var eval generated`

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::Device;
use burn_var_train::data::{PictureOptions, PictureShape, Split, open_pictures};
use burn_var_train::eval::{
    ClassRecognition, Copies, DataPictures, FeatureSource, FeatureTable, NpzFile, Options, PictureSet, PngFolder,
    Recognition, Reference, SampleFile, Scores, Statistics, evenly, frechet_by_class, score,
};
use burn_var_train::fs::atomic_write;
use serde::{Deserialize, Serialize};

use super::network::NetworkArgs;
use super::page;
use crate::generator::{DrawArgs, Generated, Generator, Plain};
use crate::models::check_target;
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
    /// Figures class by class too, as on the page of --report.
    #[arg(long, requires = "data")]
    per_class: bool,
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
    draw: DrawArgs,
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
    /// Share in which the classifier sees the class that was asked for.
    pub(super) recognised: Option<f64>,
    /// Of the reference: what is possible.
    pub(super) recognised_reference: Option<f64>,
    pub(super) copies_in_pixels: Option<Copies>,
    pub(super) copies_in_features: Option<Copies>,
    /// Class by class, if that was asked for.
    pub(super) classes: Vec<ClassReport>,
    /// How pictures were drawn, if they were made here.
    pub(super) settings: serde_json::Value,
    pub(super) options: serde_json::Value,
    /// What to keep in mind with these figures.
    pub(super) notes: Vec<String>,
    pub(super) version: String,
    pub(super) seconds: f64,
}

/// One class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ClassReport {
    pub(super) name: String,
    /// Frechet distance to the reference's pictures of the class.
    pub(super) frechet: Option<f64>,
    pub(super) recognised: Option<ClassRecognition>,
}

pub(crate) fn run(args: &Args, device: &Device, output: Output) -> Result<()> {
    let start = Instant::now();
    if let Some(path) = &args.report {
        check_target(path)?;
    }
    let network =
        args.network.load(device)?.ok_or_else(|| usage("name a network: --inception, --classifier or --dino"))?;
    let evaluation = Evaluation { args, network: &*network, device, output };
    let (samples, settings, class_names) = args.samples(device)?;
    let batch = args.draw.sampling.batch.map_or(LOOK_BATCH, |batch| batch as usize);
    let mut made = evaluation.look(samples, FEATURES, "pictures", batch)?;
    let Against { reference, name, mut real } = evaluation.against(&made)?;

    output.note("compares them with the reference");
    let options = Options {
        splits: network.splits(),
        resamples: args.resamples as usize,
        seed: args.draw.sampling.seed,
        ..Default::default()
    };
    let scores = score(&made.table, &reference, &options, device)?;
    let recognised = evaluation.recognise(&made.table, made.set.labels())?;
    let (mut floor, mut recognised_reference, mut copies) = (None, None, None);
    let mut classes = Vec::new();
    if let (Some(real), Some(test)) = (&mut real, &reference.table) {
        // As many as there are pictures, at even distances: the distance depends on the number.
        let as_many = real.train.table.chosen(&evenly(real.train.table.count, made.table.count));
        floor = Some(score(&as_many, &reference, &Options { resamples: 0, ..options }, device)?);
        recognised_reference = evaluation.recognise(test, real.test.labels())?.map(|found| found.share);
        classes = evaluation.classes(&made, &real.test, test, recognised.as_ref(), &class_names)?;
        if args.copies {
            copies = Some(evaluation.copies(&mut made, real, test)?);
        }
    }
    let report = Report {
        samples: made.set.describe(),
        reference: name,
        network: network.describe(),
        notes: notes(&*network, &scores),
        scores,
        floor,
        recognised: recognised.map(|found| found.share),
        recognised_reference,
        copies_in_pixels: copies.map(|[pixels, _]| pixels),
        copies_in_features: copies.map(|[_, features]| features),
        classes,
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
        let grids = page::grids(&mut *made.set, &made.table, args.network.classifier.is_some())?;
        atomic_write(path, page::page(&[("pictures".to_owned(), report.clone())], &grids)?.as_bytes())?;
    }
    output.result(&report, || text(&report))
}

/// Pictures, and what the network sees in them.
struct Seen<S: ?Sized> {
    table: FeatureTable,
    set: Box<S>,
}

/// The data set that the reference is the test pictures of.
struct Real {
    test: DataPictures,
    train: Seen<DataPictures>,
}

/// What pictures are compared with.
struct Against {
    reference: Reference,
    name: String,
    /// If it is a data set.
    real: Option<Real>,
}

/// What all parts of an evaluation need.
struct Evaluation<'a> {
    args: &'a Args,
    network: &'a dyn FeatureSource,
    device: &'a Device,
    output: Output,
}

impl Evaluation<'_> {
    /// Looks at pictures through the network; `folder` is the part of `--out` that keeps what was seen.
    fn look(
        &self,
        mut set: Box<dyn PictureSet>,
        folder: &str,
        name: &str,
        batch: usize,
    ) -> Result<Seen<dyn PictureSet>> {
        let table = self.features(&mut *set, folder, name, batch)?;
        Ok(Seen { table, set })
    }

    fn features(&self, set: &mut dyn PictureSet, folder: &str, name: &str, batch: usize) -> Result<FeatureTable> {
        let folder = self.args.out.as_ref().map(|out| out.join(folder));
        if let Some(folder) = &folder {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
        }
        let bar = self.output.bar(set.count(), name);
        let table = FeatureTable::collect(set, self.network, folder.as_deref(), batch, &mut |done| {
            bar.set_position(done as u64);
        });
        bar.finish_and_clear();
        Ok(table?)
    }

    fn against(&self, made: &Seen<dyn PictureSet>) -> Result<Against> {
        match (&self.args.data, &self.args.reference) {
            (Some(data), _) => self.data(data, made),
            (None, Some(path)) => {
                let (reference, name) = (self.reference(path)?, path.display().to_string());
                Ok(Against { reference, name, real: None })
            }
            (None, None) => Err(usage("name real pictures with --data, or a --reference")),
        }
    }

    /// The test and training pictures of a data set, in the size of those to be compared.
    fn data(&self, data: &Path, made: &Seen<dyn PictureSet>) -> Result<Against> {
        let shape = PictureShape::new(made.set.size().height, made.set.size().width, made.set.channels())?;
        let open = |split: Split| -> Result<DataPictures> {
            Ok(DataPictures::new(open_pictures(data, split, &PictureOptions::default())?, shape))
        };
        let (mut test, mut train) = (open(Split::Test)?, open(Split::Train)?);
        let reference = Reference::of(self.features(&mut test, "test", "test pictures", LOOK_BATCH)?)?;
        let name = format!("test pictures of {}", test.describe());
        let table = self.features(&mut train, "train", "training pictures", LOOK_BATCH)?;
        Ok(Against { reference, name, real: Some(Real { test, train: Seen { table, set: Box::new(train) } }) })
    }

    /// A file of statistics, of pictures, or of both, or a folder of pictures.
    fn reference(&self, path: &Path) -> Result<Reference> {
        let file = path.is_file().then(|| NpzFile::open(path)).transpose()?;
        let statistics = file.as_ref().is_some_and(Statistics::are_in).then(|| Statistics::read(path)).transpose()?;
        let table = match file.as_ref().is_none_or(|file| file.contains("arr_0")) {
            true => Some(self.features(&mut *open_set(path)?, "reference", "reference", LOOK_BATCH)?),
            false => None,
        };
        match (statistics, table) {
            (Some(statistics), table) => Ok(Reference { statistics, table }),
            (None, Some(table)) => Ok(Reference::of(table)?),
            (None, None) => Err(usage(format!("`{}` holds neither statistics nor pictures", path.display()))),
        }
    }

    /// Whether the classifier sees the classes that pictures should show: if there is one, and it knows them.
    fn recognise(&self, table: &FeatureTable, labels: Option<&[usize]>) -> Result<Option<Recognition>> {
        let known = labels.filter(|labels| labels.iter().all(|label| *label < table.dims[2]));
        let asked = known.filter(|_| self.args.network.classifier.is_some());
        Ok(asked.map(|labels| Recognition::of(table, labels)).transpose()?)
    }

    /// The figures of each class, if they are asked for and known of these pictures.
    fn classes(
        &self,
        made: &Seen<dyn PictureSet>,
        test: &DataPictures,
        test_table: &FeatureTable,
        recognised: Option<&Recognition>,
        names: &[String],
    ) -> Result<Vec<ClassReport>> {
        let wanted = self.args.per_class || self.args.report.is_some();
        let (true, Some(labels), Some(real)) = (wanted, made.set.labels(), test.labels()) else {
            return Ok(Vec::new());
        };
        let distances = frechet_by_class((&made.table, labels), (test_table, real))?;
        let class = |(label, frechet): (usize, Option<f64>)| ClassReport {
            name: names.get(label).cloned().unwrap_or_else(|| label.to_string()),
            frechet,
            recognised: recognised.and_then(|all| all.classes.iter().find(|class| class.label == label).cloned()),
        };
        Ok(distances.into_iter().enumerate().map(class).collect())
    }

    /// Near copies of training pictures, by pixels and by features.
    fn copies(
        &self,
        made: &mut Seen<dyn PictureSet>,
        Real { test, train }: &mut Real,
        test_table: &FeatureTable,
    ) -> Result<[Copies; 2]> {
        self.output.note("looks for copies");
        let mut features = train.table.features.features.clone();
        let mut pixels = planes(&mut *train.set, &[])?;
        if self.args.mirror {
            let mut mirrored = train.set.mirrored();
            let seen = self.features(&mut mirrored, "mirrored", "mirrored pictures", LOOK_BATCH)?;
            features.extend(seen.features.features);
            pixels.extend(planes(&mut mirrored, &[])?);
        }
        let picked = evenly(made.table.count, Copies::COMPARED);
        let (made_features, test_features) = (made.table.chosen(&picked).features, &test_table.features);
        let (made_pixels, test_pixels) = (planes(&mut *made.set, &picked)?, planes(test, &[])?);
        let elements = test.channels() * test.size().area();
        Ok([
            Copies::of(&pixels, &made_pixels, &test_pixels, elements, self.device)?,
            Copies::of(&features, &made_features.features, &test_features.features, made.table.dims[0], self.device)?,
        ])
    }
}

impl Args {
    /// The pictures, how they are drawn, and the names of their classes.
    fn samples(&self, device: &Device) -> Result<(Box<dyn PictureSet>, serde_json::Value, Vec<String>)> {
        if let Some(path) = &self.samples {
            return Ok((open_set(path)?, serde_json::Value::Null, Vec::new()));
        }
        let generator = Generator::new(&self.draw, Plain::Never, device)?;
        let classes = generator.pair.classes();
        let names = (0..classes.count).map(|class| classes.name(class)).collect();
        let labels = classes.in_turn(self.count as usize);
        let settings = generator.settings();
        Ok((Box::new(Generated::new(generator, labels)?), settings, names))
    }
}

/// A file or folder of pictures.
fn open_set(path: &Path) -> Result<Box<dyn PictureSet>> {
    Ok(if path.is_dir() { Box::new(PngFolder::open(path)?) } else { Box::new(SampleFile::open(path)?) })
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
    row(
        "spatial Frechet distance",
        scores.spatial_frechet.map(number),
        floor.and_then(|floor| floor.spatial_frechet).map(number),
    );
    let spread = |[mean, deviation]: [f64; 2]| format!("{mean:.3} ± {deviation:.3}");
    row(
        "Inception Score",
        scores.inception_score.map(spread),
        floor.and_then(|floor| floor.inception_score).map(spread),
    );
    let mut scored = |name: &str, value: fn(&Scores) -> Option<f64>| {
        row(name, value(scores).map(number), floor.and_then(value).map(number));
    };
    scored("precision", |scores| scores.precision);
    scored("recall", |scores| scores.recall);
    scored("density", |scores| scores.density);
    scored("coverage", |scores| scores.coverage);
    let thousandfold = |[mean, deviation]: [f64; 2]| spread([1e3 * mean, 1e3 * deviation]);
    row("kernel distance x 1000", scores.kid.map(thousandfold), floor.and_then(|floor| floor.kid).map(thousandfold));
    row("recognised as asked", report.recognised.map(percent), report.recognised_reference.map(percent));
    for (name, copies) in
        [("near copies by pixels", report.copies_in_pixels), ("near copies by features", report.copies_in_features)]
    {
        row(name, copies.map(|copies| percent(copies.generated)), copies.map(|copies| percent(copies.test)));
    }
    rows
}

/// The table of the classes: name, Frechet distance, and what the classifier says.
pub(super) fn class_rows(report: &Report) -> Vec<[String; 5]> {
    let row = |class: &ClassReport| {
        let of = |value: fn(&ClassRecognition) -> String| class.recognised.as_ref().map(value).unwrap_or_default();
        [
            class.name.clone(),
            class.frechet.map(|frechet| format!("{frechet:.4}")).unwrap_or_default(),
            of(|class| class.pictures.to_string()),
            of(|class| format!("{:.2}%", 100.0 * class.share)),
            of(|class| format!("{:.2}%", 100.0 * class.confidence)),
        ]
    };
    report.classes.iter().map(row).collect()
}

/// Heads of [`class_rows`].
pub(super) const CLASS_HEADS: [&str; 5] = ["class", "Frechet distance", "pictures", "recognised", "confidence"];

fn text(report: &Report) -> String {
    let mut lines = vec![format!("{:<26} {:>28} {:>18}", "", "these", "real pictures")];
    lines.extend(rows(report).iter().map(|[name, value, possible]| format!("{name:<26} {value:>28} {possible:>18}")));
    if !report.classes.is_empty() {
        let line = |[name, values @ ..]: &[String; 5]| {
            let values: String = values.iter().map(|value| format!(" {value:>16}")).collect();
            format!("{name:<18}{values}")
        };
        lines.extend([String::new(), line(&CLASS_HEADS.map(str::to_owned))]);
        lines.extend(class_rows(report).iter().map(line));
    }
    lines.extend(report.notes.iter().map(|note| format!("note: {note}")));
    lines.join("\n")
}
