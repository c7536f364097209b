//! The settings of every run, and the loop over its steps.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::Device;
use burn_var::ops::Precision;
use serde::{Deserialize, Serialize};

use super::checkpoint::{Checkpoint, CheckpointDir};
use super::progress::{Meter, Progress, Rate, StepReport};
use super::report::{RunLog, read_log};
use super::{Method, Packet, Portable, Ranks, Trainer};
use crate::config::Change;
use crate::curves::{Chart, Series};
use crate::data::{ImageOptions, ImageSource, Split, open_images};
use crate::{Error, Result};

/// Settings that every run has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Optimizer steps of the whole run.
    pub steps: u64,
    /// Images per step.
    pub batch_size: usize,
    /// Pieces that the batch of a step is computed in, one after the other. More pieces take less memory and give the
    /// same weights, up to the rounding of sums.
    #[serde(default = "default_accumulate")]
    pub accumulate: usize,
    /// Seed of the initial weights, the order of images and all noise.
    #[serde(default)]
    pub seed: u64,
    /// Precision of products, forward and backward. Weights, their gradients, moments and averages are in `f32` in each, and
    /// images are encoded to tokens exactly.
    #[serde(default)]
    pub precision: Precision,
    /// Steps between checkpoints.
    #[serde(default = "default_save_every")]
    pub save_every: u64,
    /// Steps between lines of the log.
    #[serde(default = "default_log_every")]
    pub log_every: u64,
    /// Steps between sample grids and curves.
    #[serde(default = "default_sample_every")]
    pub sample_every: u64,
}

fn default_accumulate() -> usize {
    1
}

fn default_save_every() -> u64 {
    500
}

fn default_log_every() -> u64 {
    50
}

fn default_sample_every() -> u64 {
    1000
}

impl RunConfig {
    /// The keys that may differ when a run is resumed.
    pub const MAY_CHANGE: [(&'static str, Change); 8] = [
        ("run.steps", Change::Raise),
        ("run.save_every", Change::Free),
        ("run.log_every", Change::Free),
        ("run.sample_every", Change::Free),
        ("run.accumulate", Change::Free),
        ("data.cache", Change::Free),
        // Whether the images are the same is checked by their fingerprint.
        ("data.options.check", Change::Free),
        ("data.options.strict", Change::Free),
    ];

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        for (name, value) in [
            ("run.steps", self.steps),
            ("run.save_every", self.save_every),
            ("run.log_every", self.log_every),
            ("run.sample_every", self.sample_every),
        ] {
            if value == 0 {
                return Err(Error::config(name, value, "at least 1"));
            }
        }
        if self.accumulate == 0 || !self.batch_size.is_multiple_of(self.accumulate) {
            let expected = format!("a divisor of run.batch_size = {}", self.batch_size);
            return Err(Error::config("run.accumulate", self.accumulate, expected));
        }
        if self.precision == Precision::F16 {
            // There is no scaling of losses.
            let expected = "`bf16`, `tf32` or `exact`: in `f16` small gradients would be zero";
            return Err(Error::config("run.precision", self.precision, expected));
        }
        Ok(())
    }
}

/// The numbers of one step by name, in the order in which they are shown.
pub type Metrics = Vec<(String, f64)>;

/// The version of the noise: raised when the same seed gives other draws. Version 1, whose states have no such field,
/// drew from one stream per step. Version 2 drew tokens by the inverse of the cumulative sum.
const NOISE: u32 = 3;

/// The state of a run besides the sections of its method.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    data: String,
    #[serde(default = "first_noise")]
    noise: u32,
}

fn first_noise() -> u32 {
    1
}

/// Runs to the last step, from the newest checkpoint in `folder` if there is one. Returns the file of the finished model;
/// `None` if `progress` stopped the run before. The model is also written with every checkpoint, so that it can be tried
/// while the run is at work.
///
/// # Errors
/// The errors of the method and of the files that are written; the last complete checkpoint stays.
pub fn run<M: Method>(trainer: &mut Trainer<M>, folder: &Path, progress: &mut dyn Progress) -> Result<Option<PathBuf>> {
    let config = trainer.run().clone();
    let checkpoints = trainer.ranks().leads().then(|| CheckpointDir::open(folder.join("checkpoints"))).transpose()?;
    let mut done = 0;
    if let Some(checkpoint) = newest_checkpoint(checkpoints.as_ref(), folder, trainer.ranks())? {
        let State { data, noise } = checkpoint.state()?;
        check_state(checkpoint.path(), &data, noise, trainer.method(), progress)?;
        trainer.restore(&checkpoint)?;
        done = checkpoint.step();
        progress.note(&format!("resumes after step {done}, from {}", checkpoint.path().display()));
    }
    let mut files = checkpoints.map(|checkpoints| Files::open(checkpoints, folder, done)).transpose()?;
    let mut rate = Rate::new(done, config.steps, Instant::now());
    let mut meter = Meter::default();
    while done < config.steps {
        let last = done + 1 == config.steps;
        let measure = done == 0 || last || (done + 1).is_multiple_of(config.log_every);
        let start = Instant::now();
        let metrics = trainer.step(done, measure)?;
        meter.add(config.batch_size, start.elapsed());
        done += 1;
        if let Some((name, value)) = metrics.iter().find(|(_, value)| !value.is_finite()) {
            return Err(burn_var::Error::NonFinite {
                what: format!("`{name}` at step {}", done - 1),
                found: *value,
                hint: "lower the learning rate, or resume from the last checkpoint with another seed",
            }
            .into());
        }
        let figures: Vec<(&str, f64)> = metrics.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let speed = measure.then(|| meter.take(trainer.memory()));
        let report = StepReport { speed, ..rate.report(done, Instant::now(), &figures) };
        let stop = progress.step(&report).is_break();
        let stop = trainer.ranks().any(stop)?;
        let save = last || stop || done.is_multiple_of(config.save_every);
        if save {
            trainer.check()?;
        }
        if let Some(files) = &mut files {
            if !metrics.is_empty() {
                let fields: serde_json::Map<_, _> =
                    metrics.iter().map(|(name, value)| (name.clone(), (*value).into())).collect();
                files.log.write(done, &fields)?;
            }
            if let Some(speed) = speed {
                files.speed.write(done, &speed)?;
            }
            if last || done.is_multiple_of(config.sample_every) {
                let file = trainer.method_mut().samples(done)?;
                draw_charts(folder, &trainer.method().charts())?;
                if let Some(file) = file {
                    progress.note(&format!("sample images in {}", file.display()));
                }
            }
            if save {
                files.log.sync()?;
                let state = State { data: trainer.method().data().fingerprint(), noise: NOISE };
                files.checkpoints.save(done, &state, trainer.parts())?;
                if !last {
                    trainer.method().export()?;
                }
            }
        }
        if stop && !last {
            return Ok(None);
        }
    }
    let model = files.map(|_| trainer.method().export()).transpose()?;
    trainer.ranks().wait()?;
    Ok(model)
}

/// The files of a run that are written as it goes on, by rank 0.
struct Files {
    checkpoints: CheckpointDir,
    log: RunLog,
    /// Apart from the log, which is a function of the configuration.
    speed: RunLog,
}

impl Files {
    fn open(checkpoints: CheckpointDir, folder: &Path, done: u64) -> Result<Self> {
        let samples = folder.join("samples");
        std::fs::create_dir_all(&samples).map_err(Error::io("create", &samples))?;
        let log = |name: &str| RunLog::open(folder.join(name), done);
        Ok(Self { checkpoints, log: log("log.jsonl")?, speed: log("speed.jsonl")? })
    }
}

/// Returns the checkpoint that all ranks resume from: the newest that rank 0 finds.
fn newest_checkpoint(own: Option<&CheckpointDir>, folder: &Path, ranks: &mut Ranks) -> Result<Option<Checkpoint>> {
    let found = own.map(CheckpointDir::latest).transpose()?.flatten();
    let mut packet = Packet::default();
    found.as_ref().map(Checkpoint::step).pack(&mut packet)?;
    let first = ranks.gather(packet.into_bytes())?.swap_remove(0);
    if ranks.leads() {
        return Ok(found);
    }
    let Some(step) = Option::<u64>::unpack(&mut Packet::received(first), &Device::default())? else { return Ok(None) };
    let folder = folder.join("checkpoints");
    let found = Checkpoint::newest(&folder)?.filter(|checkpoint| checkpoint.step() == step);
    let missing = format!(
        "has no checkpoint of step {step}, from which rank 0 resumes: give all ranks the same folder, or copy its \
         checkpoints here"
    );
    found.map(Some).ok_or_else(|| Error::format(folder, missing))
}

/// Checks that the data of a checkpoint is that of the run, in the form in which it was recorded. Says so if an older
/// version started the run.
fn check_state(
    checkpoint: &Path,
    data: &str,
    noise: u32,
    method: &impl Method,
    progress: &mut dyn Progress,
) -> Result<()> {
    if noise > NOISE {
        let reason = format!("was made by a newer version (noise {noise}, this one has {NOISE}); resume with that one");
        return Err(Error::format(checkpoint, reason));
    }
    let same = match data == method.data().fingerprint() {
        true => Some(true),
        false => method.data().fingerprint_like(data)?.map(|like| like == data),
    };
    let changed = Error::DataChanged { checkpoint: checkpoint.to_path_buf() };
    if noise == NOISE {
        return if same == Some(true) { Ok(()) } else { Err(changed) };
    }
    if same == Some(false) {
        progress.note(
            "an older version started this run, and it left broken images of a folder out: if there are any, set \
             data.options.check = true to do the same",
        );
        return Err(changed);
    }
    let mut note = "an older version started this run and drew its noise in another way: the run continues, but does \
                    not end with the weights that one version alone would reach. Start again in a new folder if that \
                    matters"
        .to_owned();
    if same.is_none() {
        note += ". Its record of the training data cannot be compared: make sure that the data is the same";
    }
    progress.note(&note);
    Ok(())
}

/// Draws the log, one SVG file per chart.
fn draw_charts(folder: &Path, charts: &[(&'static str, Vec<String>)]) -> Result<()> {
    let records = read_log(folder.join("log.jsonl"))?;
    for (title, names) in charts {
        let series: Vec<Series> = names.iter().map(|name| Series::from_log(&records, name)).collect();
        Chart::new(*title, *title).write(folder.join(format!("{title}.svg")), &series)?;
    }
    Ok(())
}

/// The images of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// A folder of IDX files, or a folder with one sub-folder per class.
    pub path: PathBuf,
    /// Mirrors half of the images.
    #[serde(default)]
    pub mirror: bool,
    /// The folder of the token caches, for methods that learn from tokens: `.cache` beside the folder of the run if left
    /// out. A cache belongs to images, tokenizer and views, and any number of runs share it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// Options for reading the images.
    #[serde(default)]
    pub options: ImageOptions,
}

impl DataConfig {
    /// Opens one split of the images.
    ///
    /// # Errors
    /// The errors of [`open_images`].
    pub fn open(&self, split: Split) -> Result<Arc<dyn ImageSource>> {
        open_images(&self.path, split, &self.options)
    }
}
