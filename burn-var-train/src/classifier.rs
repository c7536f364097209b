//! Training of the classifier that judges generated pictures.

use std::path::{Path, PathBuf};

use burn::optim::GradientsParams;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use burn_var::classifier::{Classifier, ClassifierConfig};
use burn_var::pretrained::save_classifier;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, Part};
use crate::config::settle;
use crate::data::{BatchLoader, PictureShape, Split};
use crate::eval::{ClassifierFeatures, DataPictures, FeatureTable, PictureSet, Recognition};
use crate::learner::{Learner, Rules};
use crate::optim::{EmaConfig, LrSchedule, OptimConfig, no_decay_1d};
use crate::progress::Progress;
use crate::run::{DataConfig, Metrics, RunConfig, Trainer, run};
use crate::stream::Stream;
use crate::{Error, Result};

/// The file that a run leaves in its folder, in half precision.
const FILE: &str = "classifier.safetensors";
/// Test pictures judged at a time.
const JUDGED: usize = 250;

/// A classifier's training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierTrainConfig {
    /// Length, batch, seed, intervals.
    pub run: RunConfig,
    /// The pictures.
    pub data: DataConfig,
    /// The classifier.
    pub model: ClassifierConfig,
    /// AdamW.
    #[serde(default)]
    pub optimizer: OptimConfig,
    /// Learning rate.
    #[serde(default)]
    pub learning_rate: LrSchedule,
    /// Moving average of the weights, which is what is kept in the end.
    #[serde(default)]
    pub ema: EmaConfig,
}

impl ClassifierTrainConfig {
    /// Refuses what no run can mean.
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

    fn loader(&self, split: Split) -> Result<BatchLoader> {
        let [channels, height, width] = self.model.picture_shape();
        let source = self.data.open(split)?;
        let classes = source.class_names().len();
        if classes != self.model.classes {
            let expected = format!("{classes}, the classes of the pictures in `{}`", source.path().display());
            return Err(Error::config("model.classes", self.model.classes, expected));
        }
        Ok(BatchLoader::new(source, PictureShape::new(height, width, channels)?))
    }
}

/// What came out of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassifierSummary {
    /// The file with the weights.
    pub file: PathBuf,
    /// Share of the test pictures whose class it recognises.
    pub test_accuracy: f64,
    /// How many test pictures there are.
    pub test_pictures: usize,
}

/// Trains a classifier in `folder`, or goes on with it, and measures it on the test pictures.
///
/// `device` is one without autodiff. The run is a function of its configuration: the same weights come out however
/// often it was interrupted. `None` if `progress` ended it before the last step.
///
/// # Errors
/// A configuration or data that no run can be made of; a loss that is not finite; files that can't be written.
pub fn train_classifier(
    config: ClassifierTrainConfig,
    folder: &Path,
    device: &Device,
    progress: &mut dyn Progress,
) -> Result<Option<ClassifierSummary>> {
    config.validate()?;
    let test = config.loader(Split::Test)?;
    settle(folder, &config, &RunConfig::MAY_CHANGE)?;
    let run_config = config.run.clone();
    let mut trainer = ClassifierTrainer::new(config, folder, device)?;
    let Some(file) = run(&mut trainer, &run_config, folder, progress)? else { return Ok(None) };
    let mut test = DataPictures::new(test.source().clone(), test.shape());
    let network = ClassifierFeatures::new(trainer.average().clone(), device)?;
    let judged = FeatureTable::collect(&mut test, &network, None, JUDGED, &mut |_| ())?;
    let recognition = Recognition::of(&judged, test.labels().unwrap_or_default())?;
    Ok(Some(ClassifierSummary { file, test_accuracy: recognition.share, test_pictures: judged.count }))
}

/// A classifier in training.
pub struct ClassifierTrainer {
    folder: PathBuf,
    device: Device,
    learner: Learner<Classifier>,
    stream: Stream,
}

impl ClassifierTrainer {
    /// A run in `folder` on `device` (without autodiff), at its first step.
    ///
    /// # Errors
    /// A configuration or data that no run can be made of.
    pub fn new(config: ClassifierTrainConfig, folder: &Path, device: &Device) -> Result<Self> {
        config.validate()?;
        let stream = Stream::new(config.loader(Split::Train)?, &config.run, config.data.mirror, device)?;
        let model = config.model.init(config.run.seed, &device.clone().autodiff())?;
        let rules = Rules {
            optimizer: config.optimizer.clone(),
            learning_rate: config.learning_rate.clone(),
            ema: config.ema.clone(),
            no_decay: no_decay_1d,
            steps: config.run.steps,
        };
        Ok(Self { folder: folder.to_path_buf(), device: device.clone(), learner: Learner::new(model, rules), stream })
    }

    /// The classifier that the run is for: the moving average of the weights.
    pub fn average(&self) -> &Classifier {
        &self.learner.average
    }
}

impl Trainer for ClassifierTrainer {
    fn step(&mut self, step: u64, measure: bool) -> Result<Metrics> {
        let batch = self.stream.batch(step)?;
        let logits = self.learner.model.forward(Tensor::from_inner(batch.images))?;
        let labels: Vec<i64> = batch.labels.iter().map(|label| *label as i64).collect();
        let labels: Tensor<2, Int> = Tensor::from_data(TensorData::new(labels, [batch.labels.len(), 1]), &self.device);
        let loss = log_softmax(logits.clone(), 1).gather(1, Tensor::from_inner(labels.clone())).mean().neg();
        let mut metrics = Metrics::new();
        if measure {
            let hits = logits.inner().argmax(1).equal(labels).float().mean();
            for (name, value) in [("loss", loss.clone().inner()), ("accuracy", hits)] {
                let value = value.try_into_scalar::<f32>().map_err(burn_var::Error::device("read a loss"))?;
                metrics.push((name.into(), value.into()));
            }
        }
        let rates = self.learner.update(step, GradientsParams::from_grads(loss.backward(), &self.learner.model))?;
        if measure {
            metrics.extend(rates);
        }
        Ok(metrics)
    }

    fn parts(&self) -> Vec<Part<'_>> {
        self.learner.parts()
    }

    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.learner.restore(checkpoint)
    }

    fn data(&self) -> String {
        self.stream.data()
    }

    fn data_like(&self, recorded: &str) -> Result<String> {
        self.stream.data_like(recorded)
    }

    fn export(&self) -> Result<PathBuf> {
        let path = self.folder.join(FILE);
        save_classifier(self.average(), &path, true)?;
        Ok(path)
    }

    fn charts(&self) -> Vec<(&'static str, Vec<String>)> {
        vec![("loss", vec!["loss".into()]), ("accuracy", vec!["accuracy".into()])]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::StopAfter;

    /// IDX files of 8x9 pictures: bright rows at the top, in the middle or at the bottom, by class.
    fn stripes(folder: &Path) {
        for (prefix, count) in [("train", 48), ("t10k", 21)] {
            let pixel = |picture: usize, y: usize, x: usize| {
                let noise = (picture * 7919 + y * 104_729 + x * 31_337) % 90;
                (noise + if y / 3 == picture % 3 { 160 } else { 0 }) as u8
            };
            let mut images = vec![0, 0, 8, 3, 0, 0, 0, count as u8, 0, 0, 0, 8, 0, 0, 0, 9];
            let mut labels = vec![0, 0, 8, 1, 0, 0, 0, count as u8];
            for picture in 0..count {
                images.extend((0..72).map(|i| pixel(picture, i / 9, i % 9)));
                labels.push((picture % 3) as u8);
            }
            std::fs::write(folder.join(format!("{prefix}-images-idx3-ubyte")), images).expect("images");
            std::fs::write(folder.join(format!("{prefix}-labels-idx1-ubyte")), labels).expect("labels");
        }
    }

    fn config(data: &Path) -> ClassifierTrainConfig {
        let text = format!(
            "[run]\nsteps = 24\nbatch_size = 16\nsave_every = 7\n[data]\npath = {data:?}\nmirror = true\n\
             [model]\nimage_channels = 1\nimage_size = [10, 10]\nclasses = 3\n\
             [learning_rate]\npeak = 0.003\nwarmup_steps = 3\n[ema]\ndecay = 0.8"
        );
        toml::from_str(&text).expect("a whole configuration")
    }

    #[test]
    fn learns_and_resumes_to_the_bit() {
        let folder = tempfile::tempdir().expect("temporary folder");
        stripes(folder.path());
        let config = config(folder.path());
        let train = |name: &str, progress: &mut dyn Progress| {
            let run = folder.path().join(name);
            train_classifier(config.clone(), &run, &Device::default(), progress).expect("trains")
        };
        let whole = train("whole", &mut ()).expect("went to the end");
        assert_eq!(whole.test_pictures, 21, "all test pictures were judged");
        assert!(whole.test_accuracy > 0.9, "stripes are easy, found {}", whole.test_accuracy);

        assert_eq!(train("broken", &mut StopAfter(9)), None, "stopped in the middle");
        let broken = train("broken", &mut ()).expect("went to the end");
        let bytes = |summary: &ClassifierSummary| std::fs::read(&summary.file).expect("weights");
        assert!(bytes(&whole) == bytes(&broken), "the same weights after a stop");
    }

    #[test]
    fn classes_that_do_not_fit_are_named() {
        let folder = tempfile::tempdir().expect("temporary folder");
        stripes(folder.path());
        let mut config = config(folder.path());
        config.model.classes = 4;
        let run = folder.path().join("run");
        let error = train_classifier(config, &run, &Device::default(), &mut ()).expect_err("four classes");
        assert!(error.to_string().contains("`model.classes` is 4, expected 3"), "{error}");
        assert!(!run.exists(), "nothing was started");
    }
}
