//! Training of a vision transformer without labels, by self-distillation (DINO, Caron et al. 2021): a student learns to
//! predict from small crops what its own moving average, the teacher, predicts from large ones.

mod crops;
mod head;

use std::path::{Path, PathBuf};

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Device, Tensor};
use burn_var::metrics::NeighborIndex;
use burn_var::models::dino::{Vit, VitConfig};
use burn_var::weights::{FloatType, Pretrained, SaveOptions};
use serde::{Deserialize, Serialize};

pub use crops::CropsConfig;
pub use head::HeadConfig;

use self::crops::Crops;
use self::head::ProjectionHead;
use crate::data::{BatchLoader, ImageShape, ImageStream, Split};
use crate::engine::checkpoint::{Checkpoint, Part};
use crate::engine::progress::Progress;
use crate::engine::run::{DataConfig, Metrics, RunConfig};
use crate::engine::{
    Learner, Method, Network, NetworkGradients, Packet, Piece, Placement, Portable, Rates, Round, Rules, SectionNames,
    TrainConfig, TrainingData, round_metrics, train,
};
use crate::eval::{DataImages, FeatureTable, ImageSet, NetworkIdentity, VitExtractor};
use crate::optim::{EmaConfig, LrSchedule, OptimConfig, no_decay_1d};
use crate::tensor::{mean, scalar};
use crate::{Error, Result};

/// The file that a run leaves in its folder, in half precision.
const FILE: &str = "dino.safetensors";
/// Images whose features the probe takes together.
const PROBE_BATCH: usize = 250;

/// The configuration of a run of self-distillation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DinoTrainConfig {
    /// Length, batch, seed, intervals.
    pub run: RunConfig,
    /// The images; only the probe at the end uses their classes.
    pub data: DataConfig,
    /// The vision transformer.
    pub model: VitConfig,
    /// The head on top of it in training.
    #[serde(default)]
    pub head: HeadConfig,
    /// Crops of an image.
    #[serde(default)]
    pub crops: CropsConfig,
    /// Softmax temperatures and the center.
    #[serde(default)]
    pub distillation: DistillationConfig,
    /// AdamW of the student.
    #[serde(default = "default_optimizer", deserialize_with = "optimizer")]
    pub optimizer: OptimConfig,
    /// Learning rate of the student.
    #[serde(default)]
    pub learning_rate: LrSchedule,
    /// Moving average of the student: the teacher, which is the result of the run.
    #[serde(default = "default_teacher", deserialize_with = "teacher")]
    pub teacher: EmaConfig,
    /// The nearest neighbors that the probe asks.
    #[serde(default)]
    pub probe: ProbeConfig,
}

/// AdamW as DINO uses it.
fn default_optimizer() -> OptimConfig {
    OptimConfig { weight_decay: 0.04, weight_decay_end: Some(0.4), clip_norm: Some(3.0), ..OptimConfig::default() }
}

fn optimizer<'de, D: serde::Deserializer<'de>>(section: D) -> std::result::Result<OptimConfig, D::Error> {
    crate::config::over(default_optimizer(), section)
}

fn default_teacher() -> EmaConfig {
    EmaConfig { decay: 0.996, warmup: false }
}

fn teacher<'de, D: serde::Deserializer<'de>>(section: D) -> std::result::Result<EmaConfig, D::Error> {
    crate::config::over(default_teacher(), section)
}

/// Constants between the teacher's output and the student's target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DistillationConfig {
    /// Softmax temperature of the student.
    pub student_temperature: f64,
    /// Softmax temperature of the teacher: lower is sharper.
    pub teacher_temperature: f64,
    /// Share of the old center that a step keeps.
    pub centre_momentum: f64,
}

impl Default for DistillationConfig {
    fn default() -> Self {
        Self { student_temperature: 0.1, teacher_temperature: 0.04, centre_momentum: 0.9 }
    }
}

/// A vote of the nearest training images, by cosine of the features (Wu et al. 2018, as DINO's `eval_knn.py`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProbeConfig {
    /// Number of neighbors that vote.
    pub neighbours: usize,
    /// A vote weighs `exp(cosine / temperature)`.
    pub temperature: f64,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        Self { neighbours: 20, temperature: 0.07 }
    }
}

impl DinoTrainConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        self.run.validate()?;
        self.model.validate()?;
        self.head.validate()?;
        self.crops.validate(self.model.patch_size)?;
        self.optimizer.validate()?;
        self.learning_rate.validate()?;
        self.teacher.validate()?;
        let Self { distillation, probe, .. } = self;
        for (name, value) in [
            ("distillation.student_temperature", distillation.student_temperature),
            ("distillation.teacher_temperature", distillation.teacher_temperature),
            ("probe.temperature", probe.temperature),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::config(name, value, "a positive number"));
            }
        }
        if !(0.0..1.0).contains(&distillation.centre_momentum) {
            return Err(Error::config("distillation.centre_momentum", distillation.centre_momentum, "a share in 0..1"));
        }
        match probe.neighbours {
            0 => Err(Error::config("probe.neighbours", 0, "at least 1")),
            _ => Ok(()),
        }
    }

    fn shape(&self) -> Result<ImageShape> {
        let side = self.model.image_size;
        ImageShape::new(side, side, self.model.image_channels)
    }
}

impl TrainConfig for DinoTrainConfig {
    type Inputs = BatchLoader;
    type Method = DinoMethod;

    fn run(&self) -> &RunConfig {
        &self.run
    }

    fn open(&self, _device: &Device) -> Result<BatchLoader> {
        self.validate()?;
        // The test images are needed at the end: better to know now that there are some.
        self.data.open(Split::Test)?;
        Ok(BatchLoader::new(self.data.open(Split::Train)?, self.shape()?))
    }

    fn start(
        self,
        train: BatchLoader,
        folder: &Path,
        device: &Device,
        _progress: &mut dyn Progress,
    ) -> Result<DinoMethod> {
        let stream = ImageStream::new(train, &self.run, self.data.mirror, device)?;
        let autodiff = device.clone().autodiff();
        let network = Student {
            vit: self.model.init(self.run.seed, &autodiff)?,
            head: self.head.init(self.model.embed_dim, self.run.seed, &autodiff),
        };
        let rules = Rules::new(&self.run, &self.optimizer, &self.learning_rate, &self.teacher, no_decay_1d);
        let value = Param::from_tensor(Tensor::zeros([self.head.outputs], device)).set_require_grad(false);
        Ok(DinoMethod {
            crops: Crops::new(self.crops.clone(), self.model.image_size),
            folder: folder.to_path_buf(),
            learner: Learner::new(network, rules, SectionNames::SINGLE),
            centre: Centre { value },
            stream,
            distillation: self.distillation,
        })
    }
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DinoSummary {
    /// The file with the weights.
    pub file: PathBuf,
    /// Share of the test images whose class their nearest training images have.
    pub knn_accuracy: f64,
    /// Number of test images.
    pub test_images: usize,
}

/// Trains a vision transformer in `folder`, or resumes what is there, and probes it on the test images. Returns `None` if
/// `progress` stopped the run before the last step.
///
/// # Errors
/// The errors of [`train`].
pub fn train_dino(
    config: DinoTrainConfig,
    folder: &Path,
    place: impl Into<Placement>,
    progress: &mut dyn Progress,
) -> Result<Option<DinoSummary>> {
    let place = place.into();
    let device = &place.device.clone();
    let Some((file, trainer)) = train(config.clone(), folder, place, progress)? else { return Ok(None) };
    let open = |split: Split| -> Result<DataImages> { Ok(DataImages::new(config.data.open(split)?, config.shape()?)) };
    let (mut known, mut asked) = (open(Split::Train)?, open(Split::Test)?);
    let network = VitExtractor::new(trainer.method().teacher().clone(), device)?;
    progress.note("asks the nearest neighbors of all test images");
    let features = |set: &mut DataImages| FeatureTable::collect(set, &network, None, PROBE_BATCH, &mut |_| ());
    let tables = [features(&mut known)?, features(&mut asked)?];
    let labels = [&known, &asked].map(|set| set.labels().unwrap_or_default());
    let knn_accuracy = knn_accuracy([&tables[0], &tables[1]], labels, &config.probe, device)?;
    Ok(Some(DinoSummary { file, knn_accuracy, test_images: tables[1].count }))
}

/// Returns the share of the second set whose class wins the vote of its nearest in the first set.
///
/// # Errors
/// [`Error::Network`] for features of two networks; [`burn_var::Error::Shape`] if there is not one label per image, or
/// the first set has fewer images than neighbors vote; [`burn_var::Error::NonFinite`] for a feature that is not finite.
pub fn knn_accuracy(
    [known, asked]: [&FeatureTable; 2],
    [known_labels, asked_labels]: [&[usize]; 2],
    probe: &ProbeConfig,
    device: &Device,
) -> Result<f64> {
    NetworkIdentity::check_same(("the images that vote", &known.network), ("the others", &asked.network))?;
    for (table, labels) in [(known, known_labels), (asked, asked_labels)] {
        if labels.len() != table.count {
            let expected = format!("{} numbers, one per image", table.count);
            return Err(burn_var::Error::shape("labels", expected, [labels.len()]).into());
        }
    }
    let dim = known.dims[0];
    let [known, asked] = [known, asked].map(|table| unit_rows(&table.features.features, dim));
    let neighbours = NeighborIndex::new(&known, dim, device)?.nearest(&asked, probe.neighbours)?;
    let classes = known_labels.iter().max().map_or(0, |last| last + 1);
    let vote = |i: usize| {
        let mut votes = vec![0.0; classes];
        for (index, distance) in neighbours.indices(i).iter().zip(neighbours.distances(i)) {
            // Of vectors of length one.
            let cosine = 1.0 - distance * distance / 2.0;
            votes[known_labels[*index]] += (cosine / probe.temperature).exp();
        }
        (0..classes).max_by(|a, b| votes[*a].total_cmp(&votes[*b]).then(b.cmp(a)))
    };
    let right = (0..asked_labels.len()).filter(|i| vote(*i) == Some(asked_labels[*i])).count();
    Ok(right as f64 / asked_labels.len().max(1) as f64)
}

/// Scales rows to length one.
fn unit_rows(rows: &[f32], dim: usize) -> Vec<f32> {
    let unit = |row: &[f32]| {
        let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(1e-12);
        row.iter().map(|x| (f64::from(*x) / length) as f32).collect::<Vec<f32>>()
    };
    rows.chunks(dim).flat_map(unit).collect()
}

/// The vision transformer with its head.
#[derive(Module, Debug)]
struct Student {
    vit: Vit,
    head: ProjectionHead,
}

impl Student {
    /// Returns scores of crops of one size, `[crops, outputs]`.
    fn forward(&self, crops: Tensor<4>) -> Result<Tensor<2>> {
        let crops = self.vit.normalize(crops)?;
        Ok(self.head.forward(self.vit.forward(crops)?))
    }
}

/// The mean output of the teacher, which is subtracted from it: else the teacher would output the same for every image.
#[derive(Module, Debug)]
struct Centre {
    value: Param<Tensor<1>>,
}

/// Self-distillation of a vision transformer.
pub struct DinoMethod {
    distillation: DistillationConfig,
    folder: PathBuf,
    /// The student; its average is the teacher.
    learner: Learner<Student>,
    centre: Centre,
    crops: Crops,
    stream: ImageStream,
}

impl DinoMethod {
    /// The result of the run: the transformer of the teacher.
    pub fn teacher(&self) -> &Vit {
        &self.learner.average().vit
    }
}

/// Values of a piece besides its gradients.
pub struct DinoRecord {
    /// Mean output of the teacher, `[outputs]`.
    output: Tensor<1>,
    metrics: Metrics,
}

impl Portable for DinoRecord {
    fn pack(self, to: &mut Packet) -> Result<()> {
        (self.output, self.metrics).pack(to)
    }

    fn unpack(from: &mut Packet, device: &Device) -> Result<Self> {
        let (output, metrics) = Portable::unpack(from, device)?;
        Ok(Self { output, metrics })
    }
}

impl Method for DinoMethod {
    type Batch = Tensor<4>;
    type Record = DinoRecord;

    fn data(&self) -> &dyn TrainingData {
        &self.stream
    }

    fn networks(&self) -> Vec<&dyn Network> {
        vec![&self.learner]
    }

    fn networks_mut(&mut self) -> Vec<&mut dyn Network> {
        vec![&mut self.learner]
    }

    fn batch(&mut self, piece: &Piece) -> Result<Tensor<4>> {
        Ok(self.stream.batch(piece)?.images)
    }

    fn backward(&self, round: &Round, piece: &Piece, images: &mut Tensor<4>) -> Result<(NetworkGradients, DinoRecord)> {
        let [batch, ..] = images.dims();
        let DistillationConfig { student_temperature, teacher_temperature, .. } = self.distillation;
        let views = self.crops.cut(images.clone(), &mut piece.noise("crops"));

        let teacher = self.learner.average().forward(views.large.clone())?; // [2 * batch, outputs]
        let centre = self.centre.value.val();
        let target = softmax((teacher.clone() - centre.unsqueeze()) / teacher_temperature, 1);

        let student = &self.learner.model;
        let mut answers = vec![student.forward(Tensor::from_inner(views.large))?];
        if let Some(small) = views.small {
            answers.push(student.forward(Tensor::from_inner(small))?);
        }
        let answers = log_softmax(Tensor::cat(answers, 0) / student_temperature, 1);
        let crops = answers.dims()[0] / batch;
        let part = |tensor: &Tensor<2>, i: usize| tensor.clone().narrow(0, i * batch, batch);
        let pairs = (0..2).flat_map(|t| (0..crops).filter(move |s| *s != t).map(move |s| (t, s)));
        let losses = pairs.map(|(t, s)| {
            let target = Tensor::from_inner(part(&target, t));
            (target * part(&answers, s)).sum_dim(1).mean().neg()
        });
        let count = 2 * (crops - 1);
        let loss = losses.reduce(|a, b| a + b).ok_or_else(|| Error::config("crops", crops, "2 or more"))?;
        let loss = loss / count as f64;

        let mut metrics = Metrics::new();
        if round.measure {
            // Collapse shows here: all outputs alike (the logarithm of their number), or one alone (0).
            let entropy = (target.clone() * (target + 1e-12).log()).sum_dim(1).mean().neg();
            metrics.push(("loss".into(), scalar(&loss.clone().inner(), "read the loss")?));
            metrics.push(("teacher_entropy".into(), scalar(&entropy, "read the entropy")?));
        }
        let gradients = GradientsParams::from_grads(loss.backward(), student);
        let output = teacher.mean_dim(0).squeeze_dim::<1>(0);
        Ok((vec![(0, gradients)], DinoRecord { output, metrics }))
    }

    fn finish(&mut self, round: &Round, records: Vec<DinoRecord>, rates: &[Rates]) -> Result<Metrics> {
        let (outputs, metrics) = records.into_iter().map(|record| (record.output, record.metrics)).unzip();
        let momentum = self.distillation.centre_momentum;
        if let Some(output) = mean(outputs) {
            let moved = self.centre.value.val() * momentum + output * (1.0 - momentum);
            self.centre.value = Param::initialized(self.centre.value.id, moved).set_require_grad(false);
        }
        round_metrics(round, metrics, rates)
    }

    fn parts(&self) -> Vec<Part<'_>> {
        vec![Part::module("centre", &self.centre)]
    }

    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.centre = checkpoint.module("centre", self.centre.clone())?;
        Ok(())
    }

    fn export(&self) -> Result<PathBuf> {
        let path = self.folder.join(FILE);
        let options = SaveOptions { precision: Some(FloatType::F16), ..SaveOptions::default() };
        self.teacher().save(&path, &options)?;
        Ok(path)
    }

    fn charts(&self) -> Vec<(&'static str, Vec<String>)> {
        vec![("loss", vec!["loss".into(), "teacher_entropy".into()])]
    }
}

#[cfg(test)]
mod tests {
    use burn_var::rng::Rng;

    use super::*;
    use crate::engine::progress::StopAfter;
    use crate::engine::report::read_log;
    use crate::eval::Features;

    /// IDX files of 8x8 images of two classes: fine chequers and wide stripes, of any phase and brightness.
    fn patterns(folder: &Path) {
        for (prefix, count) in [("train", 64), ("t10k", 20)] {
            let mut rng = Rng::new(4, prefix, 0);
            let mut images = vec![0, 0, 8, 3, 0, 0, 0, count as u8, 0, 0, 0, 8, 0, 0, 0, 8];
            let mut labels = vec![0, 0, 8, 1, 0, 0, 0, count as u8];
            for image in 0..count {
                let (phase, bright) = (rng.below(4), 120 + rng.below(120));
                let lit = |i: usize| match image % 2 {
                    0 => (i / 8 + i % 8 + phase).is_multiple_of(2),
                    _ => (i / 8 + phase) % 4 < 2,
                };
                images.extend((0..64).map(|i| if lit(i) { bright as u8 } else { 20 }));
                labels.push((image % 2) as u8);
            }
            std::fs::write(folder.join(format!("{prefix}-images-idx3-ubyte")), images).expect("images");
            std::fs::write(folder.join(format!("{prefix}-labels-idx1-ubyte")), labels).expect("labels");
        }
    }

    fn config(data: &Path) -> DinoTrainConfig {
        let text = format!(
            "[run]\nsteps = 80\nbatch_size = 16\nsave_every = 30\n[data]\npath = {data:?}\n\
             [model]\nimage_size = 8\nimage_channels = 1\npatch_size = 2\nembed_dim = 16\ndepth = 1\nnum_heads = 2\n\
             mean = [0.5]\nstd = [0.5]\n[head]\nhidden = 16\nbottleneck = 8\noutputs = 32\n\
             [crops]\nsmall = 2\nsmall_size = 4\nsmall_area = [0.4, 0.8]\n[teacher]\ndecay = 0.95\n[learning_rate]\npeak = 0.01\nwarmup_steps = 3\n[probe]\nneighbours = 5"
        );
        toml::from_str(&text).expect("a whole configuration")
    }

    #[test]
    fn learns_without_labels_and_resumes_to_the_bit() {
        let folder = tempfile::tempdir().expect("temporary folder");
        patterns(folder.path());
        let config = config(folder.path());
        let train = |name: &str, progress: &mut dyn Progress| {
            train_dino(config.clone(), &folder.path().join(name), &Device::default(), progress).expect("trains")
        };
        let whole = train("whole", &mut ()).expect("went to the end");
        assert_eq!(whole.test_images, 20, "all test images were asked for");
        assert!(whole.knn_accuracy > 0.8, "chequers are no stripes, found {}", whole.knn_accuracy);
        assert_eq!(train("broken", &mut StopAfter(8)), None, "stopped in the middle");
        let broken = train("broken", &mut ()).expect("went to the end");
        let bytes = |summary: &DinoSummary| std::fs::read(&summary.file).expect("weights");
        assert!(bytes(&whole) == bytes(&broken), "the same weights after a stop, the centre included");
        let log = read_log(folder.path().join("whole/log.jsonl")).expect("a log");
        let entropy = log.last().and_then(|record| record["teacher_entropy"].as_f64()).expect("in the log");
        assert!(entropy > 0.05 && entropy < 32f64.ln() - 0.05, "neither one output for all nor all alike: {entropy}");
    }

    #[test]
    fn the_nearest_vote_by_cosine() {
        let table = |rows: &[f32]| {
            let features = Features { features: rows.to_vec(), spatial: Vec::new(), logits: Vec::new() };
            let network = NetworkIdentity::new("test", "01", "none");
            FeatureTable { network, count: rows.len() / 2, dims: [2, 0, 0], features }
        };
        // Length does not count: the far row in the same direction is the nearest.
        let known = table(&[100.0, 1.0, 90.0, 0.0, 0.1, 1.0, 0.0, 0.5]);
        let asked = table(&[1.0, 0.0, 0.0, 3.0]);
        let probe = ProbeConfig { neighbours: 2, ..ProbeConfig::default() };
        let of = |labels: [usize; 2]| {
            knn_accuracy([&known, &asked], [&[0, 0, 1, 1], &labels], &probe, &Device::default()).unwrap()
        };
        assert_eq!((of([0, 1]), of([0, 0]), of([1, 0])), (1.0, 0.5, 0.0));

        let error = |asked: &FeatureTable, labels: &[usize]| {
            knn_accuracy([&known, asked], [&[0, 0, 1, 1], labels], &probe, &Device::default()).unwrap_err()
        };
        let other = FeatureTable { network: NetworkIdentity::new("test", "02", "none"), ..asked.clone() };
        assert!(matches!(error(&other, &[0, 1]), Error::Network { .. }), "other weights");
        let few = error(&asked, &[0]);
        assert!(matches!(few, Error::Model(burn_var::Error::Shape { .. })), "{few}");
    }

    #[test]
    fn settings_that_make_no_sense_are_named() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut config = config(folder.path());
        config.distillation.teacher_temperature = 0.0;
        assert!(config.validate().unwrap_err().to_string().contains("distillation.teacher_temperature"));
        config.distillation.teacher_temperature = 0.04;
        config.crops.small_size = 3;
        assert!(config.validate().unwrap_err().to_string().contains("crops.small_size"));
    }

    #[test]
    fn the_number_of_pieces_changes_rounding_only() {
        let folder = tempfile::tempdir().expect("temporary folder");
        patterns(folder.path());
        let mut config = config(folder.path());
        config.optimizer.epsilon = 1e-3;
        let mut train = |accumulate: usize| {
            config.run.accumulate = accumulate;
            let device = Device::default();
            let inputs = config.open(&device).expect("readable");
            let method = config.clone().start(inputs, folder.path(), &device, &mut ()).expect("valid");
            let mut trainer = crate::engine::Trainer::new(method, &config.run).expect("valid");
            let metrics: Vec<_> = (0..3).flat_map(|step| trainer.step(step, true).expect("finite")).collect();
            let center = trainer.method().centre.value.val().into_data().try_into_vec::<f32>().expect("f32");
            (metrics, center)
        };
        let (metrics, center) = train(1);
        for pieces in [2, 4] {
            let (found, found_center) = train(pieces);
            for ((name, found), (_, expected)) in found.iter().zip(&metrics) {
                assert!((found - expected).abs() < 1e-3 * expected.abs(), "{pieces}: `{name}` {found} and {expected}");
            }
            let far = center.iter().zip(&found_center).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far < 1e-5, "{pieces} pieces: the center is off by {far}");
        }
    }
}
