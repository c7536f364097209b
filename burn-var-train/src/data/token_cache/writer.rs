use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::{TokenCache, TokenCacheSpec};
use crate::fs::{put_in_place, temporary_beside};
use crate::{Error, Result};

/// Writes a cache of tokens image by image, without holding the tokens in memory.
///
/// The file gets its name only when it is complete and on the disk. Dropped before [`TokenCacheWriter::finish`], the
/// writer removes what it wrote; a killed one leaves a hidden file that ends in `.tmp` and is never read.
#[derive(Debug)]
pub struct TokenCacheWriter {
    path: PathBuf,
    spec: TokenCacheSpec,
    file: BufWriter<NamedTempFile>,
    labels: Vec<u32>,
}

impl TokenCacheWriter {
    /// Starts a cache that will be called `path`; its folder must exist.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written, [`Error::Config`] for a spec without images, variants, classes or
    /// tokens.
    pub fn create(path: &Path, spec: TokenCacheSpec) -> Result<Self> {
        let header = spec.header()?;
        let file = temporary_beside(path).map_err(Error::io("create", path))?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.write_all(&header).map_err(Error::io("write", path))?;
        Ok(Self { path: path.to_path_buf(), spec, file, labels: Vec::new() })
    }

    /// Adds the next image: its tokens, one row of L for each variant.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written, for instance on a full disk; [`Error::Config`] for tokens or
    /// labels that contradict the spec.
    pub fn push<R: AsRef<[u32]>>(&mut self, label: usize, variants: &[R]) -> Result<()> {
        let length = self.spec.scales.tokens();
        if self.labels.len() == self.spec.images {
            return Err(Error::config("token cache", "one image more", format!("{} images", self.labels.len())));
        }
        if label >= self.spec.class_names.len() {
            return Err(Error::config("label", label, format!("a label below {}", self.spec.class_names.len())));
        }
        if variants.len() != self.spec.variants.len() {
            return Err(Error::config("variants", variants.len(), format!("{}", self.spec.variants.len())));
        }
        for row in variants.iter().map(AsRef::as_ref) {
            if row.len() != length {
                return Err(Error::config("tokens of an image", row.len(), format!("{length}")));
            }
            if let Some(token) = row.iter().find(|&&token| token as usize >= self.spec.vocab_size) {
                return Err(Error::config("token", token, format!("a token below {}", self.spec.vocab_size)));
            }
            self.write(row)?;
        }
        self.labels.push(label as u32);
        Ok(())
    }

    /// Completes the file and opens it.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written, [`Error::Config`] if images are missing.
    pub fn finish(mut self) -> Result<TokenCache> {
        if self.labels.len() != self.spec.images {
            return Err(Error::config("images", self.labels.len(), format!("{}", self.spec.images)));
        }
        let labels = std::mem::take(&mut self.labels);
        self.write(&labels)?;
        let file = self.file.into_inner().map_err(|error| error.into_error());
        file.and_then(|file| put_in_place(file, &self.path)).map_err(Error::io("write", &self.path))?;
        TokenCache::open(&self.path)
    }

    fn write(&mut self, values: &[u32]) -> Result<()> {
        let width = self.spec.width();
        let mut write = |value: &u32| self.file.write_all(&value.to_le_bytes()[..width]);
        values.iter().try_for_each(&mut write).map_err(Error::io("write", &self.path))
    }
}
