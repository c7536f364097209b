//! Generation settings that are saved with a transformer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{StateDict, note};
use crate::Result;
use crate::guidance::Schedule;
use crate::sampling::Sampler;

/// Name in a file's metadata.
const NOTE: &str = "burn_var_usage";

/// Class names and generation settings that a transformer was trained for: JSON under `burn_var_usage` in the metadata
/// of its file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerationConfig {
    /// Names of the classes, in the order of the labels.
    #[serde(default)]
    pub class_names: Vec<String>,
    /// Weight of classifier-free guidance.
    #[serde(default = "default_cfg")]
    pub cfg: Schedule,
    /// Settings of the sampler.
    #[serde(default)]
    pub sampler: Sampler,
}

fn default_cfg() -> Schedule {
    Schedule::Ramp(1.5)
}

impl Default for GenerationConfig {
    /// Returns the evaluation settings of the VAR paper, without class names.
    fn default() -> Self {
        Self { class_names: Vec::new(), cfg: default_cfg(), sampler: Sampler::default() }
    }
}

impl GenerationConfig {
    /// Returns the settings of a file, or `None` if it has none.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) if they are invalid.
    pub fn of(dict: &StateDict) -> Result<Option<Self>> {
        note::read(dict, NOTE)
    }

    /// Adds the settings to the metadata of a file to be saved.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if JSON cannot hold them.
    pub fn insert(&self, metadata: &mut BTreeMap<String, String>) -> Result<()> {
        note::insert(metadata, NOTE, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_earlier_versions_are_read_and_written_back() {
        let text = r#"{"class_names":["Bag","Coat"],"cfg":{"ramp":3.0},"sampler":{"top_k":0,"top_p":1.0,"temperature":1.0,"more_smooth":false}}"#;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let dict = StateDict::generated("x", [("a".to_owned(), vec![1])], |_, _| vec![0.0]).unwrap();
        assert_eq!(GenerationConfig::of(&dict).unwrap(), None, "a file without settings");
        let metadata: BTreeMap<_, _> = [("burn_var_usage".to_owned(), text.to_owned())].into();
        let options = crate::weights::SaveOptions { metadata: metadata.clone(), ..Default::default() };
        crate::weights::save(&dict, &path, &options).unwrap();
        let config = GenerationConfig::of(&StateDict::open(&path).unwrap()).unwrap().unwrap();
        assert_eq!((config.class_names.len(), config.sampler.top_k), (2, 0));
        let mut again = BTreeMap::new();
        config.insert(&mut again).unwrap();
        assert_eq!(again, metadata, "the same text");
    }
}
