//! The one training loop: every method is a [`Trainer`] that this loop drives, saves, resumes and reports on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, CheckpointDir, Part};
use crate::config::Change;
use crate::curves::{Chart, Series};
use crate::data::{PictureOptions, PictureSource, Split, open_pictures};
use crate::progress::{Progress, Rate};
use crate::report::{RunLog, read_log};
use crate::{Error, Result};

/// What every run has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Optimizer steps of the whole run.
    pub steps: u64,
    /// Pictures a step.
    pub batch_size: usize,
    /// Seed of the first weights, the order of pictures and all noise.
    #[serde(default)]
    pub seed: u64,
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
    /// What may differ when a run is resumed.
    pub const MAY_CHANGE: [(&'static str, Change); 4] = [
        ("run.steps", Change::Raise),
        ("run.save_every", Change::Free),
        ("run.log_every", Change::Free),
        ("run.sample_every", Change::Free),
    ];

    /// Refuses what no run can mean.
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
        Ok(())
    }
}

/// The numbers of one step by name, in the order in which they are shown.
pub type Metrics = Vec<(String, f64)>;

/// A training method, between two steps.
pub trait Trainer {
    /// Does the zero-based step; measures it if `measure` is set.
    ///
    /// # Errors
    /// Broken data, or a number that is not finite: the run stops there, its checkpoints stay.
    fn step(&mut self, step: u64, measure: bool) -> Result<Metrics>;

    /// All that the next step depends on besides the configuration and the number of the step.
    fn parts(&self) -> Vec<Part<'_>>;

    /// Takes over what [`Trainer::parts`] saved.
    ///
    /// # Errors
    /// If the checkpoint is of another model.
    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()>;

    /// What the run learns from: a checkpoint made with other data is refused.
    fn data(&self) -> String;

    /// Returns [`Trainer::data`] in the form of `recorded`, which an earlier version may have recorded.
    ///
    /// # Errors
    /// If the data must be read for it and cannot be.
    fn data_like(&self, _recorded: &str) -> Result<String> {
        Ok(self.data())
    }

    /// Writes pictures that show how far it is, and returns where; `None` if it makes no pictures.
    ///
    /// # Errors
    /// If they can't be written.
    fn samples(&mut self, _step: u64) -> Result<Option<PathBuf>> {
        Ok(None)
    }

    /// Writes the model as far as it is, for use, over the one of before, and returns the file.
    ///
    /// # Errors
    /// If it can't be written.
    fn export(&self) -> Result<PathBuf>;

    /// The curves to draw of the log: title and the names of the metrics.
    fn charts(&self) -> Vec<(&'static str, Vec<String>)>;
}

/// What a checkpoint says of the run besides the trainer's parts.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    data: String,
}

/// Drives a trainer to the last step, from the newest checkpoint in `folder` if there is one. Returns the file of the
/// finished model; `None` if `progress` ended the run before. With every checkpoint the model is written as far as it
/// is, so that it can be tried while the run goes on.
///
/// # Errors
/// Those of the trainer and of the files it writes; the last complete checkpoint stays.
pub fn run(
    trainer: &mut dyn Trainer,
    config: &RunConfig,
    folder: &Path,
    progress: &mut dyn Progress,
) -> Result<Option<PathBuf>> {
    config.validate()?;
    let checkpoints = CheckpointDir::open(folder.join("checkpoints"))?;
    let samples = folder.join("samples");
    std::fs::create_dir_all(&samples).map_err(Error::io("create", &samples))?;
    let mut done = 0;
    if let Some(checkpoint) = checkpoints.latest()? {
        let recorded = checkpoint.state::<State>()?.data;
        if recorded != trainer.data() && recorded != trainer.data_like(&recorded)? {
            let reason =
                "was made with other pictures or tokens than are there now; put those back, or train in a new folder";
            return Err(Error::format(checkpoint.path(), reason));
        }
        trainer.restore(&checkpoint)?;
        done = checkpoint.step();
        progress.note(&format!("goes on after step {done}, from {}", checkpoint.path().display()));
    }
    let mut log = RunLog::open(folder.join("log.jsonl"), done)?;
    let mut rate = Rate::new(done, config.steps, Instant::now());
    while done < config.steps {
        let last = done + 1 == config.steps;
        let measure = done == 0 || last || (done + 1).is_multiple_of(config.log_every);
        let metrics = trainer.step(done, measure)?;
        done += 1;
        if let Some((name, value)) = metrics.iter().find(|(_, value)| !value.is_finite()) {
            return Err(burn_var::Error::NonFinite {
                what: format!("`{name}` at step {}", done - 1),
                found: *value,
                hint: "lower the learning rate, or go on from the last checkpoint with another seed",
            }
            .into());
        }
        let figures: Vec<(&str, f64)> = metrics.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let stop = progress.step(&rate.report(done, Instant::now(), &figures)).is_break();
        if !metrics.is_empty() {
            let fields: serde_json::Map<_, _> =
                metrics.iter().map(|(name, value)| (name.clone(), (*value).into())).collect();
            log.write(done, &fields)?;
        }
        if last || done.is_multiple_of(config.sample_every) {
            let file = trainer.samples(done)?;
            draw_charts(folder, &trainer.charts())?;
            if let Some(file) = file {
                progress.note(&format!("pictures in {}", file.display()));
            }
        }
        if last || stop || done.is_multiple_of(config.save_every) {
            log.sync()?;
            checkpoints.save(done, &State { data: trainer.data() }, trainer.parts())?;
            if !last {
                trainer.export()?;
            }
        }
        if stop && !last {
            return Ok(None);
        }
    }
    Ok(Some(trainer.export()?))
}

/// Draws the log as one SVG file a chart.
fn draw_charts(folder: &Path, charts: &[(&'static str, Vec<String>)]) -> Result<()> {
    let records = read_log(folder.join("log.jsonl"))?;
    for (title, names) in charts {
        let series: Vec<Series> = names.iter().map(|name| Series::from_log(&records, name)).collect();
        Chart::new(*title, *title).write(folder.join(format!("{title}.svg")), &series)?;
    }
    Ok(())
}

/// Where the pictures of a run come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// A folder of IDX files, or one with a sub-folder a class.
    pub path: PathBuf,
    /// Whether half of the pictures are mirrored.
    #[serde(default)]
    pub mirror: bool,
    /// How they are read.
    #[serde(default)]
    pub options: PictureOptions,
}

impl DataConfig {
    /// Opens one part of the pictures.
    ///
    /// # Errors
    /// As [`open_pictures`].
    pub fn open(&self, split: Split) -> Result<Arc<dyn PictureSource>> {
        open_pictures(&self.path, split, &self.options)
    }
}
