//! The features of a set of images, saved while they are computed, so that an interrupted evaluation resumes.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use burn_var::MapSize;
use serde::{Deserialize, Serialize};

use super::identity::mismatch;
use super::{FeatureExtractor, Features, ImageSet, NetworkIdentity};
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
    /// that are further than the others wait for them.
    ///
    /// # Errors
    /// The errors of [`FeatureTable::collect`].
    pub fn collect_all(
        set: &mut dyn ImageSet,
        networks: &[(&dyn FeatureExtractor, Option<&Path>)],
        batch: usize,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Self>> {
        let (count, size) = (set.count(), set.size());
        let of = match networks.iter().any(|(_, folder)| folder.is_some()) {
            true => format!("{count} images of {size} pixels: {}", set.identity()?),
            false => String::new(),
        };
        let mut readers = networks
            .iter()
            .map(|(network, folder)| Reader::open(*network, *folder, &of, count))
            .collect::<Result<Vec<_>>>()?;
        let mut done = readers.iter().map(|reader| reader.table.count).min().unwrap_or(count);
        progress(done);
        set.read(done, batch, &mut |pixels| {
            readers.iter_mut().try_for_each(|reader| reader.add(pixels, size, done))?;
            done += pixels.len() / (3 * size.area()).max(1);
            progress(done);
            Ok(())
        })?;
        let finish = |reader: Reader<'_>| {
            let table = reader.finish()?;
            match table.count == count {
                true => Ok(table),
                false => Err(burn_var::Error::shape(set.describe(), format!("{count} images"), [table.count]).into()),
            }
        };
        readers.into_iter().map(finish).collect()
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

/// One of several networks that read a set.
struct Reader<'a> {
    network: &'a dyn FeatureExtractor,
    table: FeatureTable,
    spool: Option<Spool>,
}

impl<'a> Reader<'a> {
    /// Starts with the features that are saved in `folder`; `of` describes the images.
    fn open(network: &'a dyn FeatureExtractor, folder: Option<&Path>, of: &str, count: usize) -> Result<Self> {
        let mut table = FeatureTable::new(network);
        let mut spool = None;
        if let Some(folder) = folder {
            let network = Some(table.network.clone());
            let opened = Spool::open(folder, State { of: of.to_owned(), network, dims: table.dims, count, done: 0 })?;
            table = opened.read(table.network)?;
            spool = Some(opened);
        }
        Ok(Self { network, table, spool })
    }

    /// Adds the features of images, the first of which has the number `first`; those that are there already are skipped.
    fn add(&mut self, pixels: &[u8], size: MapSize, first: usize) -> Result<()> {
        let skipped = (self.table.count - first) * 3 * size.area();
        let Some(pixels) = pixels.get(skipped..).filter(|rest| !rest.is_empty()) else { return Ok(()) };
        let (features, more) = extract(self.network, pixels, size)?;
        if let Some(spool) = &mut self.spool {
            spool.push(&features, more)?;
        }
        self.table.features.extend(features);
        self.table.count += more;
        Ok(())
    }

    /// Saves the last features.
    fn finish(mut self) -> Result<FeatureTable> {
        if let Some(spool) = &mut self.spool {
            spool.save()?;
        }
        Ok(self.table)
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
        match (&state.network, &fresh.network) {
            (Some(saved), Some(network)) if saved == network => {}
            (Some(saved), Some(network)) => {
                let name = format!("those in `{}`", folder.display());
                return Err(mismatch((&name, saved), ("the new ones", Some(network)), "name another folder"));
            }
            _ => return Err(without_identity(folder)),
        }
        if (&state.of, state.dims) != (&fresh.of, fresh.dims) {
            let reason = format!("it is about [{}], asked for is [{}]; name another folder", state.of, fresh.of);
            return Err(Error::format(folder.join(STATE), reason));
        }
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

        fn read(&mut self, first: usize, batch: usize, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
            for start in (first..self.count).step_by(batch) {
                let end = (start + batch).min(self.count);
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
