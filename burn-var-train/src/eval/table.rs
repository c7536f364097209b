//! The features of a set of pictures, on disk while they are made, so that a killed evaluation goes on where it was.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use burn_var::MapSize;
use serde::{Deserialize, Serialize};

use super::{FeatureSource, Features, PictureSet};
use crate::fs::atomic_write;
use crate::{Error, Result};

/// Pictures looked at between two saves.
const SAVE_EVERY: usize = 256;

/// The features of all pictures of a set.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureTable {
    /// Number of pictures.
    pub count: usize,
    /// Numbers a picture in each part.
    pub dims: [usize; 3],
    /// What was seen.
    pub features: Features,
}

/// What is in a folder of features so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// Whose features these are: pictures and network. Others in the same folder are refused.
    of: String,
    dims: [usize; 3],
    /// Pictures in all.
    count: usize,
    done: usize,
}

const STATE: &str = "features.json";
const PARTS: [&str; 3] = ["features.f32", "spatial.f32", "logits.f32"];

/// What a network sees in some pictures, and how many they are.
fn look(network: &dyn FeatureSource, pixels: &[u8], size: MapSize) -> Result<(Features, usize)> {
    let seen = network.extract(pixels, size)?;
    let count = pixels.len() / (3 * size.area()).max(1);
    let expected = network.dims().map(|dim| dim * count);
    let found = [&seen.features, &seen.spatial, &seen.logits].map(Vec::len);
    match found == expected {
        true => Ok((seen, count)),
        false => Err(burn_var::Error::shape("features", format!("{expected:?} numbers"), found).into()),
    }
}

impl FeatureTable {
    /// No pictures yet; see [`FeatureSource::dims`].
    pub fn new(dims: [usize; 3]) -> Self {
        Self { count: 0, dims, features: Features::default() }
    }

    /// Adds what `network` sees in pictures of one size, rows of red, green and blue.
    ///
    /// # Errors
    /// What the network fails with.
    pub fn add(&mut self, network: &dyn FeatureSource, pixels: &[u8], size: MapSize) -> Result<()> {
        let (seen, more) = look(network, pixels, size)?;
        self.features.extend(seen);
        self.count += more;
        Ok(())
    }

    /// Looks at all pictures of `set` through `network`, `batch` at a time. With a `folder`, which must exist, features
    /// are kept there, and those that are there already, of the same pictures and the same network, are not made again.
    /// `progress` hears how many pictures are done.
    ///
    /// # Errors
    /// If a picture cannot be had, the network refuses it, or the folder cannot be written, or holds the features of
    /// something else.
    pub fn collect(
        set: &mut dyn PictureSet,
        network: &dyn FeatureSource,
        folder: Option<&Path>,
        batch: usize,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let dims = network.dims();
        let (count, size) = (set.count(), set.size());
        let of = format!("{count} pictures of {size} pixels: {}; {}", set.identity()?, network.describe());
        let mut spool = folder.map(|folder| Spool::open(folder, State { of, dims, count, done: 0 })).transpose()?;
        let mut table = match &spool {
            Some(spool) => spool.read()?,
            None => Self::new(dims),
        };
        progress(table.count);
        set.read(table.count, batch, &mut |pixels| {
            let (seen, more) = look(network, pixels, size)?;
            if let Some(spool) = &mut spool {
                spool.push(&seen, more)?;
            }
            table.features.extend(seen);
            table.count += more;
            progress(table.count);
            Ok(())
        })?;
        if let Some(spool) = &mut spool {
            spool.save()?;
        }
        if table.count != count {
            return Err(Error::config(
                "number of pictures",
                table.count,
                format!("{count}, as {} promised", set.describe()),
            ));
        }
        Ok(table)
    }

    /// Reads what [`FeatureTable::collect`] has kept in a folder, if it came to the end.
    ///
    /// # Errors
    /// If there are no features, or not all.
    pub fn open(folder: &Path) -> Result<Self> {
        let state = read_state(folder)?.ok_or_else(|| Error::format(folder, "it holds no features of pictures"))?;
        if state.done != state.count {
            let reason = format!("only {} of {} pictures are done; evaluate them first", state.done, state.count);
            return Err(Error::format(folder.join(STATE), reason));
        }
        Spool::open(folder, state)?.read()
    }

    /// The features of some pictures, in this order.
    ///
    /// # Panics
    /// If a number is not below `count`.
    #[must_use]
    pub fn chosen(&self, numbers: &[usize]) -> Self {
        let pick = |rows: &[f32], dim: usize| -> Vec<f32> {
            numbers.iter().flat_map(|i| &rows[i * dim..][..dim]).copied().collect()
        };
        let [features, spatial, logits] = self.dims;
        let features = Features {
            features: pick(&self.features.features, features),
            spatial: pick(&self.features.spatial, spatial),
            logits: pick(&self.features.logits, logits),
        };
        Self { count: numbers.len(), dims: self.dims, features }
    }

    /// The features of picture `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.features.features[i * self.dims[0]..][..self.dims[0]]
    }

    /// The class scores of picture `i`.
    pub fn logits(&self, i: usize) -> &[f32] {
        &self.features.logits[i * self.dims[2]..][..self.dims[2]]
    }
}

impl Features {
    fn extend(&mut self, more: Self) {
        self.features.extend(more.features);
        self.spatial.extend(more.spatial);
        self.logits.extend(more.logits);
    }
}

/// What a folder says of its features, if it has any.
fn read_state(folder: &Path) -> Result<Option<State>> {
    let path = folder.join(STATE);
    match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| Error::format(&path, format!("{error}; remove the folder to begin again"))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", &path)(error)),
    }
}

/// The folder while features are added.
struct Spool {
    folder: PathBuf,
    files: [File; 3],
    state: State,
    /// Pictures written since the last save.
    unsaved: usize,
}

impl Spool {
    /// Opens a folder, empty or with features of the same thing; what was written after its last save is cut off.
    fn open(folder: &Path, fresh: State) -> Result<Self> {
        let state = match read_state(folder)? {
            None => fresh,
            Some(state) if (&state.of, state.dims) == (&fresh.of, fresh.dims) => state,
            Some(state) => {
                let reason = format!("it is about [{}], asked for is [{}]; name another folder", state.of, fresh.of);
                return Err(Error::format(folder.join(STATE), reason));
            }
        };
        let mut files = Vec::new();
        for (name, dim) in PARTS.iter().zip(state.dims) {
            let path = folder.join(name);
            let file = OpenOptions::new().create(true).truncate(false).read(true).append(true).open(&path);
            let file = file.map_err(Error::io("write", &path))?;
            let expected = (state.done * dim * 4) as u64;
            let found = file.metadata().map_err(Error::io("read", &path))?.len();
            if found < expected {
                let reason = format!("{found} bytes, expected {expected} at least; remove the folder to begin again");
                return Err(Error::format(path, reason));
            }
            file.set_len(expected).map_err(Error::io("write", &path))?;
            files.push(file);
        }
        let files = files.try_into().unwrap_or_else(|_| unreachable!("a file for each part"));
        let mut spool = Self { folder: folder.into(), files, state, unsaved: 0 };
        spool.save()?;
        Ok(spool)
    }

    fn read(&self) -> Result<FeatureTable> {
        let part = |i: usize| -> Result<Vec<f32>> {
            let path = self.folder.join(PARTS[i]);
            let mut bytes = Vec::new();
            File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(Error::io("read", &path))?;
            Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
        };
        let features = Features { features: part(0)?, spatial: part(1)?, logits: part(2)? };
        Ok(FeatureTable { count: self.state.done, dims: self.state.dims, features })
    }

    fn push(&mut self, seen: &Features, pictures: usize) -> Result<()> {
        for ((file, name), part) in self.files.iter_mut().zip(PARTS).zip([&seen.features, &seen.spatial, &seen.logits])
        {
            let bytes: Vec<u8> = part.iter().flat_map(|value| value.to_le_bytes()).collect();
            file.write_all(&bytes).map_err(Error::io("write", self.folder.join(name)))?;
        }
        self.state.done += pictures;
        self.unsaved += pictures;
        if self.unsaved >= SAVE_EVERY { self.save() } else { Ok(()) }
    }

    /// The numbers first, then how many there are: a kill in between costs what is not counted yet.
    fn save(&mut self) -> Result<()> {
        for (file, name) in self.files.iter().zip(PARTS) {
            file.sync_data().map_err(Error::io("write", self.folder.join(name)))?;
        }
        let text = serde_json::to_string_pretty(&self.state)
            .map_err(|error| Error::format(self.folder.join(STATE), error.to_string()))?;
        self.unsaved = 0;
        atomic_write(self.folder.join(STATE), text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: MapSize = MapSize { height: 1, width: 2 };

    /// Pictures that count up, and fail at one of them.
    struct Counting {
        count: usize,
        fails_at: usize,
    }

    impl PictureSet for Counting {
        fn describe(&self) -> String {
            "counting".to_owned()
        }

        fn count(&self) -> usize {
            self.count
        }

        fn size(&self) -> MapSize {
            SIZE
        }

        fn labels(&self) -> Option<&[usize]> {
            None
        }

        fn read(&mut self, first: usize, batch: usize, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
            for start in (first..self.count).step_by(batch) {
                let end = (start + batch).min(self.count);
                if (start..end).contains(&self.fails_at) {
                    return Err(Error::config("picture", self.fails_at, "no failure"));
                }
                let pixels: Vec<u8> = (start..end).flat_map(|i| [(i % 251) as u8; 6]).collect();
                take(&pixels)?;
            }
            Ok(())
        }
    }

    /// Sums.
    struct Sums(&'static str);

    impl FeatureSource for Sums {
        fn describe(&self) -> String {
            self.0.to_owned()
        }

        fn dims(&self) -> [usize; 3] {
            [2, 0, 1]
        }

        fn extract(&self, pixels: &[u8], _: MapSize) -> Result<Features> {
            let first = |picture: &[u8]| f32::from(picture[0]);
            let features = pixels.chunks(6).flat_map(|picture| [first(picture), 1.0]).collect();
            let logits = pixels.chunks(6).map(|picture| 2.0 * first(picture)).collect();
            Ok(Features { features, spatial: Vec::new(), logits })
        }
    }

    fn collect(
        fails_at: usize,
        name: &'static str,
        folder: Option<&Path>,
        batch: usize,
    ) -> Result<(FeatureTable, usize)> {
        let mut first = None;
        let mut set = Counting { count: 700, fails_at };
        let mut progress = |done: usize| {
            first.get_or_insert(done);
        };
        let table = FeatureTable::collect(&mut set, &Sums(name), folder, batch, &mut progress)?;
        Ok((table, first.unwrap_or_default()))
    }

    #[test]
    fn a_broken_evaluation_goes_on_and_ends_the_same() {
        let (whole, _) = collect(usize::MAX, "sums", None, 33).unwrap();
        assert_eq!((whole.count, whole.row(690), whole.logits(690)), (700, &[188.0, 1.0][..], &[376.0][..]));
        let folder = tempfile::tempdir().unwrap();
        assert!(collect(600, "sums", Some(folder.path()), 100).is_err(), "stopped");
        // Half a row of a batch that was cut off by a kill.
        let path = folder.path().join(PARTS[0]);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(&[1, 2, 3, 4, 5]).unwrap();
        assert!(FeatureTable::open(folder.path()).is_err(), "not all are there");
        let (resumed, first) = collect(usize::MAX, "sums", Some(folder.path()), 7).unwrap();
        assert!(first >= SAVE_EVERY, "what was saved is not made again: {first}");
        assert_eq!(resumed, whole, "the same features");
        assert_eq!(FeatureTable::open(folder.path()).unwrap(), whole, "read back");
        let (again, first) = collect(0, "sums", Some(folder.path()), 9).unwrap();
        assert_eq!((again, first), (whole, 700), "nothing is left to do");
    }

    #[test]
    fn the_features_of_something_else_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        collect(usize::MAX, "sums", Some(folder.path()), 50).unwrap();
        let error = collect(usize::MAX, "other sums", Some(folder.path()), 50).unwrap_err().to_string();
        assert!(error.contains("other sums") && error.contains("another folder"), "{error}");
        std::fs::write(folder.path().join(PARTS[2]), [0; 8]).unwrap();
        let error = collect(usize::MAX, "sums", Some(folder.path()), 50).unwrap_err().to_string();
        assert!(error.contains(PARTS[2]) && error.contains("begin again"), "{error}");
        std::fs::write(folder.path().join(STATE), "{").unwrap();
        assert!(collect(usize::MAX, "sums", Some(folder.path()), 50).is_err(), "a broken state");
    }
}
