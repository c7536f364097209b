//! JSON values in the metadata of a file.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StateDict;
use crate::{Error, Result};

/// Reads the JSON value under `name` in the metadata of a file, or `None` if there is none.
///
/// # Errors
/// [`Error::Format`] if it is not a valid `T`.
pub(crate) fn read<T: DeserializeOwned>(dict: &StateDict, name: &str) -> Result<Option<T>> {
    let Some(text) = dict.metadata().get(name) else { return Ok(None) };
    serde_json::from_str(text)
        .map(Some)
        .map_err(|error| Error::format(dict.origin(), format!("`{name}` in its metadata is not understood: {error}")))
}

/// Writes a value as JSON under `name` in the metadata of a file.
///
/// # Errors
/// [`Error::Config`] if JSON cannot hold the value.
pub(crate) fn insert<T: Serialize>(metadata: &mut BTreeMap<String, String>, name: &str, value: &T) -> Result<()> {
    let text =
        serde_json::to_string(value).map_err(|error| Error::config(name, error, "a value that JSON can hold"))?;
    metadata.insert(name.to_owned(), text);
    Ok(())
}
