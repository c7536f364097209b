//! Checkpoints as named tensors.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{DType, TensorData};

use super::entry::Entry;
#[cfg(feature = "pytorch")]
use super::pytorch;
use super::safetensors;
use crate::{Error, Result};

/// Segments that wrappers add to names (`torch.compile`, data-parallel training, activation checkpointing).
const WRAPPERS: [&str; 4] = ["_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// The tensors of a checkpoint by name.
///
/// Opening a file reads names, shapes and element types only. Each call of [`StateDict::tensor`] reads one tensor;
/// nothing is cached, so cloning and taking sections are cheap. Prefixes that wrappers add to names (`module.`,
/// `_orig_mod.`, ...) are removed.
#[derive(Clone)]
pub struct StateDict {
    origin: PathBuf,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

impl std::fmt::Debug for StateDict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateDict").field("origin", &self.origin).field("tensors", &self.entries.len()).finish()
    }
}

impl StateDict {
    /// Opens a checkpoint: safetensors, or the formats of `torch.save` (zip, legacy and tar).
    ///
    /// The content decides on the format, not the file's name.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; [`Error::Format`] if it is not a checkpoint, is truncated, or has no
    /// tensors.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut head = Vec::new();
        File::open(path).and_then(|file| file.take(64).read_to_end(&mut head)).map_err(Error::io("read", path))?;
        if let Some(reason) = not_a_checkpoint(&head) {
            return Err(Error::format(path, reason));
        }
        let (entries, metadata) = if safetensors::is_safetensors(&head) {
            safetensors::open(path)?
        } else {
            (open_pytorch(path)?, BTreeMap::new())
        };
        Self::new(path.into(), entries, metadata)
    }

    /// Reads a safetensors file from memory, for example one that is compiled into the program or was downloaded.
    ///
    /// `name` stands for the path in messages. Needs no file system, so it works in a browser.
    ///
    /// # Errors
    /// [`Error::Format`] as for [`StateDict::open`].
    pub fn from_safetensors(name: impl Into<PathBuf>, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        let name = name.into();
        let (entries, metadata) = safetensors::from_bytes(&name, bytes.into())?;
        Self::new(name, entries, metadata)
    }

    /// Opens a safetensors file of `length` bytes through a function that reads a range of them: a file of a browser, or one
    /// on a server. It is called for the header at once, and for each tensor when that is read.
    ///
    /// `name` stands for the path in messages.
    ///
    /// # Errors
    /// [`Error::Io`] with the error of `read`, and [`Error::Format`] as for [`StateDict::open`].
    ///
    /// ```
    /// use burn_var::weights::StateDict;
    ///
    /// # fn main() -> burn_var::Result<()> {
    /// let mut file = vec![58, 0, 0, 0, 0, 0, 0, 0];
    /// file.extend(br#"{"bias":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}} "#);
    /// file.extend(1.5f32.to_le_bytes());
    /// let read = move |range: std::ops::Range<u64>| Ok(file[range.start as usize..range.end as usize].to_vec());
    /// let dict = StateDict::from_safetensors_with("remote", 70, read)?;
    /// assert_eq!(dict.tensor("bias")?.try_into_vec::<f32>().unwrap(), [1.5]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_safetensors_with<R>(name: impl Into<PathBuf>, length: u64, read: R) -> Result<Self>
    where
        R: Fn(Range<u64>) -> std::io::Result<Vec<u8>> + Send + Sync + 'static,
    {
        let name = name.into();
        let (entries, metadata) = safetensors::open_with(&name, length, read)?;
        Self::new(name, entries, metadata)
    }

    /// Creates a dictionary of tensors that are computed when they are read.
    ///
    /// `values` takes a name and a shape, and returns the elements in row-major order.
    ///
    /// `name` stands for the path in messages.
    ///
    /// # Errors
    /// [`Error::Format`] if there are no tensors.
    pub fn generated<F>(
        name: impl Into<PathBuf>,
        tensors: impl IntoIterator<Item = (String, Vec<usize>)>,
        values: F,
    ) -> Result<Self>
    where
        F: Fn(&str, &[usize]) -> Vec<f32> + Send + Sync + 'static,
    {
        let values = Arc::new(values);
        let entries = tensors.into_iter().map(|(key, shape)| {
            let (values, name, dims) = (values.clone(), key.clone(), shape.clone());
            let read = move || {
                let data = values(&name, &dims);
                if data.len() == dims.iter().product::<usize>() {
                    Ok(TensorData::new(data, dims.clone()))
                } else {
                    Err(format!("`{name}` was generated with {} values for shape {dims:?}", data.len()))
                }
            };
            (key, Entry { shape, dtype: DType::F32, read: Arc::new(read) })
        });
        Self::new(name.into(), entries.collect(), BTreeMap::new())
    }

    /// Creates a dictionary without the wrappers' prefixes, and refuses an empty one.
    pub(super) fn new(origin: PathBuf, raw: Vec<(String, Entry)>, metadata: BTreeMap<String, String>) -> Result<Self> {
        if raw.is_empty() {
            return Err(Error::format(origin, "it holds no tensors; a checkpoint of named weights is needed"));
        }
        let mut entries = BTreeMap::new();
        for (key, entry) in raw {
            let bare: Vec<&str> = key.split('.').filter(|segment| !WRAPPERS.contains(segment)).collect();
            let bare = bare.join(".");
            if entries.contains_key(&bare) {
                return Err(Error::format(
                    origin,
                    format!("two tensors are called `{bare}` once wrapper prefixes are removed (one is `{key}`)"),
                ));
            }
            entries.insert(bare, entry);
        }
        Ok(Self { origin, entries, metadata })
    }

    /// Returns the path or name of the source of the tensors, for messages.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// Returns the number of tensors.
    #[allow(clippy::len_without_is_empty, reason = "a state dict is never empty")]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns the number of elements of all tensors.
    pub fn num_elements(&self) -> usize {
        self.entries.values().map(|entry| entry.shape.iter().product::<usize>()).sum()
    }

    /// Returns the names, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Returns true if there is a tensor of this name.
    pub fn contains(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Returns the shape of a tensor in the file's layout.
    pub fn shape(&self, key: &str) -> Option<&[usize]> {
        self.entries.get(key).map(|entry| entry.shape.as_slice())
    }

    /// Returns the element type of a tensor in the file.
    pub fn dtype(&self, key: &str) -> Option<DType> {
        self.entries.get(key).map(|entry| entry.dtype)
    }

    /// Returns the metadata of the file by name; only safetensors files have any.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Reads a tensor.
    ///
    /// # Errors
    /// [`Error::Format`] if there is none of this name, or the file ends inside it.
    pub fn tensor(&self, key: &str) -> Result<TensorData> {
        let entry = self.entries.get(key).ok_or_else(|| {
            Error::format(&self.origin, format!("it has no tensor `{key}`, among {} tensors", self.entries.len()))
        })?;
        (entry.read)().map_err(|reason| Error::format(&self.origin, reason))
    }

    pub(super) fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// Returns the tensors whose names `keep` accepts.
    #[must_use]
    pub fn filtered(&self, keep: impl Fn(&str) -> bool) -> Self {
        let mut kept = self.clone();
        kept.entries.retain(|key, _| keep(key));
        kept
    }

    /// Returns the tensors whose names start with `prefix`, without the prefix, or `None` if there are none.
    pub fn strip_prefix(&self, prefix: &str) -> Option<Self> {
        let entries: BTreeMap<_, _> = self
            .entries
            .iter()
            .filter_map(|(key, entry)| Some((key.strip_prefix(prefix)?.to_owned(), entry.clone())))
            .collect();
        (!entries.is_empty()).then(|| Self { origin: self.origin.clone(), entries, metadata: self.metadata.clone() })
    }
}

#[cfg(feature = "pytorch")]
use pytorch::open as open_pytorch;

/// Refuses every other format than safetensors.
#[cfg(not(feature = "pytorch"))]
fn open_pytorch(path: &Path) -> Result<Vec<(String, Entry)>> {
    let reason = "it is not a safetensors file; to read PyTorch checkpoints, build with the feature `pytorch`";
    Err(Error::format(path, reason))
}

/// Recognizes files that are often downloaded in place of a checkpoint.
fn not_a_checkpoint(head: &[u8]) -> Option<&'static str> {
    let text = head.trim_ascii_start();
    if head.is_empty() {
        Some("it is empty")
    } else if text.starts_with(b"version https://git-lfs") {
        Some("it is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")
    } else if text.starts_with(b"<") {
        Some("it is a web page, not a checkpoint; download the file itself")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dict(keys: &[&str]) -> Result<StateDict> {
        StateDict::generated("test", keys.iter().map(|key| (key.to_string(), vec![1, 2])), |_, shape| {
            vec![1.5; shape.iter().product()]
        })
    }

    #[test]
    fn wrappers_are_stripped_anywhere() {
        let dict = dict(&["module._orig_mod.a.weight", "b._fsdp_wrapped_module.c.bias"]).unwrap();
        assert_eq!(dict.keys().collect::<Vec<_>>(), ["a.weight", "b.c.bias"], "names without wrappers");
        let error = super::tests::dict(&["module.a", "a"]).unwrap_err().to_string();
        assert!(error.contains("two tensors are called `a`"), "{error}");
    }

    #[cfg(not(feature = "pytorch"))]
    #[test]
    fn other_formats_than_safetensors_name_the_feature() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pth");
        std::fs::write(&path, b"PK\x03\x04").unwrap();
        let error = StateDict::open(&path).unwrap_err().to_string();
        assert!(error.contains("x.pth") && error.contains("feature `pytorch`"), "{error}");
    }

    #[cfg(feature = "pytorch")]
    #[test]
    fn what_is_no_checkpoint_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pth");
        let cases: [(&[u8], &str); 5] = [
            (b"", "is empty"),
            (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
            (b"\n<!DOCTYPE html>", "web page"),
            (b"hello there", "not a PyTorch checkpoint"),
            (b"PK\x03\x04 cut off", "zip"),
        ];
        for (bytes, expected) in cases {
            std::fs::write(&path, bytes).unwrap();
            let error = StateDict::open(&path).unwrap_err().to_string();
            assert!(error.contains("x.pth") && error.to_lowercase().contains(&expected.to_lowercase()), "{error}");
        }
        let error = StateDict::open(folder.path().join("none.pth")).unwrap_err().to_string();
        assert!(error.contains("cannot read") && error.contains("none.pth"), "{error}");
    }

    #[test]
    fn a_missing_tensor_and_an_empty_dict_are_errors() {
        let error = dict(&["a"]).unwrap().tensor("b").unwrap_err().to_string();
        assert!(error.contains("no tensor `b`"), "{error}");
        let error = dict(&[]).unwrap_err().to_string();
        assert!(error.contains("holds no tensors"), "{error}");
    }
}
