//! Checkpoints that are complete or absent.
//!
//! A folder `step-00001234` holds one file a part (weights, optimizer, moving average, ...), `state.json`, and a
//! `manifest.json` with the length and CRC-32 of each. It is written under a temporary name, synced, and renamed as the
//! last act, so a kill, a full disk or a crash leaves the previous checkpoint as the newest one.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::store::{ModuleRecord, RecordError};
use burn::tensor::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::fs::{sync_dir, write_synced};
use crate::optim::AdamW;
use crate::{Error, Result};

const MANIFEST: &str = "manifest.json";
const STATE: &str = "state.json";
/// Raised when an older program could not read what a newer one writes.
const FORMAT: u32 = 1;
/// Unfinished or about to be deleted: removed on sight.
const TEMPORARY: &str = ".tmp-";
/// A checkpoint that is being replaced by one of the same step: put back if the new one never came.
const REPLACED: &str = ".old-";
/// A damaged checkpoint, set aside so that it is neither tried again nor counted among those to keep.
const DAMAGED: &str = "damaged-";

/// One named file of a checkpoint; its bytes are made when it is its turn, so that only one part is in memory twice.
pub struct Part<'a> {
    name: String,
    bytes: Box<dyn FnOnce() -> Result<Bytes> + 'a>,
}

impl<'a> Part<'a> {
    /// The parameters and buffers of a module, with their identities.
    pub fn module<M: Module>(name: impl Into<String>, module: &'a M) -> Self {
        let name = name.into();
        let label = name.clone();
        let bytes = move || module.clone().into_record().into_bytes().map_err(record_error(Path::new(&label)));
        Self { name, bytes: Box::new(bytes) }
    }

    /// The moments of an optimizer.
    pub fn optimizer(name: impl Into<String>, optimizer: &'a AdamW) -> Self {
        Self { name: name.into(), bytes: Box::new(move || optimizer.to_bytes()) }
    }

    /// Anything else.
    pub fn bytes(name: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self { name: name.into(), bytes: Box::new(move || Ok(Bytes::from_bytes_vec(bytes))) }
    }
}

/// The folder of a run's checkpoints, held by one process at a time.
#[derive(Debug)]
pub struct CheckpointDir {
    root: PathBuf,
    keep: usize,
    /// The system lets go of it when the process ends, however it ends.
    _lock: File,
}

impl CheckpointDir {
    /// Opens or creates the folder, takes its lock, and clears what a killed save left behind. Keeps the last two.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be created or written, [`Error::Locked`] if another process trains in it.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(Error::io("create", &root))?;
        let path = root.join(".lock");
        let lock = File::create(&path).map_err(Error::io("create", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let folder = root.parent().map_or(root.clone(), Path::to_path_buf);
                return Err(Error::Locked { folder });
            }
            // Some network file systems have no locks; a run there is still safe as long as it is alone.
            Err(TryLockError::Error(e)) => tracing::warn!("cannot lock `{}`: {e}", path.display()),
        }
        let dir = Self { root, keep: 2, _lock: lock };
        dir.recover()?;
        Ok(dir)
    }

    /// Keeps the last `count` checkpoints, at least one; older ones go once a newer one is complete.
    pub fn keep_last(mut self, count: usize) -> Self {
        self.keep = count.max(1);
        self
    }

    /// Saves a checkpoint and returns its folder.
    ///
    /// `state` is whatever else the run needs to go on exactly (counters, position in the data).
    ///
    /// # Errors
    /// [`Error::Io`] if something cannot be written; earlier checkpoints are then intact.
    pub fn save(&self, step: u64, state: &impl Serialize, parts: Vec<Part<'_>>) -> Result<PathBuf> {
        let state = serde_json::to_vec_pretty(state).map_err(|e| Error::format(STATE, e.to_string()))?;
        let parts = parts.into_iter().chain([Part::bytes(STATE, state)]);
        self.save_with(step, parts, &mut write_synced)
    }

    /// [`save`](Self::save) with the writing of files as a parameter, so that tests can let the disk be full.
    fn save_with<'a>(
        &self,
        step: u64,
        parts: impl Iterator<Item = Part<'a>>,
        write: &mut dyn FnMut(&Path, &[u8]) -> io::Result<()>,
    ) -> Result<PathBuf> {
        let name = folder_name(step);
        let temporary = self.root.join(format!("{TEMPORARY}{name}"));
        let path = self.root.join(&name);
        let saved = write_folder(&temporary, step, parts, write).and_then(|()| self.put_in_place(&temporary, &path));
        if let Err(error) = saved {
            if let Err(e) = self.recover() {
                tracing::warn!("after a failed save: {e}");
            }
            return Err(error);
        }
        self.remove_old()?;
        Ok(path)
    }

    fn put_in_place(&self, temporary: &Path, path: &Path) -> Result<()> {
        let replaced = self.root.join(format!("{REPLACED}{}", file_name(path)));
        let rename = || -> io::Result<()> {
            if path.exists() {
                fs::rename(path, &replaced)?;
            }
            fs::rename(temporary, path)?;
            sync_dir(&self.root)?;
            if replaced.exists() { fs::remove_dir_all(&replaced) } else { Ok(()) }
        };
        rename().map_err(Error::io("write", path))
    }

    /// The newest complete checkpoint, `None` if there is none at all.
    ///
    /// A damaged one is reported, set aside as `damaged-...`, and the one before it taken.
    ///
    /// # Errors
    /// [`Error::Format`] if there are only damaged ones, [`Error::Io`] if the folder cannot be read.
    pub fn latest(&self) -> Result<Option<Checkpoint>> {
        let (checkpoint, damaged) = newest(&self.root)?;
        for path in damaged {
            let aside = self.root.join(format!("{DAMAGED}{}", file_name(&path)));
            if aside.exists() {
                fs::remove_dir_all(&aside).map_err(Error::io("remove", &aside))?;
            }
            fs::rename(&path, &aside).map_err(Error::io("set aside", &path))?;
        }
        Ok(checkpoint)
    }

    /// Undoes what an interrupted save left: halves go, a checkpoint that was about to be replaced comes back.
    fn recover(&self) -> Result<()> {
        for name in names(&self.root)? {
            let path = self.root.join(&name);
            if name.starts_with(TEMPORARY) {
                fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
            } else if let Some(original) = name.strip_prefix(REPLACED) {
                let original = self.root.join(original);
                if original.exists() {
                    fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
                } else {
                    fs::rename(&path, &original).map_err(Error::io("put back", &original))?;
                }
            }
        }
        Ok(())
    }

    fn remove_old(&self) -> Result<()> {
        for (_, path) in steps(&self.root)?.into_iter().rev().skip(self.keep) {
            // Renamed first: a kill in the middle of the deletion must not leave a damaged checkpoint under a good name.
            let going = self.root.join(format!("{TEMPORARY}{}", file_name(&path)));
            fs::rename(&path, &going).and_then(|()| fs::remove_dir_all(&going)).map_err(Error::io("remove", &path))?;
        }
        Ok(())
    }
}

/// A complete checkpoint: every file was there, of the right length and checksum, when it was opened.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    manifest: Manifest,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    step: u64,
    parts: BTreeMap<String, Summary>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Summary {
    bytes: u64,
    crc32: u32,
}

impl Checkpoint {
    /// Opens one checkpoint folder and checks all of it.
    ///
    /// # Errors
    /// [`Error::Format`] naming the file that is missing, truncated or altered.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let file = path.join(MANIFEST);
        let text = match fs::read(&file) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Error::format(file, "missing")),
            Err(e) => return Err(Error::io("read", file)(e)),
        };
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|e| Error::format(&file, format!("damaged: {e}")))?;
        if manifest.format != FORMAT {
            let reason = format!("has format {}, this program reads format {FORMAT}", manifest.format);
            return Err(Error::format(file, reason));
        }
        for (name, expected) in &manifest.parts {
            check_part_name(name)?;
            check_part(&path.join(name), *expected)?;
        }
        Ok(Self { path, manifest })
    }

    /// The newest complete checkpoint below `root`, without the lock and without changing anything: for readers.
    ///
    /// # Errors
    /// The errors of [`CheckpointDir::latest`].
    pub fn newest(root: impl AsRef<Path>) -> Result<Option<Self>> {
        Ok(newest(root.as_ref())?.0)
    }

    /// Returns the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the number of steps that were done when it was saved.
    pub fn step(&self) -> u64 {
        self.manifest.step
    }

    /// The names of its parts, `state.json` among them.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.manifest.parts.keys().map(String::as_str)
    }

    /// The state given to [`CheckpointDir::save`].
    ///
    /// # Errors
    /// [`Error::Format`] if it is of another shape than `S`.
    pub fn state<S: DeserializeOwned>(&self) -> Result<S> {
        serde_json::from_slice(&self.bytes(STATE)?).map_err(|e| Error::format(self.path.join(STATE), e.to_string()))
    }

    /// The bytes of a part.
    ///
    /// # Errors
    /// [`Error::Format`] if there is no such part, [`Error::Io`] if it cannot be read.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        if !self.manifest.parts.contains_key(name) {
            let parts = self.parts().collect::<Vec<_>>().join("`, `");
            return Err(Error::format(&self.path, format!("has no part `{name}`; its parts are `{parts}`")));
        }
        let path = self.path.join(name);
        fs::read(&path).map_err(Error::io("read", &path))
    }

    /// Loads a module, with the identities of its parameters: do this before [`optimizer`](Self::optimizer), whose
    /// moments are found by them.
    ///
    /// # Errors
    /// [`Error::Format`] if the part holds other parameters than `module` has.
    pub fn module<M: Module>(&self, name: &str, module: M) -> Result<M> {
        let path = self.path.join(name);
        ModuleRecord::from_bytes(Bytes::from_bytes_vec(self.bytes(name)?))
            .and_then(|record| module.try_load_record(record))
            .map_err(record_error(&path))
    }

    /// Loads an optimizer's moments into one that was made for the loaded module.
    ///
    /// # Errors
    /// [`Error::Format`] if the part is no optimizer record.
    pub fn optimizer(&self, name: &str, optimizer: AdamW) -> Result<AdamW> {
        optimizer.load(Bytes::from_bytes_vec(self.bytes(name)?)).map_err(record_error(&self.path.join(name)))
    }
}

pub(crate) fn record_error(path: &Path) -> impl FnOnce(RecordError) -> Error {
    let path = path.to_path_buf();
    move |e| Error::format(path, format!("{e}; was it made with another model configuration?"))
}

fn write_folder<'a>(
    folder: &Path,
    step: u64,
    parts: impl Iterator<Item = Part<'a>>,
    write: &mut dyn FnMut(&Path, &[u8]) -> io::Result<()>,
) -> Result<()> {
    fs::create_dir(folder).map_err(Error::io("create", folder))?;
    let mut manifest = Manifest { format: FORMAT, step, parts: BTreeMap::new() };
    for part in parts {
        check_part_name(&part.name)?;
        let bytes = (part.bytes)()?;
        let path = folder.join(&part.name);
        write(&path, &bytes).map_err(Error::io("write", &path))?;
        let mut crc = flate2::Crc::new();
        crc.update(&bytes);
        let summary = Summary { bytes: bytes.len() as u64, crc32: crc.sum() };
        if manifest.parts.insert(part.name.clone(), summary).is_some() {
            return Err(Error::config("checkpoint part", part.name, "a name that no other part has"));
        }
    }
    let path = folder.join(MANIFEST);
    let text = serde_json::to_vec_pretty(&manifest).map_err(|e| Error::format(&path, e.to_string()))?;
    write(&path, &text).map_err(Error::io("write", &path))?;
    sync_dir(folder).map_err(Error::io("write", folder))
}

fn check_part(path: &Path, expected: Summary) -> Result<()> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Error::format(path, "missing")),
        Err(e) => return Err(Error::io("read", path)(e)),
    };
    let (mut crc, mut length, mut buffer) = (flate2::Crc::new(), 0, vec![0; 1 << 20]);
    loop {
        let count = file.read(&mut buffer).map_err(Error::io("read", path))?;
        if count == 0 {
            break;
        }
        crc.update(&buffer[..count]);
        length += count as u64;
    }
    if length != expected.bytes {
        return Err(Error::format(path, format!("damaged: {length} bytes, expected {}", expected.bytes)));
    }
    if crc.sum() != expected.crc32 {
        return Err(Error::format(path, "damaged: its checksum differs from the one in the manifest"));
    }
    Ok(())
}

/// A manifest from elsewhere must not make us read outside of its folder.
fn check_part_name(name: &str) -> Result<()> {
    let plain = Path::new(name).file_name().is_some_and(|f| f == name) && name != MANIFEST;
    if plain { Ok(()) } else { Err(Error::config("checkpoint part", name, "a plain file name")) }
}

/// The newest complete checkpoint, and the damaged ones that are newer.
fn newest(root: &Path) -> Result<(Option<Checkpoint>, Vec<PathBuf>)> {
    let (mut damaged, mut first_reason) = (Vec::new(), None);
    for (step, path) in steps(root)?.into_iter().rev() {
        let reason = match Checkpoint::open(&path) {
            Ok(checkpoint) if checkpoint.step() == step => return Ok((Some(checkpoint), damaged)),
            Ok(checkpoint) => Error::format(&path, format!("damaged: its manifest says step {}", checkpoint.step())),
            Err(error @ Error::Io { .. }) => return Err(error),
            Err(error) => error,
        };
        tracing::warn!("{reason}; trying the checkpoint before it");
        damaged.push(path);
        first_reason.get_or_insert(reason);
    }
    match first_reason {
        None => Ok((None, damaged)),
        Some(reason) => {
            let what_to_do = "remove the folder to start anew";
            Err(Error::format(root, format!("holds no complete checkpoint any more ({reason}); {what_to_do}")))
        }
    }
}

fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn names(root: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(root).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    let entries = entries.map_err(Error::io("read", root))?;
    Ok(entries.iter().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// The checkpoint folders, oldest first.
fn steps(root: &Path) -> Result<BTreeMap<u64, PathBuf>> {
    let step_of = |name: &str| name.strip_prefix("step-")?.parse().ok().filter(|&step| folder_name(step) == name);
    Ok(names(root)?.into_iter().filter_map(|name| Some((step_of(&name)?, root.join(&name)))).collect())
}

#[cfg(test)]
mod tests;
