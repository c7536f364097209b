//! Training of the classifier that evaluates generated images.

use std::path::{Path, PathBuf};

use burn::optim::GradientsParams;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use burn_var::models::classifier::{Classifier, ClassifierConfig};
use burn_var::weights::{FloatType, Pretrained, SaveOptions};
use serde::{Deserialize, Serialize};

use crate::data::{BatchLoader, ImageBatch, ImageShape, ImageStream, Split};
use crate::engine::progress::Progress;
use crate::engine::run::{DataConfig, Metrics, RunConfig};
use crate::engine::{
    Learner, Method, Network, NetworkGradients, Piece, Placement, Rates, Round, Rules, SectionNames, TrainConfig,
    TrainingData, round_metrics, train,
};
use crate::eval::{ClassifierExtractor, DataImages, FeatureExtractor, FeatureTable, ImageSet, Recognition};
use crate::optim::{EmaConfig, LrSchedule, OptimConfig, no_decay_1d};
use crate::tensor::scalar;
use crate::{Error, Result};

/// The file that a run leaves in its folder, in half precision.
const FILE: &str = "classifier.safetensors";
/// Test images that are classified together.
const TEST_BATCH: usize = 250;

/// The configuration of a classifier's training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierTrainConfig {
    /// Length, batch, seed, intervals.
    pub run: RunConfig,
    /// The images.
    pub data: DataConfig,
    /// The classifier.
    pub model: ClassifierConfig,
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

impl ClassifierTrainConfig {
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

    fn loader(&self, split: Split) -> Result<BatchLoader> {
        let [channels, height, width] = self.model.image_shape();
        let source = self.data.open(split)?;
        let classes = source.class_names().len();
        if classes != self.model.classes {
            let expected = format!("{classes}, the classes of the images in `{}`", source.path().display());
            return Err(Error::config("model.classes", self.model.classes, expected));
        }
        Ok(BatchLoader::new(source, ImageShape::new(height, width, channels)?))
    }
}

impl TrainConfig for ClassifierTrainConfig {
    type Inputs = BatchLoader;
    type Method = ClassifierMethod;

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
    ) -> Result<ClassifierMethod> {
        let stream = ImageStream::new(train, &self.run, self.data.mirror, device)?;
        let model = self.model.init(self.run.seed, &device.clone().autodiff())?;
        let rules = Rules::new(&self.run, &self.optimizer, &self.learning_rate, &self.ema, no_decay_1d);
        let learner = Learner::new(model, rules, SectionNames::SINGLE);
        Ok(ClassifierMethod { folder: folder.to_path_buf(), device: device.clone(), learner, stream })
    }
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassifierSummary {
    /// The file with the weights.
    pub file: PathBuf,
    /// Share of the test images that are classified correctly.
    pub test_accuracy: f64,
    /// Number of test images.
    pub test_images: usize,
}

/// Trains a classifier in `folder`, or resumes what is there, and measures it on the test images. Returns `None` if
/// `progress` stopped the run before the last step.
///
/// # Errors
/// The errors of [`train`].
pub fn train_classifier(
    config: ClassifierTrainConfig,
    folder: &Path,
    place: impl Into<Placement>,
    progress: &mut dyn Progress,
) -> Result<Option<ClassifierSummary>> {
    let place = place.into();
    let device = &place.device.clone();
    let Some((file, trainer)) = train(config.clone(), folder, place, progress)? else { return Ok(None) };
    let test = config.loader(Split::Test)?;
    let network = ClassifierExtractor::new(trainer.method().average().clone(), device)?;
    let (test_accuracy, test_images) = (test_accuracy(&test, &network)?, test.source().len());
    Ok(Some(ClassifierSummary { file, test_accuracy, test_images }))
}

/// Returns the share of images that a network classifies correctly.
pub(super) fn test_accuracy(test: &BatchLoader, network: &dyn FeatureExtractor) -> Result<f64> {
    let mut test = DataImages::new(test.source().clone(), test.shape());
    let table = FeatureTable::collect(&mut test, network, None, TEST_BATCH, &mut |_| ())?;
    Ok(Recognition::of(&table, test.labels().unwrap_or_default())?.share)
}

/// Returns the mean cross-entropy of class logits `[images, classes]`, on an autodiff device, and the metrics if they are
/// wanted: `loss`, and the share of hits as `accuracy`. `device` is the one without autodiff.
pub(super) fn classification(
    logits: Tensor<2>,
    labels: &[usize],
    measure: bool,
    device: &Device,
) -> Result<(Tensor<1>, Metrics)> {
    let numbers: Vec<i64> = labels.iter().map(|label| *label as i64).collect();
    let labels: Tensor<2, Int> = Tensor::from_data(TensorData::new(numbers, [labels.len(), 1]), device);
    let loss = log_softmax(logits.clone(), 1).gather(1, Tensor::from_inner(labels.clone())).mean().neg();
    let mut metrics = Metrics::new();
    if measure {
        let hits = logits.inner().argmax(1).equal(labels).float().mean();
        metrics.push(("loss".into(), scalar(&loss.clone().inner(), "read the loss")?));
        metrics.push(("accuracy".into(), scalar(&hits, "read the accuracy")?));
    }
    Ok((loss, metrics))
}

/// Supervised training of a classifier by cross-entropy.
pub struct ClassifierMethod {
    folder: PathBuf,
    device: Device,
    learner: Learner<Classifier>,
    stream: ImageStream,
}

impl ClassifierMethod {
    /// The result of the run: the moving average of the weights.
    pub fn average(&self) -> &Classifier {
        self.learner.average()
    }
}

impl Method for ClassifierMethod {
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
        let logits = self.learner.model.forward(Tensor::from_inner(batch.images.clone()))?;
        let (loss, metrics) = classification(logits, &batch.labels, round.measure, &self.device)?;
        let gradients = GradientsParams::from_grads(loss.backward(), &self.learner.model);
        Ok((vec![(0, gradients)], metrics))
    }

    fn finish(&mut self, round: &Round, records: Vec<Metrics>, rates: &[Rates]) -> Result<Metrics> {
        round_metrics(round, records, rates)
    }

    fn export(&self) -> Result<PathBuf> {
        let path = self.folder.join(FILE);
        let options = SaveOptions { precision: Some(FloatType::F16), ..SaveOptions::default() };
        self.average().save(&path, &options)?;
        Ok(path)
    }

    fn charts(&self) -> Vec<(&'static str, Vec<String>)> {
        vec![("loss", vec!["loss".into()]), ("accuracy", vec!["accuracy".into()])]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::progress::StopAfter;

    /// IDX files of 8x9 images: bright rows at the top, in the middle or at the bottom, by class.
    fn stripes(folder: &Path) {
        for (prefix, count) in [("train", 48), ("t10k", 21)] {
            let pixel = |image: usize, y: usize, x: usize| {
                let noise = (image * 7919 + y * 104_729 + x * 31_337) % 90;
                (noise + if y / 3 == image % 3 { 160 } else { 0 }) as u8
            };
            let mut images = vec![0, 0, 8, 3, 0, 0, 0, count as u8, 0, 0, 0, 8, 0, 0, 0, 9];
            let mut labels = vec![0, 0, 8, 1, 0, 0, 0, count as u8];
            for image in 0..count {
                images.extend((0..72).map(|i| pixel(image, i / 9, i % 9)));
                labels.push((image % 3) as u8);
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
        assert_eq!(whole.test_images, 21, "all test images were judged");
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

    #[test]
    fn the_number_of_pieces_changes_rounding_only() {
        let folder = tempfile::tempdir().expect("temporary folder");
        stripes(folder.path());
        let mut config = config(folder.path());
        config.optimizer.epsilon = 1e-3;
        let mut train = |accumulate: usize| -> Metrics {
            config.run.accumulate = accumulate;
            let device = Device::default();
            let inputs = config.open(&device).expect("readable");
            let method = config.clone().start(inputs, folder.path(), &device, &mut ()).expect("valid");
            let mut trainer = crate::engine::Trainer::new(method, &config.run).expect("valid");
            (0..3).flat_map(|step| trainer.step(step, true).expect("finite")).collect()
        };
        let whole = train(1);
        for pieces in [2, 4] {
            for ((name, found), (_, expected)) in train(pieces).iter().zip(&whole) {
                assert!((found - expected).abs() < 1e-3 * expected.abs(), "{pieces}: `{name}` {found} and {expected}");
            }
        }
        config.run.accumulate = 3;
        let error = config.validate().expect_err("16 images do not make 3 pieces").to_string();
        assert!(error.contains("`run.accumulate` is 3") && error.contains("16"), "{error}");
    }
}
