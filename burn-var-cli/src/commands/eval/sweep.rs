//! `burn-var eval sweep`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::Device;
use burn_var::pipeline::{ModelFiles, Pipeline};
use burn_var_train::config::{put, read_toml};
use burn_var_train::curves::{Chart, Series};
use burn_var_train::data::{Fingerprint, ImageOptions, ImageShape, Split, open_images};
use burn_var_train::eval::{
    DataImages, FeatureExtractor, FeatureTable, ImageSet, NetworkIdentity, Options, Recognition, Reference, Scores,
    score,
};
use burn_var_train::fs::atomic_write;
use serde::{Deserialize, Serialize};

use super::network::NetworkArgs;
use crate::generator::{GeneratedSet, Generator};
use crate::models::{PairArgs, check_target};
use crate::output::{Output, UsageError, usage};
use crate::settings::FileSettings;

/// The file of measures in the folder of one setting and seed.
const FIGURES: &str = "figures.json";

/// Evaluate many settings of one model alike: tune settings, compare methods.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The settings, a TOML file: `count`, `seeds`, and for each `[[method]]` its `name`, the `settings` as in a file for
    /// --settings, and those to `vary`, such as `temperature = [0.7, 1.0]`.
    file: PathBuf,
    /// Real images: a folder of IDX files, or one with a sub-folder per class. Its test images are the reference.
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    #[command(flatten)]
    network: NetworkArgs,
    /// Save measures in this folder. The same command resumes an interrupted sweep, and measures only what is new.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Plot the Frechet distance of each method over the share of recognized images, an SVG file.
    #[arg(long, value_name = "FILE", requires = "classifier")]
    plot: Option<PathBuf>,
    /// Images generated and measured at a time. It changes speed and memory, not the images: 50 suit a CPU, 500 a GPU.
    #[arg(long, value_name = "IMAGES", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    #[command(flatten)]
    model: PairArgs,
}

/// The file of settings.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sweep {
    /// Images for each setting and seed, in equal parts of all classes.
    count: usize,
    seeds: Vec<u64>,
    method: Vec<Method>,
}

/// One method, with fixed settings and some that vary.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Method {
    name: String,
    #[serde(default)]
    settings: toml::Table,
    /// Values by the dotted name of a setting; all combinations are measured.
    #[serde(default)]
    vary: BTreeMap<String, Vec<toml::Value>>,
}

impl Method {
    /// Returns all combinations: a description of the settings that vary, and all settings.
    fn variants(&self) -> Result<Vec<(String, FileSettings)>> {
        let mut variants = vec![(Vec::new(), self.settings.clone())];
        for (key, values) in &self.vary {
            let over = |(words, table): &(Vec<String>, toml::Table)| {
                let with = |value: &toml::Value| {
                    let (mut words, mut table) = (words.clone(), table.clone());
                    words.push(format!("{key} {}", value.to_string().trim_matches('"')));
                    put(&mut table, key, value.clone());
                    (words, table)
                };
                values.iter().map(with).collect::<Vec<_>>()
            };
            variants = variants.iter().flat_map(over).collect();
        }
        let read = |(words, table): (Vec<String>, toml::Table)| {
            let settings: FileSettings = table.try_into().map_err(|error: toml::de::Error| {
                usage(format!("settings of the method `{}`: {}", self.name, error.to_string().trim_end()))
            })?;
            Ok((words.join(", "), settings))
        };
        variants.into_iter().map(read).collect()
    }
}

/// The measures of one setting and seed.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Figures {
    /// The identity of the network.
    network: NetworkIdentity,
    seed: u64,
    scores: Scores,
    /// Share of images in which the classifier recognizes the requested class, if the network is a classifier.
    #[serde(rename = "recognised")]
    recognized: Option<f64>,
    /// Time to generate an image and compute its features.
    #[serde(rename = "seconds_a_picture")]
    seconds_per_image: f64,
}

/// A setting with the measures of all seeds.
#[derive(Debug, Serialize)]
struct Measured {
    method: String,
    varied: String,
    settings: serde_json::Value,
    figures: Vec<Figures>,
}

#[derive(Debug, Serialize)]
struct Report {
    network: String,
    reference: String,
    count: usize,
    measured: Vec<Measured>,
}

pub(crate) fn run(args: &Args, device: &Device, output: Output) -> Result<()> {
    if let Some(path) = &args.plot {
        check_target(path)?;
    }
    let sweep: Sweep = read_toml(&args.file)?;
    if sweep.count < 2 || sweep.seeds.is_empty() || sweep.method.is_empty() {
        return Err(usage(format!("`{}`: expected at least 2 images, a seed and a method", args.file.display())));
    }
    let variants: Vec<(&Method, Vec<(String, FileSettings)>)> =
        sweep.method.iter().map(|method| Ok((method, method.variants()?))).collect::<Result<_>>()?;
    let network = args.network.require(device)?;
    let files = args.model.open()?;
    let mut pipelines = Pipelines { model: &args.model, files: &files, device, loaded: BTreeMap::new() };
    let [channels, height, width] = pipelines.get(None)?.image_shape();
    let test = open_images(&args.data, Split::Test, &ImageOptions::default())?;
    let mut test = DataImages::new(test, ImageShape::new(height, width, channels)?);
    let inputs = SweepInputs { args, network: &*network, device };
    let bar = output.bar(test.count(), "test images");
    let reference = inputs.features(&mut test, &args.out.join("test"), &bar)?;
    bar.finish_and_clear();
    let reference = Reference::of(reference)?;

    let mut measured = Vec::new();
    for (method, variants) in variants {
        for (varied, settings) in variants {
            let name = if varied.is_empty() { method.name.clone() } else { format!("{}, {varied}", method.name) };
            let named = |error: anyhow::Error| match error.downcast::<UsageError>() {
                Ok(wrong) => usage(format!("the method `{name}`: {wrong}")),
                Err(error) => error.context(format!("the method `{name}`")),
            };
            let generator = pipelines.generator(&settings).map_err(named)?.with_batch(Some(args.batch));
            let labels = generator.labels_in_turn(sweep.count);
            let set = GeneratedSet::new(generator.clone(), labels)?;
            let figures = sweep.seeds.iter().map(|seed| {
                let bar = output.bar(sweep.count, &format!("{name}, seed {seed}"));
                let figures = inputs.measure(set.clone().with_seed(*seed), *seed, &reference, &bar);
                bar.finish_and_clear();
                figures
            });
            let figures = figures.collect::<Result<Vec<_>>>().map_err(named)?;
            let mut settings = generator.settings();
            if let Some(settings) = settings.as_object_mut() {
                settings.remove("seed");
            }
            measured.push(Measured { method: method.name.clone(), varied, settings, figures });
        }
    }
    let report =
        Report { network: network.identity().to_string(), reference: test.describe(), count: sweep.count, measured };
    if let Some(path) = &args.plot {
        plot(path, &report)?;
    }
    output.result(&report, || text(&report))
}

/// The pipelines of a sweep by the file of their LoRA, each loaded once.
struct Pipelines<'a> {
    model: &'a PairArgs,
    files: &'a ModelFiles,
    device: &'a Device,
    loaded: BTreeMap<Option<PathBuf>, Pipeline>,
}

impl Pipelines<'_> {
    /// Returns a pipeline without injector. Clones share the weights.
    fn get(&mut self, lora: Option<&PathBuf>) -> Result<Pipeline> {
        if let Some(pipeline) = self.loaded.get(&lora.cloned()) {
            return Ok(pipeline.clone());
        }
        let pipeline = Generator::load(self.model, self.files, lora, self.device)?;
        self.loaded.insert(lora.cloned(), pipeline.clone());
        Ok(pipeline)
    }

    fn generator(&mut self, settings: &FileSettings) -> Result<Generator> {
        Generator::with(self.get(settings.lora.as_ref())?, self.files.injector.as_ref(), settings)
    }
}

/// The inputs that all measurements share.
struct SweepInputs<'a> {
    args: &'a Args,
    network: &'a dyn FeatureExtractor,
    device: &'a Device,
}

impl SweepInputs<'_> {
    fn features(&self, set: &mut dyn ImageSet, folder: &Path, bar: &indicatif::ProgressBar) -> Result<FeatureTable> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
        let done = &mut |done| bar.set_position(done as u64);
        Ok(FeatureTable::collect(set, self.network, Some(folder), self.args.batch as usize, done)?)
    }

    fn measure(
        &self,
        mut set: GeneratedSet,
        seed: u64,
        reference: &Reference,
        bar: &indicatif::ProgressBar,
    ) -> Result<Figures> {
        // Named by its content, so that a changed file of settings measures only what it changed.
        let network = self.network.identity();
        let key = Fingerprint::new().field(set.identity()?.as_bytes());
        let key = [&network.kind, &network.weights, &network.preprocessing]
            .into_iter()
            .fold(key, |key, part| key.field(part.as_bytes()));
        let folder = self.args.out.join(&key.finish()[..16]);
        let file = folder.join(FIGURES);
        if file.is_file() {
            let text = std::fs::read(&file).with_context(|| format!("cannot read `{}`", file.display()))?;
            let figures: Figures = serde_json::from_slice(&text).with_context(|| {
                format!(
                    "`{}` is not a file of this version of `eval sweep`: remove it to measure again",
                    file.display()
                )
            })?;
            let name = format!("the measures in `{}`", file.display());
            NetworkIdentity::check_same(("the new measures", network), (&name, &figures.network))?;
            return Ok(figures);
        }
        let start = Instant::now();
        let table = self.features(&mut set, &folder, bar)?;
        let seconds = start.elapsed().as_secs_f64();
        let known = self.args.network.classifier.is_some() && set.classes() <= table.dims[2];
        let labels = set.labels().unwrap_or_default();
        let recognized = known.then(|| Recognition::of(&table, labels)).transpose()?;
        let options = Options { splits: self.network.splits(), seed, ..Default::default() };
        let figures = Figures {
            network: network.clone(),
            seed,
            scores: score(&table, reference, &options, self.device)?,
            recognized: recognized.map(|found| found.share),
            seconds_per_image: seconds / set.count() as f64,
        };
        atomic_write(&file, &serde_json::to_vec_pretty(&figures).context("measures as JSON")?)?;
        Ok(figures)
    }
}

/// Returns the mean and, for two or more values, the standard deviation.
fn spread(values: &[f64]) -> (f64, Option<f64>) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    (mean, (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt()))
}

/// Returns mean and standard deviation of a measure over the seeds; `None` if a seed has no such measure.
fn over_seeds(figures: &[Figures], of: impl Fn(&Figures) -> Option<f64>) -> Option<(f64, Option<f64>)> {
    figures.iter().map(of).collect::<Option<Vec<f64>>>().map(|values| spread(&values))
}

fn plot(path: &Path, report: &Report) -> Result<()> {
    let mut lines: Vec<Series> = Vec::new();
    for Measured { method, figures, .. } in &report.measured {
        let Some((recognized, _)) = over_seeds(figures, |figures| figures.recognized) else {
            return Err(usage(
                "--plot needs the share of recognized images: name a --classifier with the model's classes",
            ));
        };
        let Some((frechet, _)) = over_seeds(figures, |figures| Some(figures.scores.frechet)) else { continue };
        let point = (100.0 * recognized, frechet);
        match lines.iter_mut().find(|line| line.name == *method) {
            Some(line) => line.points.push(point),
            None => lines.push(Series { name: method.clone(), points: vec![point] }),
        }
    }
    let chart = Chart { smoothing: 0.0, ..Chart::new("Lower is nearer to real images", "Frechet distance") };
    Ok(Chart { across: "recognized class, %".to_owned(), ..chart }.write(path, &lines)?)
}

/// Returns a table in Markdown.
fn text(report: &Report) -> String {
    let number = |digits: usize, factor: f64, found: Option<(f64, Option<f64>)>| match found {
        None => "-".to_owned(),
        Some((mean, None)) => format!("{:.digits$}", factor * mean),
        Some((mean, Some(std))) => format!("{:.digits$} ± {:.digits$}", factor * mean, factor * std),
    };
    let row = |Measured { method, varied, figures, .. }: &Measured| {
        let of = |value: fn(&Figures) -> Option<f64>| over_seeds(figures, value);
        format!(
            "| {method} | {varied} | {} | {} | {} | {} | {} | {} |",
            number(4, 1.0, of(|found| Some(found.scores.frechet))),
            number(2, 100.0, of(|found| found.recognized)),
            number(3, 1.0, of(|found| found.scores.precision)),
            number(3, 1.0, of(|found| found.scores.recall)),
            number(2, 1.0, of(|found| found.scores.inception_score.map(|[mean, _]| mean))),
            number(1, 1e3, of(|found| Some(found.seconds_per_image))),
        )
    };
    let seeds = report.measured.first().map_or(0, |measured| measured.figures.len());
    let head = format!(
        "{} images for each of {seeds} seeds, mean and standard deviation over the seeds, against the test images of {}\n\n\
         | method | varied | Frechet distance | recognized, % | precision | recall | Inception Score | ms per image |\n\
         | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n",
        report.count, report.reference
    );
    head + &report.measured.iter().map(row).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_combinations_vary() {
        let method: Method = toml::from_str(
            "name = 'SSG'\nsettings = { top_k = 3, ssg = { schedule = { decay = 1.0 } } }\n\
             vary = { temperature = [0.5, 1.0], 'ssg.schedule.decay' = [0.1, 0.2, 0.3] }",
        )
        .expect("valid");
        let variants = method.variants().expect("settings");
        let words: Vec<&str> = variants.iter().map(|(words, _)| words.as_str()).collect();
        assert_eq!(words.len(), 6, "{words:?}");
        assert_eq!(words[1], "ssg.schedule.decay 0.1, temperature 1.0");
        let wrong = Method { vary: [("temprature".to_owned(), vec![1.0.into()])].into(), ..method };
        let error = wrong.variants().expect_err("a misspelled setting").to_string();
        assert!(error.contains("SSG") && error.contains("temprature"), "{error}");
    }

    #[test]
    fn settings_share_one_loaded_model() {
        let (model, device) = (PairArgs::default(), Device::default());
        let files = model.open().expect("compiled in");
        let mut pipelines = Pipelines { model: &model, files: &files, device: &device, loaded: BTreeMap::new() };
        let mut generator =
            |settings: &str| pipelines.generator(&toml::from_str(settings).expect("settings")).expect("a generator");
        let (plain, guided) = (generator("temperature = 0.5"), generator("aid = { weight = { constant = 0.1 } }"));
        let tokenizer = |generator: &Generator| std::ptr::from_ref(generator.pipeline.tokenizer()).cast::<()>();
        assert_eq!(tokenizer(&plain), tokenizer(&guided), "one model for both");
        assert!(plain.pipeline.injector().is_none() && guided.pipeline.injector().is_some(), "each with its settings");
    }

    #[test]
    fn spreads_are_sample_standard_deviations() {
        assert_eq!(spread(&[2.0]), (2.0, None));
        assert_eq!(spread(&[1.0, 3.0]), (2.0, Some(2f64.sqrt())));
    }
}
