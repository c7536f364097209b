//! Training of the judges: networks of different kind that evaluate generated images.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use burn_var::metrics::FeatureStats;
use burn_var::models::judge::{Judge, JudgeConfig, JudgeNetwork};
use burn_var::weights::{FloatType, Pretrained, SaveOptions};
use serde::{Deserialize, Serialize};

use super::classifier::{classification, test_accuracy};
use crate::data::{BatchLoader, ImageBatch, ImageShape, ImageStream, Split, View};
use crate::engine::progress::Progress;
use crate::engine::run::{DataConfig, Metrics, RunConfig};
use crate::engine::{
    Learner, Method, Network, NetworkGradients, Piece, Rates, Round, Rules, SectionNames, TrainConfig, TrainingData,
    round_metrics, train,
};
use crate::eval::JudgeExtractor;
use crate::optim::{EmaConfig, LrSchedule, OptimConfig, no_decay_1d};
use crate::tensor::scalar;
use crate::{Error, Result};

/// The file that a run leaves in its folder, in half precision.
const FILE: &str = "judge.safetensors";
/// Images whose pixels are read together for their statistics.
const BATCH: usize = 1000;

/// The configuration of several judges on the same images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgesConfig {
    /// Length, batch and intervals of the training of each judge; its seed is the judge's own.
    pub run: RunConfig,
    /// The images. Principal components are those of the images as they are, without mirroring.
    pub data: DataConfig,
    /// Channels of the images.
    pub image_channels: usize,
    /// Height and width of the images.
    pub image_size: [usize; 2],
    /// AdamW.
    #[serde(default)]
    pub optimizer: OptimConfig,
    /// Learning rate.
    #[serde(default)]
    pub learning_rate: LrSchedule,
    /// Moving average of the weights, which is the result of a training.
    #[serde(default)]
    pub ema: EmaConfig,
    /// The judges by name.
    pub judge: BTreeMap<String, JudgeEntry>,
}

/// One of several judges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgeEntry {
    /// Seed of the initial weights and of the order of images.
    #[serde(default)]
    pub seed: u64,
    /// Kind and sizes.
    pub network: JudgeNetwork,
}

impl JudgesConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        if self.judge.is_empty() {
            return Err(Error::config("judge", "empty", "at least one section [judge.NAME]"));
        }
        let plain = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
        if let Some(name) = self.judge.keys().find(|name| name.is_empty() || !plain(name)) {
            return Err(Error::config("name of a judge", name, "letters, digits, `-` and `_`: it names a file"));
        }
        self.judge.values().try_for_each(|entry| self.of(entry).validate())
    }

    /// Returns the configuration of one judge's training.
    fn of(&self, entry: &JudgeEntry) -> JudgeTrainConfig {
        let Self { run, data, image_channels, image_size, optimizer, learning_rate, ema, .. } = self.clone();
        let model = JudgeConfig { image_channels, image_size, network: entry.network.clone() };
        JudgeTrainConfig { run: RunConfig { seed: entry.seed, ..run }, data, model, optimizer, learning_rate, ema }
    }
}

/// The configuration of one judge's training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgeTrainConfig {
    /// Length, batch, seed, intervals.
    pub run: RunConfig,
    /// The images.
    pub data: DataConfig,
    /// The judge.
    pub model: JudgeConfig,
    /// AdamW.
    #[serde(default)]
    pub optimizer: OptimConfig,
    /// Learning rate.
    #[serde(default)]
    pub learning_rate: LrSchedule,
    /// Moving average of the weights, which is the result of the run.
    #[serde(default)]
    pub ema: EmaConfig,
}

impl JudgeTrainConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        self.run.validate()?;
        self.model.validate()?;
        self.optimizer.validate()?;
        self.learning_rate.validate()?;
        self.ema.validate()
    }

    /// Opens images, whose classes must be those of a judge that classifies.
    fn loader(&self, split: Split) -> Result<BatchLoader> {
        let [channels, height, width] = self.model.image_shape();
        let source = self.data.open(split)?;
        let (found, wanted) = (source.class_names().len(), self.model.network.classes());
        if wanted > 0 && found != wanted {
            let expected = format!("{found}, the classes of the images in `{}`", source.path().display());
            return Err(Error::config("classes of a judge", wanted, expected));
        }
        Ok(BatchLoader::new(source, ImageShape::new(height, width, channels)?))
    }

    /// Creates a judge that needs no training by gradients; `None` for the others.
    fn untrained(&self, device: &Device) -> Result<Option<Judge>> {
        Ok(match self.model.network {
            JudgeNetwork::Random { .. } => Some(self.model.init(self.run.seed, device)?),
            JudgeNetwork::Components { .. } => {
                let pixels = pixel_statistics(&self.loader(Split::Train)?, device)?;
                Some(self.model.fit(&pixels, device)?)
            }
            _ => None,
        })
    }
}

/// Computes mean and covariance of the pixels of all images.
fn pixel_statistics(loader: &BatchLoader, device: &Device) -> Result<FeatureStats> {
    let mut stats = FeatureStats::new(loader.shape().elements());
    let all: Vec<usize> = (0..loader.source().len()).collect();
    for numbers in all.chunks(BATCH) {
        let images = loader.load(numbers, View::Fixed { mirrored: false }, device)?.images;
        let pixels = images.try_into_vec_as::<f32>().map_err(burn_var::Error::device("read images"))?;
        stats.push(&pixels)?;
    }
    Ok(stats)
}

impl TrainConfig for JudgeTrainConfig {
    type Inputs = BatchLoader;
    type Method = JudgeMethod;

    fn run(&self) -> &RunConfig {
        &self.run
    }

    fn open(&self, _device: &Device) -> Result<BatchLoader> {
        self.validate()?;
        // The test images are needed at the end: better to know now that there are some.
        self.loader(Split::Test)?;
        self.loader(Split::Train)
    }

    fn start(
        self,
        train: BatchLoader,
        folder: &Path,
        device: &Device,
        _progress: &mut dyn Progress,
    ) -> Result<JudgeMethod> {
        let stream = ImageStream::new(train, &self.run, self.data.mirror, device)?;
        let model = self.model.init(self.run.seed, &device.clone().autodiff())?;
        let rules = Rules::new(&self.run, &self.optimizer, &self.learning_rate, &self.ema, no_decay_1d);
        let learner = Learner::new(model, rules, SectionNames::SINGLE);
        Ok(JudgeMethod { folder: folder.to_path_buf(), device: device.clone(), learner, stream })
    }
}

/// A finished judge.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JudgeSummary {
    /// Name in the configuration.
    pub name: String,
    /// The file with the weights, in half precision.
    pub file: PathBuf,
    /// Share of the test images that are classified correctly, if the judge classifies.
    pub test_accuracy: Option<f64>,
}

/// Makes all judges of a configuration in `folder`, one after the other: `NAME.safetensors` for each, and a folder `NAME`
/// with the run of those that are trained by gradients. The same call resumes an interrupted training. Returns `None` if
/// `progress` stopped before the last step.
///
/// # Errors
/// The errors of [`train`]; [`Error::Config`] for settings that do not fit, before any work.
pub fn train_judges(
    config: &JudgesConfig,
    folder: &Path,
    device: &Device,
    progress: &mut dyn Progress,
) -> Result<Option<Vec<JudgeSummary>>> {
    config.validate()?;
    // Nothing is begun that cannot be finished.
    config.judge.values().try_for_each(|entry| config.of(entry).open(device).map(|_| ()))?;
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let mut finished = Vec::new();
    for (name, entry) in &config.judge {
        progress.note(&format!("judge {name}: {}", entry.network.name()));
        let config = config.of(entry);
        let judge = match config.untrained(device)? {
            Some(judge) => judge,
            None => match train(config.clone(), &folder.join(name), device, progress)? {
                Some((_, trainer)) => trainer.method().average().clone(),
                None => return Ok(None),
            },
        };
        let file = folder.join(format!("{name}.safetensors"));
        save(&judge, &file)?;
        finished.push(JudgeSummary { name: name.clone(), file, test_accuracy: accuracy(&config, judge, device)? });
    }
    Ok(Some(finished))
}

fn save(judge: &Judge, path: &Path) -> Result<()> {
    Ok(judge.save(path, &SaveOptions { precision: Some(FloatType::F16), ..SaveOptions::default() })?)
}

/// Returns the share of test images that a judge classifies correctly; `None` if it does not classify.
fn accuracy(config: &JudgeTrainConfig, judge: Judge, device: &Device) -> Result<Option<f64>> {
    if config.model.network.classes() == 0 {
        return Ok(None);
    }
    let network = JudgeExtractor::new(judge, device)?;
    test_accuracy(&config.loader(Split::Test)?, &network).map(Some)
}

/// Training of a judge: by cross-entropy if it classifies, else by the squared error of reconstructed images.
pub struct JudgeMethod {
    folder: PathBuf,
    device: Device,
    learner: Learner<Judge>,
    stream: ImageStream,
}

impl JudgeMethod {
    /// The result of the run: the moving average of the weights.
    pub fn average(&self) -> &Judge {
        self.learner.average()
    }
}

impl Method for JudgeMethod {
    type Batch = ImageBatch;
    type Record = Metrics;

    fn data(&self) -> &dyn TrainingData {
        &self.stream
    }

    fn networks(&self) -> Vec<&dyn Network> {
        vec![&self.learner]
    }

    fn networks_mut(&mut self) -> Vec<&mut dyn Network> {
        vec![&mut self.learner]
    }

    fn batch(&mut self, piece: &Piece) -> Result<ImageBatch> {
        self.stream.batch(piece)
    }

    fn backward(&self, round: &Round, _: &Piece, batch: &mut ImageBatch) -> Result<(NetworkGradients, Metrics)> {
        let judge = &self.learner.model;
        let images: Tensor<4> = Tensor::from_inner(batch.images.clone());
        let features = judge.features(images.clone())?;
        let (loss, metrics) = match (judge.logits(features.clone()), judge.reconstruct(features)) {
            (Some(logits), _) => classification(logits, &batch.labels, round.measure, &self.device)?,
            (None, Some(found)) => {
                let loss = (found - images).square().mean();
                let metrics = match round.measure {
                    true => vec![("loss".into(), scalar(&loss.clone().inner(), "read the loss")?)],
                    false => Metrics::new(),
                };
                (loss, metrics)
            }
            (None, None) => {
                let kind = judge.config().network.name();
                return Err(Error::config("network", kind, "one that is trained: it classifies or reconstructs"));
            }
        };
        let gradients = GradientsParams::from_grads(loss.backward(), judge);
        Ok((vec![(0, gradients)], metrics))
    }

    fn finish(&mut self, round: &Round, records: Vec<Metrics>, rates: &[Rates]) -> Result<Metrics> {
        round_metrics(round, records, rates)
    }

    fn export(&self) -> Result<PathBuf> {
        let path = self.folder.join(FILE);
        save(self.average(), &path)?;
        Ok(path)
    }

    fn charts(&self) -> Vec<(&'static str, Vec<String>)> {
        let mut charts = vec![("loss", vec!["loss".into()])];
        if self.learner.model.config().network.classes() > 0 {
            charts.push(("accuracy", vec!["accuracy".into()]));
        }
        charts
    }
}

#[cfg(test)]
mod tests {
    use burn_var::weights::StateDict;

    use super::*;
    use crate::engine::progress::StopAfter;

    /// IDX files of 14x15 images: bright rows at the top, in the middle or at the bottom, by class.
    fn stripes(folder: &Path) {
        for (prefix, count) in [("train", 48), ("t10k", 21)] {
            let pixel = |image: usize, y: usize, x: usize| {
                let noise = (image * 7919 + y * 104_729 + x * 31_337) % 90;
                (noise + if y / 5 == image % 3 { 160 } else { 0 }) as u8
            };
            let mut images = vec![0, 0, 8, 3, 0, 0, 0, count as u8, 0, 0, 0, 14, 0, 0, 0, 15];
            let mut labels = vec![0, 0, 8, 1, 0, 0, 0, count as u8];
            for image in 0..count {
                images.extend((0..210).map(|i| pixel(image, i / 15, i % 15)));
                labels.push((image % 3) as u8);
            }
            std::fs::write(folder.join(format!("{prefix}-images-idx3-ubyte")), images).expect("images");
            std::fs::write(folder.join(format!("{prefix}-labels-idx1-ubyte")), labels).expect("labels");
        }
    }

    fn config(data: &Path) -> JudgesConfig {
        let text = format!(
            "image_channels = 1\nimage_size = [16, 16]\n[run]\nsteps = 32\nbatch_size = 16\nsave_every = 7\n\
             [data]\npath = {data:?}\n[learning_rate]\npeak = 0.003\nwarmup_steps = 3\n[ema]\ndecay = 0.8\n\
             [judge.a]\nseed = 1\nnetwork = {{ convolutional = {{ classes = 3, channels = [32, 32, 32], blocks = 1 }} }}\n\
             [judge.b]\nseed = 2\nnetwork = {{ perceptron = {{ classes = 3, width = 24, features = 12 }} }}\n\
             [judge.c]\nseed = 3\nnetwork = {{ random = {{ channels = 8 }} }}\n\
             [judge.d]\nnetwork = {{ components = {{ features = 8 }} }}\n\
             [judge.e]\nseed = 5\nnetwork = {{ autoencoder = {{ channels = 32, features = 8 }} }}"
        );
        toml::from_str(&text).expect("a whole configuration")
    }

    #[test]
    fn all_kinds_are_made_and_resume_to_the_bit() {
        let folder = tempfile::tempdir().expect("temporary folder");
        stripes(folder.path());
        let config = config(folder.path());
        let train = |name: &str, progress: &mut dyn Progress| {
            train_judges(&config, &folder.path().join(name), &Device::default(), progress).expect("trains")
        };
        let whole = train("whole", &mut ()).expect("went to the end");
        assert_eq!(whole.iter().map(|judge| judge.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c", "d", "e"]);
        for (judge, classifies) in whole.iter().zip([true, true, false, false, false]) {
            let accuracy = judge.test_accuracy;
            assert_eq!(accuracy.is_some(), classifies, "{judge:?}");
            assert!(accuracy.is_none_or(|share| share > 0.9), "stripes are easy: {judge:?}");
            let loaded = Judge::load(&StateDict::open(&judge.file).expect("there"), &Device::default()).expect("loads");
            assert_eq!(loaded.config().network, config.judge[&judge.name].network);
        }
        for judge in ["a", "b", "e"] {
            assert_eq!(train("broken", &mut StopAfter(9)), None, "stopped in the middle of {judge}");
        }
        let broken = train("broken", &mut ()).expect("went to the end");
        for (whole, broken) in whole.iter().zip(&broken) {
            let bytes = |summary: &JudgeSummary| std::fs::read(&summary.file).expect("weights");
            assert!(bytes(whole) == bytes(broken), "the same weights of {} after stops", whole.name);
        }
    }

    #[test]
    fn mistakes_are_named_before_any_work() {
        let folder = tempfile::tempdir().expect("temporary folder");
        stripes(folder.path());
        let run = folder.path().join("run");
        let message = |change: &dyn Fn(&mut JudgesConfig)| {
            let mut config = config(folder.path());
            change(&mut config);
            train_judges(&config, &run, &Device::default(), &mut ()).expect_err("a mistake").to_string()
        };
        let classes = message(&|config| {
            let network = JudgeNetwork::Perceptron { classes: 4, width: 8, features: 8 };
            config.judge.insert("z".into(), JudgeEntry { seed: 0, network });
        });
        assert!(classes.contains("is 4, expected 3"), "{classes}");
        let name = message(&|config| {
            let entry = config.judge["c"].clone();
            config.judge.insert("../c".into(), entry);
        });
        assert!(name.contains("../c") && name.contains("it names a file"), "{name}");
        assert!(message(&|config| config.judge.clear()).contains("[judge.NAME]"));
        assert!(!run.exists(), "nothing was started");
    }

    #[test]
    fn an_untrained_kind_has_no_gradients() {
        let folder = tempfile::tempdir().expect("temporary folder");
        stripes(folder.path());
        let config = config(folder.path());
        let config = config.of(&config.judge["c"]);
        let error = train(config, &folder.path().join("run"), &Device::default(), &mut ()).err().expect("no loss");
        assert!(error.to_string().contains("random"), "{error}");
    }
}
