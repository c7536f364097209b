//! The features of a set of images, saved while they are computed, so that an interrupted evaluation resumes.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use burn_var::MapSize;
use serde::{Deserialize, Serialize};

use super::identity::mismatch;
use super::{FeatureExtractor, Features, ImageSet, NetworkIdentity, Shard};
use crate::fs::atomic_write;
use crate::{Error, Result};

/// Images between two saves.
const SAVE_EVERY: usize = 256;

/// The features of all images of a set.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureTable {
    /// The network that computed the features.
    pub network: NetworkIdentity,
    /// Number of images.
    pub count: usize,
    /// Numbers per image in each part of `features`.
    pub dims: [usize; 3],
    /// The features, image by image.
    pub features: Features,
}

/// The state of a folder of features.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// The images. The features of other images are not added to a folder.
    of: String,
    /// The network. Older versions did not record it.
    #[serde(default)]
    network: Option<NetworkIdentity>,
    dims: [usize; 3],
    /// Images in the set.
    count: usize,
    /// Images whose features are saved.
    done: usize,
}

const STATE: &str = "features.json";
const PARTS: [&str; 3] = ["features.f32", "spatial.f32", "logits.f32"];

/// Computes the features of some images, and returns them with the number of images.
fn extract(network: &dyn FeatureExtractor, pixels: &[u8], size: MapSize) -> Result<(Features, usize)> {
    let features = network.extract(pixels, size)?;
    let count = pixels.len() / (3 * size.area()).max(1);
    let expected = network.dims().map(|dim| dim * count);
    let found = [&features.features, &features.spatial, &features.logits].map(Vec::len);
    match found == expected {
        true => Ok((features, count)),
        false => Err(burn_var::Error::shape("features", format!("{expected:?} numbers"), found).into()),
    }
}

impl FeatureTable {
    /// Creates a table without images, for the features of `network`.
    pub fn new(network: &dyn FeatureExtractor) -> Self {
        let (dims, features) = (network.dims(), Features::default());
        Self { network: network.identity().clone(), count: 0, dims, features }
    }

    /// Adds the features of images of one size. `pixels` holds red, green and blue bytes, row by row, image by image.
    ///
    /// # Errors
    /// [`Error::Network`] if the table holds the features of another network, and the errors of
    /// [`FeatureExtractor::extract`].
    pub fn add(&mut self, network: &dyn FeatureExtractor, pixels: &[u8], size: MapSize) -> Result<()> {
        NetworkIdentity::check_same(("the table", &self.network), ("the added features", network.identity()))?;
        let (features, count) = extract(network, pixels, size)?;
        self.features.extend(features);
        self.count += count;
        Ok(())
    }

    /// Computes the features of all images of `set`, `batch` at a time. With a `folder`, which must exist, features are
    /// saved there, and those saved already, of the same images through the same network, are not computed again.
    /// `progress` is called with the number of finished images.
    ///
    /// # Errors
    /// If an image cannot be read, the network refuses it, or the folder cannot be written or holds the features of other
    /// images; [`Error::Network`] if it holds the features of another network.
    pub fn collect(
        set: &mut dyn ImageSet,
        network: &dyn FeatureExtractor,
        folder: Option<&Path>,
        batch: usize,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let mut tables = Self::collect_all(set, &[(network, folder)], batch, progress)?;
        tables.pop().ok_or_else(|| burn_var::Error::shape("networks", "at least one", [0]).into())
    }

    /// Computes the features of all images of `set` through several networks, each with a folder of its own or none, as
    /// [`FeatureTable::collect`] does for one. The images are read once, and every network sees the same batches; networks
    /// that are further than the others wait for them. Where a folder holds shards of
    /// [`FeatureTable::collect_shard`], the features are theirs, and none is computed.
    ///
    /// # Errors
    /// The errors of [`FeatureTable::collect`], and [`Error::Shards`] if a folder holds some shards and not all, or one that
    /// is not finished.
    pub fn collect_all(
        set: &mut dyn ImageSet,
        networks: &[(&dyn FeatureExtractor, Option<&Path>)],
        batch: usize,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Self>> {
        let count = set.count();
        let of = match networks.iter().any(|(_, folder)| folder.is_some()) {
            true => about(set)?,
            false => String::new(),
        };
        let mut readers = networks
            .iter()
            .map(|(network, folder)| Reader::open(*network, *folder, &of, count))
            .collect::<Result<Vec<_>>>()?;
        fill(set, &mut readers, 0..count, batch, progress)?;
        readers.into_iter().map(|reader| reader.finish(&*set)).collect()
    }

    /// Computes the features of one shard of `set` through several networks, and saves them in a sub-folder of each
    /// network's folder, which must exist. [`FeatureTable::collect_all`] puts the shards together. The images are computed
    /// in the batches of the whole set, so that all features are those of one run. The same call resumes an interrupted
    /// one. `progress` is called with the number of finished images of the shard.
    ///
    /// # Errors
    /// The errors of [`FeatureTable::collect`] and of [`Shard::range`].
    pub fn collect_shard(
        set: &mut dyn ImageSet,
        networks: &[(&dyn FeatureExtractor, &Path)],
        shard: Shard,
        batch: usize,
        progress: &mut dyn FnMut(usize),
    ) -> Result<()> {
        let (count, of) = (set.count(), about(set)?);
        let range = shard.range(count)?;
        let mut readers = Vec::new();
        for (network, folder) in networks {
            // Nothing is left to do where the features of all images are there.
            if !State::fresh(*network, &of, count).is_done_in(folder)? {
                readers.push(Reader::open_shard(*network, folder, &of, shard, range.clone())?);
            }
        }
        fill(set, &mut readers, range, batch, progress)?;
        readers.into_iter().try_for_each(|reader| reader.finish(&*set).map(|_| ()))
    }

    /// Reads the features that [`FeatureTable::collect`] has saved in a folder.
    ///
    /// # Errors
    /// [`Error::Format`] if the folder holds no features, not those of all images, or features without the identity of
    /// their network.
    pub fn open(folder: &Path) -> Result<Self> {
        let missing = || Error::format(folder, "it holds no features; `burn-var eval generated --out` writes them");
        let state = read_state(folder)?.ok_or_else(missing)?;
        if state.done != state.count {
            let reason =
                format!("only {} of {} images are done; repeat the evaluation to resume it", state.done, state.count);
            return Err(Error::format(folder.join(STATE), reason));
        }
        let network = state.network.clone().ok_or_else(|| without_identity(folder))?;
        Spool::open(folder, state)?.read(network)
    }

    /// Returns the features of the images with these numbers, in this order.
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
        Self { network: self.network.clone(), count: numbers.len(), dims: self.dims, features }
    }

    /// Returns the features of image `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.features.features[i * self.dims[0]..][..self.dims[0]]
    }

    /// Returns the logits of image `i`.
    pub fn logits(&self, i: usize) -> &[f32] {
        &self.features.logits[i * self.dims[2]..][..self.dims[2]]
    }
}

/// Features of older versions cannot be told from those of other networks, so they are not used.
fn without_identity(folder: &Path) -> Error {
    let reason = "an older version wrote these features, without the network that computed them; remove the folder and                   repeat the evaluation to compute them again, or evaluate into another folder";
    Error::format(folder.join(STATE), reason)
}

impl Features {
    fn extend(&mut self, more: Self) {
        self.features.extend(more.features);
        self.spatial.extend(more.spatial);
        self.logits.extend(more.logits);
    }

    /// Returns those of the images with these numbers; `dims` are the numbers per image in each part.
    fn rows(self, numbers: Range<usize>, dims: [usize; 3]) -> Self {
        let cut = |mut values: Vec<f32>, dim: usize| {
            values.truncate(numbers.end * dim);
            values.drain(..numbers.start * dim);
            values
        };
        let Self { features, spatial, logits } = self;
        Self { features: cut(features, dims[0]), spatial: cut(spatial, dims[1]), logits: cut(logits, dims[2]) }
    }
}

/// Reads the state of a folder of features; `None` if there is none.
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

/// Describes a set of images in the state of a folder.
fn about(set: &dyn ImageSet) -> Result<String> {
    Ok(format!("{} images of {} pixels: {}", set.count(), set.size(), set.identity()?))
}

/// Describes the images of a shard of a set.
fn about_shard(shard: Shard, of: &str) -> String {
    format!("shard {shard} of {of}")
}

/// Computes what the readers of the images `range` of a set still lack.
fn fill(
    set: &mut dyn ImageSet,
    readers: &mut [Reader<'_>],
    range: Range<usize>,
    batch: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<()> {
    let done = readers.iter().map(Reader::next).min().unwrap_or(range.end);
    progress(done - range.start);
    if done == range.end {
        return Ok(());
    }
    // Batches begin and end as in a run over all images, so that kernels see the same sizes and round alike.
    let mut first = done - done % batch;
    let end = range.end.next_multiple_of(batch).min(set.count());
    let size = set.size();
    set.read(first..end, batch, &mut |pixels| {
        readers.iter_mut().try_for_each(|reader| reader.add(pixels, size, first))?;
        first += pixels.len() / (3 * size.area()).max(1);
        progress(first.min(range.end) - range.start);
        Ok(())
    })
}

/// One of several networks that read a set.
struct Reader<'a> {
    network: &'a dyn FeatureExtractor,
    /// The images whose features are wanted.
    range: Range<usize>,
    /// The features of the first of them.
    table: FeatureTable,
    spool: Option<Spool>,
}

impl<'a> Reader<'a> {
    /// Starts with the features that are saved in `folder`, by a run or by all of its shards; `of` describes the images.
    fn open(network: &'a dyn FeatureExtractor, folder: Option<&Path>, of: &str, count: usize) -> Result<Self> {
        let Some(folder) = folder else {
            return Ok(Self { network, range: 0..count, table: FeatureTable::new(network), spool: None });
        };
        let fresh = State::fresh(network, of, count);
        // Looked at before anything is written: a folder with shards of another run keeps no trace of this one.
        let shards = match fresh.is_done_in(folder)? {
            true => Vec::new(),
            false => finished_shards(network, folder, of, count)?,
        };
        let mut spool = Spool::open(folder, fresh)?;
        let mut table = spool.read(network.identity().clone())?;
        for (shard, range) in shards {
            let missing = table.count.clamp(range.start, range.end)..range.end;
            let part = FeatureTable::open(&folder.join(shard.name()))?;
            let rows = part.features.rows(missing.start - range.start..range.len(), part.dims);
            spool.push(&rows, missing.len())?;
            table.features.extend(rows);
            table.count += missing.len();
        }
        Ok(Self { network, range: 0..count, table, spool: Some(spool) })
    }

    /// Starts with the features of a shard that are saved in its sub-folder of `folder`.
    fn open_shard(
        network: &'a dyn FeatureExtractor,
        folder: &Path,
        of: &str,
        shard: Shard,
        range: Range<usize>,
    ) -> Result<Self> {
        let folder = folder.join(shard.name());
        std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let spool = Spool::open(&folder, State::fresh(network, &about_shard(shard, of), range.len()))?;
        let table = spool.read(network.identity().clone())?;
        Ok(Self { network, range, table, spool: Some(spool) })
    }

    /// Returns the number of the first image whose features are missing.
    fn next(&self) -> usize {
        self.range.start + self.table.count
    }

    /// Adds the features of images, the first of which has the number `first`. Those that are there already, or are not
    /// wanted, are computed with the others of the batch and dropped.
    fn add(&mut self, pixels: &[u8], size: MapSize, first: usize) -> Result<()> {
        let count = pixels.len() / (3 * size.area()).max(1);
        let wanted = self.next()..self.range.end.min(first + count);
        if wanted.is_empty() {
            return Ok(());
        }
        let (features, _) = extract(self.network, pixels, size)?;
        let features = features.rows(wanted.start - first..wanted.end - first, self.table.dims);
        if let Some(spool) = &mut self.spool {
            spool.push(&features, wanted.len())?;
        }
        self.table.features.extend(features);
        self.table.count += wanted.len();
        Ok(())
    }

    /// Saves the last features, and checks that there are all of them.
    fn finish(mut self, set: &dyn ImageSet) -> Result<FeatureTable> {
        if let Some(spool) = &mut self.spool {
            spool.save()?;
        }
        let expected = self.range.len();
        match self.table.count == expected {
            true => Ok(self.table),
            false => {
                let found = [self.table.count];
                Err(burn_var::Error::shape(set.describe(), format!("{expected} images"), found).into())
            }
        }
    }
}

/// Returns the shards of a folder of features with their images, in order, or nothing if there are none.
fn finished_shards(
    network: &dyn FeatureExtractor,
    folder: &Path,
    of: &str,
    count: usize,
) -> Result<Vec<(Shard, Range<usize>)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let entry = entry.map_err(Error::io("read", folder))?;
        if let Some(shard) = entry.file_name().to_str().and_then(Shard::from_name) {
            found.push((shard, format!("`{}`", entry.path().display())));
        }
    }
    if found.is_empty() {
        return Ok(Vec::new());
    }
    found.sort_unstable_by_key(|(shard, _)| (shard.count(), shard.number()));
    Shard::check_all(&found)?;
    let finished = |(shard, name): (Shard, String)| {
        let (range, folder) = (shard.range(count)?, folder.join(shard.name()));
        let state = State::fresh(network, &about_shard(shard, of), range.len());
        match state.is_done_in(&folder)? {
            true => Ok((shard, range)),
            false => Err(Error::Shards {
                reason: format!("{name} is not finished: run the same command with `--shard {shard}` to resume it"),
            }),
        }
    };
    found.into_iter().map(finished).collect()
}

impl State {
    /// Returns the state of a folder without features.
    fn fresh(network: &dyn FeatureExtractor, of: &str, count: usize) -> Self {
        Self { of: of.to_owned(), network: Some(network.identity().clone()), dims: network.dims(), count, done: 0 }
    }

    /// Checks that the features that are saved in `folder` are those of the images and network of this state.
    fn check(&self, saved: &Self, folder: &Path) -> Result<()> {
        match (&saved.network, &self.network) {
            (Some(saved), Some(network)) if saved == network => {}
            (Some(saved), Some(network)) => {
                let name = format!("those in `{}`", folder.display());
                return Err(mismatch((&name, saved), ("the new ones", Some(network)), "name another folder"));
            }
            _ => return Err(without_identity(folder)),
        }
        if (&saved.of, saved.dims) != (&self.of, self.dims) {
            let reason = format!("it is about [{}], asked for is [{}]; name another folder", saved.of, self.of);
            return Err(Error::format(folder.join(STATE), reason));
        }
        Ok(())
    }

    /// Returns `true` if `folder` holds the features of all images.
    fn is_done_in(&self, folder: &Path) -> Result<bool> {
        let Some(saved) = read_state(folder)? else { return Ok(false) };
        self.check(&saved, folder)?;
        Ok(saved.done == saved.count)
    }
}

/// An open folder of features.
struct Spool {
    folder: PathBuf,
    files: [File; 3],
    state: State,
    /// Images written since the last save.
    unsaved: usize,
}

impl Spool {
    /// Opens a folder that is empty or holds features of the same images and network as `fresh`, and cuts off what was
    /// written after its last save.
    fn open(folder: &Path, fresh: State) -> Result<Self> {
        let state = read_state(folder)?.unwrap_or_else(|| fresh.clone());
        fresh.check(&state, folder)?;
        let mut files = Vec::new();
        for (name, dim) in PARTS.iter().zip(state.dims) {
            let path = folder.join(name);
            let file = OpenOptions::new().create(true).truncate(false).read(true).append(true).open(&path);
            let file = file.map_err(Error::io("write", &path))?;
            let expected = (state.done * dim * 4) as u64;
            let found = file.metadata().map_err(Error::io("read", &path))?.len();
            if found < expected {
                let reason = format!("{found} bytes, expected at least {expected}; remove the folder to begin again");
                return Err(Error::format(path, reason));
            }
            file.set_len(expected).map_err(Error::io("write", &path))?;
            files.push(file);
        }
        let files = files.try_into().unwrap_or_else(|_| unreachable!("one file per part"));
        let mut spool = Self { folder: folder.into(), files, state, unsaved: 0 };
        spool.save()?;
        Ok(spool)
    }

    /// Reads the saved features.
    fn read(&self, network: NetworkIdentity) -> Result<FeatureTable> {
        let part = |i: usize| -> Result<Vec<f32>> {
            let path = self.folder.join(PARTS[i]);
            let mut bytes = Vec::new();
            File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(Error::io("read", &path))?;
            Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
        };
        let features = Features { features: part(0)?, spatial: part(1)?, logits: part(2)? };
        Ok(FeatureTable { network, count: self.state.done, dims: self.state.dims, features })
    }

    fn push(&mut self, features: &Features, images: usize) -> Result<()> {
        let parts = [&features.features, &features.spatial, &features.logits];
        for ((file, name), part) in self.files.iter_mut().zip(PARTS).zip(parts) {
            let bytes: Vec<u8> = part.iter().flat_map(|value| value.to_le_bytes()).collect();
            file.write_all(&bytes).map_err(Error::io("write", self.folder.join(name)))?;
        }
        self.state.done += images;
        self.unsaved += images;
        if self.unsaved >= SAVE_EVERY { self.save() } else { Ok(()) }
    }

    /// Writes the numbers first, then their count: an interruption in between costs only what is not counted yet.
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
    use std::fs;

    use super::*;

    const SIZE: MapSize = MapSize { height: 1, width: 2 };

    /// Images of increasing brightness; reading one of them fails.
    struct Counting {
        count: usize,
        fails_at: usize,
    }

    impl ImageSet for Counting {
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

        fn read(
            &mut self,
            numbers: Range<usize>,
            batch: usize,
            take: &mut dyn FnMut(&[u8]) -> Result<()>,
        ) -> Result<()> {
            for start in numbers.clone().step_by(batch) {
                let end = (start + batch).min(numbers.end);
                if (start..end).contains(&self.fails_at) {
                    return Err(Error::format("image", "it cannot be read"));
                }
                let pixels: Vec<u8> = (start..end).flat_map(|i| [(i % 251) as u8; 6]).collect();
                take(&pixels)?;
            }
            Ok(())
        }
    }

    /// A network with the given weights.
    struct Sums(NetworkIdentity);

    impl Sums {
        fn new(weights: &str) -> Self {
            Self(NetworkIdentity::new("sums", weights, "first byte"))
        }
    }

    impl FeatureExtractor for Sums {
        fn identity(&self) -> &NetworkIdentity {
            &self.0
        }

        fn dims(&self) -> [usize; 3] {
            [2, 0, 1]
        }

        fn extract(&self, pixels: &[u8], _: MapSize) -> Result<Features> {
            let first = |image: &[u8]| f32::from(image[0]);
            let features = pixels.chunks(6).flat_map(|image| [first(image), 1.0]).collect();
            let logits = pixels.chunks(6).map(|image| 2.0 * first(image)).collect();
            Ok(Features { features, spatial: Vec::new(), logits })
        }
    }

    fn collect(fails_at: usize, weights: &str, folder: Option<&Path>, batch: usize) -> Result<(FeatureTable, usize)> {
        let mut first = None;
        let mut set = Counting { count: 700, fails_at };
        let mut progress = |done: usize| {
            first.get_or_insert(done);
        };
        let table = FeatureTable::collect(&mut set, &Sums::new(weights), folder, batch, &mut progress)?;
        Ok((table, first.unwrap_or_default()))
    }

    #[test]
    fn an_interrupted_evaluation_resumes_and_ends_the_same() {
        let (whole, _) = collect(usize::MAX, "01", None, 33).unwrap();
        assert_eq!((whole.count, whole.row(690), whole.logits(690)), (700, &[188.0, 1.0][..], &[376.0][..]));
        let folder = tempfile::tempdir().unwrap();
        assert!(collect(600, "01", Some(folder.path()), 100).is_err(), "stopped");
        // Half a row, as an interruption leaves it.
        let path = folder.path().join(PARTS[0]);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(&[1, 2, 3, 4, 5]).unwrap();
        assert!(FeatureTable::open(folder.path()).is_err(), "not all are there");
        let (resumed, first) = collect(usize::MAX, "01", Some(folder.path()), 7).unwrap();
        assert!(first >= SAVE_EVERY, "what was saved is not computed again: {first}");
        assert_eq!(resumed, whole, "the same features");
        assert_eq!(FeatureTable::open(folder.path()).unwrap(), whole, "read back");
        let (again, first) = collect(0, "01", Some(folder.path()), 9).unwrap();
        assert_eq!((again, first), (whole, 700), "nothing is left to do");
    }

    #[test]
    fn several_networks_read_the_same_images() {
        let networks = [Sums::new("01"), Sums::new("02"), Sums::new("03")];
        let folders: Vec<_> = networks.iter().map(|_| tempfile::tempdir().unwrap()).collect();
        let collect = |used: &[usize], fails_at: usize| {
            let chosen: Vec<(&dyn FeatureExtractor, Option<&Path>)> =
                used.iter().map(|i| (&networks[*i] as &dyn FeatureExtractor, Some(folders[*i].path()))).collect();
            let mut reported = Vec::new();
            let mut set = Counting { count: 700, fails_at };
            FeatureTable::collect_all(&mut set, &chosen, 60, &mut |done| reported.push(done))
                .map(|tables| (tables, reported))
        };
        assert!(collect(&[0], 650).is_err(), "the first is ahead of the others");
        assert!(collect(&[0, 1], 320).is_err(), "stopped between two");
        let (tables, reported) = collect(&[0, 1, 2], usize::MAX).unwrap();
        assert_eq!((reported[0], reported.last()), (0, Some(&700)), "the third has nothing yet");
        let (alone, _) = self::collect(usize::MAX, "01", None, 33).unwrap();
        for (table, network) in tables.iter().zip(&networks) {
            assert_eq!(table.network, network.0, "in the order of the networks");
            assert_eq!(table.features, alone.features, "as of one network alone");
        }
        assert_eq!(collect(&[2, 0], 0).unwrap().0, [tables[2].clone(), tables[0].clone()], "nothing is left to do");
        assert!(
            FeatureTable::collect_all(&mut Counting { count: 3, fails_at: 9 }, &[], 2, &mut |_| ()).unwrap().is_empty()
        );
    }

    /// Computes one shard of 700 images, 60 at a time; returns the first number that was reported.
    fn shard(number: &str, fails_at: usize, folder: &Path) -> Result<usize> {
        let (mut first, network) = (None, Sums::new("01"));
        let mut set = Counting { count: 700, fails_at };
        let networks: [(&dyn FeatureExtractor, &Path); 1] = [(&network, folder)];
        FeatureTable::collect_shard(&mut set, &networks, number.parse()?, 60, &mut |done| {
            first.get_or_insert(done);
        })?;
        Ok(first.unwrap_or_default())
    }

    #[test]
    fn shards_are_put_together_to_the_features_of_one_run() {
        let (whole, _) = collect(usize::MAX, "01", None, 33).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let whole_folder = tempfile::tempdir().unwrap();
        collect(usize::MAX, "01", Some(whole_folder.path()), 50).unwrap();
        // Of the 350 images of a half, 256 and more are saved when reading fails.
        assert!(shard("2/2", 680, folder.path()).is_err(), "stopped");
        assert!(shard("2/2", usize::MAX, folder.path()).unwrap() >= SAVE_EVERY, "what was saved is kept");
        let refused = |part: &str| {
            let error = collect(0, "01", Some(folder.path()), 33).unwrap_err();
            assert!(matches!(error, Error::Shards { .. }), "{error:?}");
            let message = error.to_string();
            assert!(message.contains(part) && message.contains("--shard 1/2"), "{message}");
        };
        refused("shard 1/2 is missing");
        assert!(shard("1/2", 300, folder.path()).is_err(), "stopped");
        refused("1-of-2` is not finished");
        assert!(!folder.path().join(STATE).exists(), "a refused run leaves no trace");
        shard("1/2", usize::MAX, folder.path()).unwrap();
        let (merged, first) = collect(0, "01", Some(folder.path()), 33).unwrap();
        assert_eq!((merged, first), (whole, 700), "no image was read");
        for name in [STATE, PARTS[0], PARTS[1], PARTS[2]] {
            let [merged, whole] = [&folder, &whole_folder].map(|folder| fs::read(folder.path().join(name)).unwrap());
            assert_eq!(merged, whole, "{name}");
        }
        assert_eq!(shard("2/3", 0, folder.path()).unwrap(), 233, "nothing is left to do for a shard");
        assert_eq!(collect(0, "01", Some(folder.path()), 33).unwrap().1, 700, "shards are not needed any more");
    }

    #[test]
    fn a_run_that_stopped_is_completed_by_shards() {
        let (whole, _) = collect(usize::MAX, "01", None, 33).unwrap();
        let folder = tempfile::tempdir().unwrap();
        assert!(collect(600, "01", Some(folder.path()), 100).is_err(), "stopped");
        for number in ["1/3", "2/3", "3/3"] {
            shard(number, usize::MAX, folder.path()).unwrap();
        }
        assert_eq!(collect(0, "01", Some(folder.path()), 33).unwrap(), (whole, 700));
    }

    #[test]
    fn foreign_shards_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for number in ["1/2", "2/2"] {
            shard(number, usize::MAX, folder.path()).unwrap();
        }
        let message = |weights: &str| collect(0, weights, Some(folder.path()), 33).unwrap_err().to_string();
        assert!(message("02").contains("different networks"), "{}", message("02"));
        let path = folder.path().join("2-of-2").join(STATE);
        let state = fs::read_to_string(&path).unwrap();
        fs::write(&path, state.replace("counting", "others")).unwrap();
        let found = message("01");
        assert!(found.contains("2-of-2/features.json") && found.contains("others]"), "{found}");
        fs::write(&path, state).unwrap();
        fs::create_dir(folder.path().join("1-of-3")).unwrap();
        let found = message("01");
        assert!(found.contains("shard 1/2") && found.contains("shard 1/3"), "{found}");
    }

    #[test]
    fn the_features_of_another_network_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (mut table, _) = collect(usize::MAX, "01", Some(folder.path()), 50).unwrap();
        let networks = [Sums::new("01"), Sums::new("02")].map(|network| network.identity().to_string());
        // Of the same width, so that no shape tells the two apart.
        let kept = collect(usize::MAX, "02", Some(folder.path()), 50).unwrap_err();
        let added = table.add(&Sums::new("02"), &[0; 6], SIZE).unwrap_err();
        for error in [&kept, &added] {
            assert!(matches!(error, Error::Network { .. }), "{error:?}");
            let message = error.to_string();
            assert!(networks.iter().all(|network| message.contains(network)), "names both networks: {message}");
        }
        assert!(kept.to_string().contains("name another folder"), "says what to do: {kept}");
        assert_eq!(table.count, 700, "nothing was added");
        table.add(&Sums::new("01"), &[0; 6], SIZE).unwrap();
        assert_eq!(table.count, 701, "the same network adds");
    }

    #[test]
    fn features_of_older_versions_are_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        collect(usize::MAX, "01", Some(folder.path()), 50).unwrap();
        let path = folder.path().join(STATE);
        let mut state: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        state.as_object_mut().unwrap().remove("network").expect("the identity is saved");
        std::fs::write(&path, state.to_string()).unwrap();
        let opened = FeatureTable::open(folder.path()).unwrap_err();
        let resumed = collect(usize::MAX, "01", Some(folder.path()), 50).unwrap_err();
        for error in [opened, resumed] {
            let message = error.to_string();
            assert!(message.contains("older version") && message.contains("compute them again"), "{message}");
        }
    }

    #[test]
    fn damaged_folders_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        collect(usize::MAX, "01", Some(folder.path()), 50).unwrap();
        let state = std::fs::read_to_string(folder.path().join(STATE)).unwrap();
        std::fs::write(folder.path().join(STATE), state.replace("700 images", "7 images")).unwrap();
        let error = collect(usize::MAX, "01", Some(folder.path()), 50).unwrap_err().to_string();
        assert!(error.contains("7 images of") && error.contains("another folder"), "other images: {error}");
        std::fs::write(folder.path().join(STATE), state).unwrap();
        std::fs::write(folder.path().join(PARTS[2]), [0; 8]).unwrap();
        let error = collect(usize::MAX, "01", Some(folder.path()), 50).unwrap_err().to_string();
        assert!(error.contains(PARTS[2]) && error.contains("begin again"), "{error}");
        std::fs::write(folder.path().join(STATE), "{").unwrap();
        assert!(collect(usize::MAX, "01", Some(folder.path()), 50).is_err(), "a broken state");
    }
}
