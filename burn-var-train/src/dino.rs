//! Training of a vision transformer without labels, by self-distillation (DINO, Caron et al. 2021): a student learns to
//! say of small crops what its own moving average says of large ones.

mod crops;
mod head;

use std::path::{Path, PathBuf};

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Device, Tensor};
use burn_var::encoder::{Vit, VitConfig};
use burn_var::metrics::NeighbourIndex;
use burn_var::pretrained::save_vit;
use serde::{Deserialize, Serialize};

pub use crops::CropsConfig;
pub use head::HeadConfig;

use self::crops::Crops;
use self::head::ProjectionHead;
use crate::checkpoint::{Checkpoint, Part};
use crate::config::settle;
use crate::data::{BatchLoader, PictureShape, Split};
use crate::eval::{DataPictures, FeatureTable, PictureSet, VitFeatures};
use crate::learner::{Learner, Rules};
use crate::optim::{EmaConfig, LrSchedule, OptimConfig, no_decay_1d};
use crate::progress::Progress;
use crate::run::{DataConfig, Metrics, RunConfig, Trainer, run};
use crate::stream::Stream;
use crate::{Error, Result};

/// The file that a run leaves in its folder, in half precision.
const FILE: &str = "dino.safetensors";
/// Pictures looked at at a time by the probe.
const PROBED: usize = 250;

/// A run of self-distillation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DinoTrainConfig {
    /// Length, batch, seed, intervals.
    pub run: RunConfig,
    /// The pictures; their classes are used by the probe at the end alone.
    pub data: DataConfig,
    /// The vision transformer.
    pub model: VitConfig,
    /// What is put on it while it learns.
    #[serde(default)]
    pub head: HeadConfig,
    /// What is cut out of a picture.
    #[serde(default)]
    pub crops: CropsConfig,
    /// Softmax temperatures and the centre.
    #[serde(default)]
    pub distillation: DistillationConfig,
    /// AdamW of the student.
    #[serde(default = "default_optimizer", deserialize_with = "optimizer")]
    pub optimizer: OptimConfig,
    /// Learning rate of the student.
    #[serde(default)]
    pub learning_rate: LrSchedule,
    /// How slowly the teacher follows the student. The teacher is what is kept in the end.
    #[serde(default = "default_teacher", deserialize_with = "teacher")]
    pub teacher: EmaConfig,
    /// The nearest neighbours that the probe asks.
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

/// How the teacher's word becomes the student's target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DistillationConfig {
    /// Softmax temperature of the student.
    pub student_temperature: f64,
    /// Softmax temperature of the teacher: lower is sharper.
    pub teacher_temperature: f64,
    /// Share of the old centre that a step keeps.
    pub centre_momentum: f64,
}

impl Default for DistillationConfig {
    fn default() -> Self {
        Self { student_temperature: 0.1, teacher_temperature: 0.04, centre_momentum: 0.9 }
    }
}

/// A vote of the nearest training pictures, by cosine of the features (Wu et al. 2018, as DINO's `eval_knn.py`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProbeConfig {
    /// How many vote.
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
    /// Refuses what no run can mean.
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

    fn shape(&self) -> Result<PictureShape> {
        let side = self.model.image_size;
        PictureShape::new(side, side, self.model.image_channels)
    }
}

/// What came out of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DinoSummary {
    /// The file with the weights.
    pub file: PathBuf,
    /// Share of the test pictures whose class their nearest training pictures have.
    pub knn_accuracy: f64,
    /// How many test pictures there are.
    pub test_pictures: usize,
}

/// Trains a vision transformer in `folder`, or goes on with it, and probes it on the test pictures.
///
/// `device` is one without autodiff. The run is a function of its configuration: the same weights come out however
/// often it was interrupted. `None` if `progress` ended it before the last step.
///
/// # Errors
/// A configuration or data that no run can be made of; a loss that is not finite; files that can't be written.
pub fn train_dino(
    config: DinoTrainConfig,
    folder: &Path,
    device: &Device,
    progress: &mut dyn Progress,
) -> Result<Option<DinoSummary>> {
    config.validate()?;
    let open =
        |split: Split| -> Result<DataPictures> { Ok(DataPictures::new(config.data.open(split)?, config.shape()?)) };
    let (mut train, mut test) = (open(Split::Train)?, open(Split::Test)?);
    settle(folder, &config, &RunConfig::MAY_CHANGE)?;
    let (run_config, probe) = (config.run.clone(), config.probe.clone());
    let mut trainer = DinoTrainer::new(config, folder, device)?;
    let Some(file) = run(&mut trainer, &run_config, folder, progress)? else { return Ok(None) };
    let network = VitFeatures::new(trainer.teacher().clone(), device)?;
    progress.note("asks the nearest neighbours of all test pictures");
    let look = |set: &mut DataPictures| FeatureTable::collect(set, &network, None, PROBED, &mut |_| ());
    let (seen, asked) = (look(&mut train)?, look(&mut test)?);
    let labels = [&train, &test].map(|set| set.labels().unwrap_or_default());
    let knn_accuracy = knn_accuracy([&seen, &asked], labels, &probe, device)?;
    Ok(Some(DinoSummary { file, knn_accuracy, test_pictures: asked.count }))
}

/// The share of the second set whose class the first set's nearest vote for.
///
/// # Errors
/// If a feature is not finite, or there are fewer pictures than neighbours.
pub fn knn_accuracy(
    [known, asked]: [&FeatureTable; 2],
    [known_labels, asked_labels]: [&[usize]; 2],
    probe: &ProbeConfig,
    device: &Device,
) -> Result<f64> {
    let dim = known.dims[0];
    let [known, asked] = [known, asked].map(|table| unit_rows(&table.features.features, dim));
    let neighbours = NeighbourIndex::new(&known, dim, device)?.nearest(&asked, probe.neighbours)?;
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

/// Rows of length one.
fn unit_rows(rows: &[f32], dim: usize) -> Vec<f32> {
    let unit = |row: &[f32]| {
        let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(1e-12);
        row.iter().map(|x| (f64::from(*x) / length) as f32).collect::<Vec<f32>>()
    };
    rows.chunks(dim).flat_map(unit).collect()
}

/// The vision transformer with its head.
#[derive(Module, Debug)]
struct Network {
    vit: Vit,
    head: ProjectionHead,
}

impl Network {
    /// Scores of crops of one size, `[crops, outputs]`.
    fn forward(&self, crops: Tensor<4>) -> Result<Tensor<2>> {
        let crops = self.vit.normalise(crops)?;
        Ok(self.head.forward(self.vit.forward(crops)?))
    }
}

/// The mean of what the teacher says, which is taken from it: else it would say the same of every picture.
#[derive(Module, Debug)]
struct Centre {
    value: Param<Tensor<1>>,
}

/// A vision transformer in training.
pub struct DinoTrainer {
    config: DinoTrainConfig,
    folder: PathBuf,
    /// The student; its average is the teacher.
    learner: Learner<Network>,
    centre: Centre,
    crops: Crops,
    stream: Stream,
}

impl DinoTrainer {
    /// A run in `folder` on `device` (without autodiff), at its first step.
    ///
    /// # Errors
    /// A configuration or data that no run can be made of.
    pub fn new(config: DinoTrainConfig, folder: &Path, device: &Device) -> Result<Self> {
        config.validate()?;
        let loader = BatchLoader::new(config.data.open(Split::Train)?, config.shape()?);
        let stream = Stream::new(loader, &config.run, config.data.mirror, device)?;
        let autodiff = device.clone().autodiff();
        let network = Network {
            vit: config.model.init(config.run.seed, &autodiff)?,
            head: config.head.init(config.model.embed_dim, config.run.seed, &autodiff),
        };
        let rules = Rules {
            optimizer: config.optimizer.clone(),
            learning_rate: config.learning_rate.clone(),
            ema: config.teacher.clone(),
            no_decay: no_decay_1d,
            steps: config.run.steps,
        };
        let value = Param::from_tensor(Tensor::zeros([config.head.outputs], device)).set_require_grad(false);
        Ok(Self {
            crops: Crops::new(config.crops.clone(), config.run.seed, config.model.image_size),
            folder: folder.to_path_buf(),
            learner: Learner::new(network, rules),
            centre: Centre { value },
            stream,
            config,
        })
    }

    /// The transformer that the run is for.
    pub fn teacher(&self) -> &Vit {
        &self.learner.average.vit
    }
}

impl Trainer for DinoTrainer {
    fn step(&mut self, step: u64, measure: bool) -> Result<Metrics> {
        let images = self.stream.batch(step)?.images;
        let [batch, ..] = images.dims();
        let DistillationConfig { student_temperature, teacher_temperature, centre_momentum } = self.config.distillation;
        let views = self.crops.cut(images, step);

        let said = self.learner.average.forward(views.large.clone())?; // [2 * batch, outputs]
        let centre = self.centre.value.val();
        let target = softmax((said.clone() - centre.clone().unsqueeze()) / teacher_temperature, 1);
        let moved = centre * centre_momentum + said.mean_dim(0).squeeze_dim::<1>(0) * (1.0 - centre_momentum);
        let id = self.centre.value.id;
        self.centre.value = Param::initialized(id, moved).set_require_grad(false);

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
        if measure {
            // Collapse shows here: all outputs alike (the logarithm of their number), or one alone (0).
            let entropy = (target.clone() * (target + 1e-12).log()).sum_dim(1).mean().neg();
            for (name, value) in [("loss", loss.clone().inner()), ("teacher_entropy", entropy)] {
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
        let mut parts = self.learner.parts();
        parts.push(Part::module("centre", &self.centre));
        parts
    }

    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.learner.restore(checkpoint)?;
        self.centre = checkpoint.module("centre", self.centre.clone())?;
        Ok(())
    }

    fn data(&self) -> String {
        self.stream.data()
    }

    fn data_like(&self, recorded: &str) -> Result<String> {
        self.stream.data_like(recorded)
    }

    fn export(&self) -> Result<PathBuf> {
        let path = self.folder.join(FILE);
        save_vit(self.teacher(), &path, true)?;
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
    use crate::eval::Features;
    use crate::progress::StopAfter;
    use crate::report::read_log;

    /// IDX files of 8x8 pictures of two classes: fine chequers and wide stripes, of any phase and brightness.
    fn patterns(folder: &Path) {
        for (prefix, count) in [("train", 64), ("t10k", 20)] {
            let mut rng = Rng::new(4, prefix, 0);
            let mut images = vec![0, 0, 8, 3, 0, 0, 0, count as u8, 0, 0, 0, 8, 0, 0, 0, 8];
            let mut labels = vec![0, 0, 8, 1, 0, 0, 0, count as u8];
            for picture in 0..count {
                let (phase, bright) = (rng.below(4), 120 + rng.below(120));
                let lit = |i: usize| match picture % 2 {
                    0 => (i / 8 + i % 8 + phase).is_multiple_of(2),
                    _ => (i / 8 + phase) % 4 < 2,
                };
                images.extend((0..64).map(|i| if lit(i) { bright as u8 } else { 20 }));
                labels.push((picture % 2) as u8);
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
        assert_eq!(whole.test_pictures, 20, "all test pictures were asked for");
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
            FeatureTable { count: rows.len() / 2, dims: [2, 0, 0], features }
        };
        // Length does not count: the far row in the same direction is the nearest.
        let known = table(&[100.0, 1.0, 90.0, 0.0, 0.1, 1.0, 0.0, 0.5]);
        let asked = table(&[1.0, 0.0, 0.0, 3.0]);
        let probe = ProbeConfig { neighbours: 2, ..ProbeConfig::default() };
        let of = |labels: [usize; 2]| {
            knn_accuracy([&known, &asked], [&[0, 0, 1, 1], &labels], &probe, &Device::default()).unwrap()
        };
        assert_eq!((of([0, 1]), of([0, 0]), of([1, 0])), (1.0, 0.5, 0.0));
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
}
