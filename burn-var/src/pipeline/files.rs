use std::path::{Path, PathBuf};

use crate::weights::StateDict;
use crate::{Error, Result};

/// The opened files of a model.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    /// Tokenizer.
    pub tokenizer: StateDict,
    /// Transformer, with the settings it is best used with.
    pub transformer: StateDict,
    /// The model's own injector, if it has one.
    pub injector: Option<StateDict>,
}

impl ModelFiles {
    /// Name of the tokenizer's file in a model's folder; training writes the same names.
    pub const TOKENIZER: &str = "tokenizer.safetensors";
    /// Name of the transformer's file.
    pub const TRANSFORMER: &str = "transformer.safetensors";
    /// Name of the injector's file.
    pub const INJECTOR: &str = "injector.safetensors";

    /// Opens a model's folder, or one file that holds tokenizer and transformer.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Format`] if a file is missing or is not a checkpoint.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Ok(Self {
            tokenizer: Self::open_part(path, Self::TOKENIZER)?,
            transformer: Self::open_part(path, Self::TRANSFORMER)?,
            injector: Self::open_injector(path)?,
        })
    }

    /// Opens one part of a model: the file `name` in a folder, or the whole file.
    ///
    /// # Errors
    /// The errors of [`ModelFiles::open`].
    pub fn open_part(path: &Path, name: &str) -> Result<StateDict> {
        if !path.is_dir() {
            return StateDict::open(path);
        }
        let file: PathBuf = path.join(name);
        match file.is_file() {
            true => StateDict::open(file),
            false => Err(Error::format(path, format!("the folder has no `{name}`; name the file itself"))),
        }
    }

    /// Opens the injector in a model's folder, if there is one.
    ///
    /// # Errors
    /// The errors of [`ModelFiles::open`].
    pub fn open_injector(path: &Path) -> Result<Option<StateDict>> {
        let file = path.join(Self::INJECTOR);
        file.is_file().then(|| StateDict::open(file)).transpose()
    }
}
