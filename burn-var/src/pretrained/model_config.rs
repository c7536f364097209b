//! The configuration that travels inside this project's own files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::StateDict;
use crate::aid::{HeadsConfig, InjectorConfig};
#[cfg(feature = "metrics")]
use crate::classifier::ClassifierConfig;
#[cfg(feature = "metrics")]
use crate::encoder::VitConfig;
use crate::tokenizer::VqVaeConfig;
use crate::transformer::{LoraConfig, VarConfig};
use crate::{Error, Result};

/// Where the configuration is in a file's metadata.
const NOTE: &str = "burn_var";

/// Which model a file holds, and its sizes: JSON under `burn_var` in the metadata of a safetensors file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ModelConfig {
    /// A multi-scale tokenizer.
    VqVae(VqVaeConfig),
    /// A VAR transformer.
    Var(VarConfig),
    /// A low-rank change of one.
    Lora(LoraConfig),
    /// A classifier that judges generated pictures.
    #[cfg(feature = "metrics")]
    Classifier(ClassifierConfig),
    /// A guidance injector of AID-VAR.
    Injector(InjectorConfig),
    /// The heads of its discriminator.
    Heads(HeadsConfig),
    /// A vision transformer that turns pictures into features.
    #[cfg(feature = "metrics")]
    Vit(VitConfig),
}

impl ModelConfig {
    /// The configuration inside a file; none if it was not written by this project.
    ///
    /// # Errors
    /// [`Error::Format`] if there is one, and it cannot be understood.
    pub fn of(dict: &StateDict) -> Result<Option<Self>> {
        let Some(note) = dict.metadata().get(NOTE) else { return Ok(None) };
        serde_json::from_str(note).map(Some).map_err(|error| {
            let reason = format!("the configuration under `{NOTE}` in its metadata is not understood: {error}");
            Error::format(dict.origin(), reason)
        })
    }

    /// The file metadata that [`ModelConfig::of`] reads.
    ///
    /// # Errors
    /// [`Error::Config`] if a number in it is not finite.
    pub fn metadata(&self) -> Result<BTreeMap<String, String>> {
        let note = serde_json::to_string(self)
            .map_err(|error| Error::config("model configuration", error, "what JSON can hold"))?;
        Ok([(NOTE.to_owned(), note)].into())
    }
}

/// A tensor's shape with `N` axes, for reading sizes off a checkpoint.
pub(super) fn axes<const N: usize>(dict: &StateDict, key: &str, model: &str) -> Result<[usize; N]> {
    let shape = dict.shape(key).ok_or_else(|| {
        let some: Vec<&str> = dict.keys().take(3).collect();
        let reason = format!("it is not a {model}: `{key}` is missing; its tensors are {} ...", some.join(", "));
        Error::format(dict.origin(), reason)
    })?;
    match <[usize; N]>::try_from(shape) {
        Ok(shape) if !shape.contains(&0) => Ok(shape),
        _ => Err(Error::shape(key, format!("{N} axes, none empty, in a {model}"), shape)),
    }
}

/// How many of the names `name(0)`, `name(1)`, ... there are.
pub(super) fn count(dict: &StateDict, name: impl Fn(usize) -> String) -> usize {
    (0..).take_while(|&i| dict.contains(&name(i))).count()
}
