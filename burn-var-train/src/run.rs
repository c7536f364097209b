//! The one training loop: every trainer is a [`Trainer`] that this loop drives, saves, resumes and reports on.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, CheckpointDir, Part};
use crate::report::{Grid, JsonlLog, Progress, Record, Reporter};
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
    /// Steps between sample grids and curves; 0 makes them at the end only.
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
    /// Refuses what no run can mean.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        for (name, value) in
            [("run.steps", self.steps), ("run.save_every", self.save_every), ("run.log_every", self.log_every)]
        {
            if value == 0 {
                return Err(Error::config(name, value, "at least 1"));
            }
        }
        Ok(())
    }
}
