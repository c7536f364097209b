//! Measurements of a sweep, saved as they are made.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::Device;
use burn_var::pipeline::{ModelFiles, Pipeline, resolve};
use burn_var::weights::StateDict;
use burn_var_train::data::{Fingerprint, ImageOptions, ImageShape, ImageSource, Part, Split, open_images};
use burn_var_train::eval::{
    DataImages, Distance, FeatureExtractor, FeatureTable, ImageSet, NetworkIdentity, Options, Recognition, Reference,
    Scores, Shard, evenly, score,
};
use burn_var_train::fs::atomic_write;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Args;
use super::file::{RealImages, Sweep, Training};
use crate::commands::eval::network::Networks;
use crate::generator::{GeneratedSet, Generator};
use crate::models::PairArgs;
use crate::output::{Output, usage};

/// The measures of one setting, training and seed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Figures {
    /// The identity of the network.
    network: NetworkIdentity,
    pub(super) seed: u64,
    pub(super) scores: Scores,
    /// Share of images in which the classifier recognizes the requested class, if the network is a classifier.
    #[serde(rename = "recognised")]
    pub(super) recognized: Option<f64>,
    /// Time to generate an image and compute its features; `None` if all features were there already.
    #[serde(rename = "seconds_a_picture")]
    pub(super) seconds_per_image: Option<f64>,
}

/// The distances of one setting, training and seed through one judge.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Judged {
    network: NetworkIdentity,
    distance: Distance,
}

/// All measures of one setting, training and seed.
#[derive(Debug, Clone)]
pub(super) struct Measures {
    pub(super) figures: Figures,
    /// By judge.
    pub(super) distances: Vec<Distance>,
}

/// The models of a sweep, of which the last one stays loaded.
pub(super) struct Pipelines<'a> {
    model: &'a PairArgs,
    files: ModelFiles,
    device: &'a Device,
    loaded: Option<(Key, Pipeline)>,
    /// The shape of all images, `[channels, height, width]`: that of the first model.
    shape: Option<[usize; 3]>,
}

/// Files of tokenizer, transformer and LoRA, if they are not the command's.
type Key = [Option<PathBuf>; 3];

impl<'a> Pipelines<'a> {
    pub(super) fn new(model: &'a PairArgs, device: &'a Device) -> Result<Self> {
        Ok(Self { model, files: model.open()?, device, loaded: None, shape: None })
    }

    /// Opens the files of a training: its own, else those of the command.
    pub(super) fn files(&self, training: &Training) -> Result<ModelFiles> {
        let open = |file: &Option<PathBuf>, other: &StateDict| -> Result<StateDict> {
            Ok(match file {
                Some(file) => StateDict::open(resolve(file)?)?,
                None => other.clone(),
            })
        };
        // The model's own injector was trained with its transformer and is useless with another.
        let own = training.tokenizer.is_none() && training.transformer.is_none();
        Ok(ModelFiles {
            tokenizer: open(&training.tokenizer, &self.files.tokenizer)?,
            transformer: open(&training.transformer, &self.files.transformer)?,
            injector: self.files.injector.clone().filter(|_| own),
        })
    }

    /// Returns a generator with the settings of a training. Generators in turn of the same files share the weights.
    pub(super) fn generator(&mut self, training: &Training) -> Result<Generator> {
        let files = self.files(training)?;
        let lora = training.settings.lora.as_ref();
        let key = [training.tokenizer.clone(), training.transformer.clone(), lora.cloned()];
        let pipeline = match self.loaded.take().filter(|(loaded, _)| *loaded == key) {
            Some((_, pipeline)) => pipeline,
            None => Generator::load(self.model, &files, lora, self.device)?,
        };
        self.loaded = Some((key, pipeline.clone()));
        let generator = Generator::with(pipeline, files.injector.as_ref(), &training.settings)?;
        let found = generator.pipeline.image_shape();
        let expected = *self.shape.get_or_insert(found);
        match found == expected {
            true => Ok(generator),
            false => Err(usage(format!(
                "its images have [channels, height, width] {found:?}, those of the first method {expected:?}"
            ))),
        }
    }

    /// Returns the generator of a training, and its images in equal parts of all classes; `batch` of them at a time.
    pub(super) fn images(
        &mut self,
        training: &Training,
        count: usize,
        batch: u32,
    ) -> Result<(Generator, GeneratedSet)> {
        let generator = self.generator(training)?.with_batch(Some(batch));
        let labels = generator.labels_in_turn(count);
        let set = GeneratedSet::new(generator.clone(), labels)?;
        Ok((generator, set))
    }
}

/// The inputs that all measurements share.
pub(super) struct Inputs<'a> {
    args: &'a Args,
    networks: &'a Networks,
    device: &'a Device,
    /// Description of the real images.
    pub(super) reference: String,
    /// Names of the files of measures against these real images, in the folder of one setting and seed: all measures through
    /// the first network, and the distances through a judge.
    files: [String; 2],
    /// Features of the real images through each network.
    references: Vec<Reference>,
    /// Distances of as many training images through each judge, which no model can be expected to beat.
    pub(super) floors: Vec<f64>,
}

impl<'a> Inputs<'a> {
    /// Computes the features of the real images; `shape` is that of the generated ones, `[channels, height, width]`.
    pub(super) fn open(
        args: &'a Args,
        sweep: &Sweep,
        networks: &'a Networks,
        [channels, height, width]: [usize; 3],
        device: &'a Device,
        output: Output,
    ) -> Result<Self> {
        let shape = ImageShape::new(height, width, channels)?;
        let open = |split: Split| open_images(&args.data, split, &ImageOptions::default());
        // Training images are the floor of the judges.
        let wanted = !networks.judges().is_empty();
        let (real, train): (Arc<dyn ImageSource>, Option<Arc<dyn ImageSource>>) = match sweep.reference {
            RealImages::Test => (open(Split::Test)?, wanted.then(|| open(Split::Train)).transpose()?),
            RealImages::Validation => {
                let [held_out, others] = Part::validation(&open(Split::Train)?)?;
                (Arc::new(held_out), wanted.then(|| Arc::new(others) as _))
            }
        };
        let name = sweep.reference.name();
        let mut real = DataImages::new(real, shape);
        let reference = format!("{name} images of {}", real.describe());
        let tag = &Fingerprint::new().field(real.identity()?.as_bytes()).finish()[..8];
        let mut files = ["figures", "judged"].map(|name| format!("{name}-{tag}.json"));
        // Sweeps without judges have these names: the folder refuses other real images.
        let plain = networks.first_judge == 1 && sweep.reference == RealImages::Test;
        if plain {
            files[0] = "figures.json".to_owned();
        }
        let mut inputs = Self { args, networks, device, reference, files, references: Vec::new(), floors: Vec::new() };
        let mut places = feature_folders(args, networks, &real)?;
        if plain {
            places[0] = args.out.join(name);
        }
        let all: Vec<usize> = (0..places.len()).collect();
        let bar = output.bar(real.count(), &format!("{name} images"));
        let tables = inputs.features(&mut real, &all, &places, &mut |done| bar.set_position(done as u64));
        bar.finish_and_clear();
        inputs.references = tables?.into_iter().map(Reference::of).collect::<burn_var_train::Result<_>>()?;

        if let Some(train) = train {
            let judges = &all[networks.first_judge..];
            let numbers = evenly(train.len(), sweep.count);
            let mut train = DataImages::new(Arc::new(Part::new(train, numbers)?), shape);
            let places = feature_folders(args, networks, &train)?;
            let labels = train.labels().unwrap_or_default().to_vec();
            let bar = output.bar(train.count(), "training images");
            let tables = inputs.features(&mut train, judges, &places, &mut |done| bar.set_position(done as u64));
            bar.finish_and_clear();
            let floor = |(judge, table): (&usize, FeatureTable)| {
                let statistics = &inputs.references[*judge].statistics;
                Distance::of(&table, &labels, statistics, 0, 0).map(|distance| distance.frechet)
            };
            inputs.floors = judges.iter().zip(tables?).map(floor).collect::<burn_var_train::Result<_>>()?;
        }
        Ok(inputs)
    }

    /// Returns the names of the judges and descriptions of their networks.
    pub(super) fn judges(&self) -> Vec<[String; 2]> {
        self.networks.judges().iter().map(|judge| [judge.name.clone(), judge.network.identity().to_string()]).collect()
    }

    /// Describes the network of all measures.
    pub(super) fn network(&self) -> String {
        self.networks.main().identity().to_string()
    }

    /// Computes the features of a set through the `wanted` networks, each in its own of the `places`.
    fn features(
        &self,
        set: &mut dyn ImageSet,
        wanted: &[usize],
        places: &[PathBuf],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<FeatureTable>> {
        wanted.iter().try_for_each(|network| create(&places[*network]))?;
        let networks: Vec<(&dyn FeatureExtractor, Option<&Path>)> =
            wanted.iter().map(|i| (&*self.networks.all[*i].network, Some(&*places[*i]))).collect();
        Ok(FeatureTable::collect_all(set, &networks, self.args.batch as usize, progress)?)
    }

    /// Measures a set, or reads what was measured before.
    pub(super) fn measure(&self, mut set: GeneratedSet, seed: u64, bar: &indicatif::ProgressBar) -> Result<Measures> {
        let places = feature_folders(self.args, self.networks, &set)?;
        let [figures_file, judged_file] = &self.files;
        let figures_file = places[0].join(figures_file);
        let identity = |network: usize| self.networks.all[network].network.identity();
        let mut figures: Option<Figures> = read(&figures_file)?;
        if let Some(found) = &figures {
            check_network(identity(0), &found.network, &figures_file)?;
        }
        let resamples = self.args.resamples as usize;
        let mut judged = Vec::new();
        for (network, place) in places.iter().enumerate().skip(self.networks.first_judge) {
            let file = place.join(judged_file);
            let found: Option<Judged> = read(&file)?;
            if let Some(found) = &found {
                check_network(identity(network), &found.network, &file)?;
            }
            judged.push(found.map(|found| found.distance).filter(|distance| distance.resampled.len() == resamples));
        }
        let missing = |network: &usize| {
            let judge = network.checked_sub(self.networks.first_judge);
            (*network == 0 && figures.is_none()) || judge.is_some_and(|judge| judged[judge].is_none())
        };
        let wanted: Vec<usize> = (0..places.len()).filter(missing).collect();
        let (start, mut before) = (Instant::now(), None);
        let tables = match wanted.is_empty() {
            true => Vec::new(),
            false => self.features(&mut set, &wanted, &places, &mut |done| {
                before.get_or_insert(done);
                bar.set_position(done as u64);
            })?,
        };
        let made = set.count() - before.unwrap_or(set.count());
        let seconds_per_image = (made > 0).then(|| start.elapsed().as_secs_f64() / made as f64);
        // All judges see the same resamples, and every set its own.
        let images = Fingerprint::new().field(set.identity()?.as_bytes()).finish();
        let draw = u64::from_str_radix(&images[..16], 16).context("fingerprint of the images")?;
        for (network, table) in wanted.into_iter().zip(tables) {
            if network == 0 && figures.is_none() {
                let found = self.score(&set, seed, &table, seconds_per_image)?;
                write(&figures_file, &found)?;
                figures = Some(found);
            }
            if let Some(judge) = network.checked_sub(self.networks.first_judge) {
                let statistics = &self.references[network].statistics;
                let labels = set.labels().unwrap_or_default();
                let distance = Distance::of(&table, labels, statistics, resamples, draw)?;
                let found = Judged { network: identity(network).clone(), distance };
                write(&places[network].join(judged_file), &found)?;
                judged[judge] = Some(found.distance);
            }
        }
        let figures = figures.context("measures of the first network")?;
        Ok(Measures { figures, distances: judged.into_iter().flatten().collect() })
    }

    fn score(
        &self,
        set: &GeneratedSet,
        seed: u64,
        table: &FeatureTable,
        seconds_per_image: Option<f64>,
    ) -> Result<Figures> {
        let network = self.networks.main();
        let known = self.networks.recognizes && set.classes() <= table.dims[2];
        let labels = set.labels().unwrap_or_default();
        let recognized = known.then(|| Recognition::of(table, labels)).transpose()?;
        let options = Options { splits: network.splits(), seed, ..Default::default() };
        Ok(Figures {
            network: network.identity().clone(),
            seed,
            scores: score(table, &self.references[0], &options, self.device)?,
            recognized: recognized.map(|found| found.share),
            seconds_per_image,
        })
    }
}

/// Returns the folders of the features of a set through each network. They are named by their content, so that a changed
/// file of settings measures only what it changed.
fn feature_folders(args: &Args, networks: &Networks, set: &dyn ImageSet) -> Result<Vec<PathBuf>> {
    let of = set.identity()?;
    let place = |network: &dyn FeatureExtractor| {
        let NetworkIdentity { kind, weights, preprocessing } = network.identity();
        let key = Fingerprint::new().field(of.as_bytes());
        let key = [kind, weights, preprocessing].into_iter().fold(key, |key, part| key.field(part.as_bytes()));
        args.out.join(&key.finish()[..16])
    };
    Ok(networks.all.iter().map(|named| place(&*named.network)).collect())
}

fn create(place: &Path) -> Result<()> {
    std::fs::create_dir_all(place).with_context(|| format!("cannot create `{}`", place.display()))
}

/// Computes the features of one shard of a set through all networks, and saves them where [`Inputs::measure`] looks for
/// them.
pub(super) fn collect_shard(
    args: &Args,
    networks: &Networks,
    mut set: GeneratedSet,
    shard: Shard,
    bar: &indicatif::ProgressBar,
) -> Result<()> {
    let places = feature_folders(args, networks, &set)?;
    places.iter().try_for_each(|place| create(place))?;
    let networks = networks.all.iter().map(|named| &*named.network);
    let networks: Vec<_> = networks.zip(places.iter().map(PathBuf::as_path)).collect();
    let mut progress = |done: usize| bar.set_position(done as u64);
    Ok(FeatureTable::collect_shard(&mut set, &networks, shard, args.batch as usize, &mut progress)?)
}

fn check_network(network: &NetworkIdentity, saved: &NetworkIdentity, file: &Path) -> Result<()> {
    let name = format!("the measures in `{}`", file.display());
    Ok(NetworkIdentity::check_same(("the new measures", network), (&name, saved))?)
}

/// Reads a file of measures; `None` if there is none.
fn read<T: DeserializeOwned>(file: &Path) -> Result<Option<T>> {
    if !file.is_file() {
        return Ok(None);
    }
    let text = std::fs::read(file).with_context(|| format!("cannot read `{}`", file.display()))?;
    let found = serde_json::from_slice(&text).with_context(|| {
        format!("`{}` is not a file of this version of `eval sweep`: remove it to measure again", file.display())
    })?;
    Ok(Some(found))
}

fn write<T: Serialize>(file: &Path, measures: &T) -> Result<()> {
    Ok(atomic_write(file, &serde_json::to_vec_pretty(measures).context("measures as JSON")?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_share_one_loaded_model() {
        let (model, device) = (PairArgs::default(), Device::default());
        let mut pipelines = Pipelines::new(&model, &device).expect("compiled in");
        let mut generator = |settings: &str| {
            let settings = toml::from_str(settings).expect("settings");
            let training = Training { name: String::new(), tokenizer: None, transformer: None, settings };
            pipelines.generator(&training).expect("a generator")
        };
        let (plain, guided) = (generator("temperature = 0.5"), generator("aid = { weight = { constant = 0.1 } }"));
        let tokenizer = |generator: &Generator| std::ptr::from_ref(generator.pipeline.tokenizer()).cast::<()>();
        assert_eq!(tokenizer(&plain), tokenizer(&guided), "one model for both");
        assert!(plain.pipeline.injector().is_none() && guided.pipeline.injector().is_some(), "each with its settings");
    }
}
