//! What a trained transformer is best used with, beside its weights.

use serde::{Deserialize, Serialize};

use super::StateDict;
use crate::guidance::Schedule;
use crate::sampler::Sampler;
use crate::{Error, Result};

/// Where it is in a file's metadata.
const NOTE: &str = "burn_var_usage";

/// Class names and sampling settings that travel inside a transformer's file: JSON under `burn_var_usage` in the
/// metadata of a safetensors file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Names of the classes, in the order of the labels.
    #[serde(default)]
    pub class_names: Vec<String>,
    /// Classifier-free guidance.
    #[serde(default = "Usage::default_cfg")]
    pub cfg: Schedule,
    /// How tokens are drawn.
    #[serde(default)]
    pub sampler: Sampler,
}

impl Default for Usage {
    /// The evaluation setting of the VAR paper, without class names.
    fn default() -> Self {
        Self { class_names: Vec::new(), cfg: Self::default_cfg(), sampler: Sampler::default() }
    }
}

impl Usage {
    fn default_cfg() -> Schedule {
        Schedule::Ramp(1.5)
    }

    /// The settings inside a file; none if it was written without.
    ///
    /// # Errors
    /// [`Error::Format`] if there are some, and they cannot be understood.
    pub fn of(dict: &StateDict) -> Result<Option<Self>> {
        let Some(note) = dict.metadata().get(NOTE) else { return Ok(None) };
        serde_json::from_str(note).map(Some).map_err(|error| {
            let reason = format!("the settings under `{NOTE}` in its metadata are not understood: {error}");
            Error::format(dict.origin(), reason)
        })
    }

    pub(super) fn entry(&self) -> Result<(String, String)> {
        let note = serde_json::to_string(self).map_err(|error| Error::config("usage", error, "what JSON can hold"))?;
        Ok((NOTE.to_owned(), note))
    }
}
