//! Shards: the parts of a set of images that several processes compute, and the files of samples that hold one each.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use burn_var::MapSize;
use serde::{Deserialize, Serialize};

use super::SampleFile;
use super::npz::{write_arrays, write_samples};
use crate::{Error, Result};

/// The form of a shard on a command line.
const FORM: &str = "its number and the number of shards, from `1/8` to `8/8` for eight";
/// Images copied at a time.
const COPY_BATCH: usize = 64;

/// One of several parts of a set of images. Each is a range of image numbers, and all have the same length to within one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// From 1 to `count`.
    number: usize,
    count: usize,
}

impl Shard {
    /// Creates shard `number` of `count`; the first has the number 1.
    ///
    /// # Errors
    /// [`Error::Config`] if `number` is not in `1..=count`.
    pub fn new(number: usize, count: usize) -> Result<Self> {
        match (1..=count).contains(&number) {
            true => Ok(Self { number, count }),
            false => Err(Error::config("shard", format!("{number}/{count}"), FORM)),
        }
    }

    /// Returns all shards of a set that is cut into `count`.
    pub fn all(count: usize) -> impl Iterator<Item = Self> {
        (1..=count).map(move |number| Self { number, count })
    }

    /// Returns the number of the shard, from 1.
    pub fn number(self) -> usize {
        self.number
    }

    /// Returns the number of shards.
    pub fn count(self) -> usize {
        self.count
    }

    /// Returns the numbers of the images of this shard, in a set of `images`.
    ///
    /// # Errors
    /// [`Error::Config`] if there are more shards than images.
    pub fn range(self, images: usize) -> Result<Range<usize>> {
        if self.count > images {
            let expected = format!("at most {images}, one for each image");
            return Err(Error::config("number of shards", self.count, expected));
        }
        let start = |number: usize| (number as u128 * images as u128 / self.count as u128) as usize;
        Ok(start(self.number - 1)..start(self.number))
    }

    /// Returns the name of the shard in names of files and folders, `2-of-8` for instance.
    pub fn name(self) -> String {
        format!("{}-of-{}", self.number, self.count)
    }

    /// Returns the path of the shard of a file: `images.2-of-8.npz` for `images.npz`.
    pub fn path(self, whole: &Path) -> PathBuf {
        let stem = whole.file_stem().unwrap_or_default().to_string_lossy();
        let end = whole.extension().map(|end| format!(".{}", end.to_string_lossy())).unwrap_or_default();
        whole.with_file_name(format!("{stem}.{}{end}", self.name()))
    }

    /// Returns the shard with this name; see [`Shard::name`].
    pub(super) fn from_name(name: &str) -> Option<Self> {
        let (number, count) = name.split_once("-of-")?;
        Self::new(number.parse().ok()?, count.parse().ok()?).ok().filter(|shard| shard.name() == name)
    }

    /// Checks that `found` are all shards of one set, once each; returns their number.
    pub(super) fn check_all(found: &[(Self, String)]) -> Result<usize> {
        let wrong = |reason: String| Err(Error::Shards { reason });
        let Some(((first, first_name), others)) = found.split_first() else {
            return wrong("there is none".to_owned());
        };
        for (i, (shard, name)) in others.iter().enumerate() {
            if shard.count != first.count {
                return wrong(format!(
                    "{first_name} is shard {first} and {name} is shard {shard}: name the shards of one run, and remove \
                     the others"
                ));
            }
            if let Some((_, twin)) = found[..=i].iter().find(|(other, _)| other == shard) {
                return wrong(format!("{twin} and {name} are both shard {shard}: name each shard once"));
            }
        }
        let is_missing = |shard: &Self| found.iter().all(|(other, _)| other != shard);
        let missing: Vec<String> = Self::all(first.count).filter(is_missing).map(|shard| shard.to_string()).collect();
        match missing.as_slice() {
            [] => Ok(first.count),
            [one] => wrong(format!("shard {one} is missing: run the same command with `--shard {one}`")),
            [one, ..] => {
                let list = missing.join(", ");
                wrong(format!("the shards {list} are missing: run the same command with `--shard {one}` and so on"))
            }
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.count)
    }
}

impl FromStr for Shard {
    type Err = Error;

    /// Parses `2/8`.
    fn from_str(text: &str) -> Result<Self> {
        let numbers =
            text.split_once('/').and_then(|(number, count)| Some((number.parse().ok()?, count.parse().ok()?)));
        let (number, count) = numbers.ok_or_else(|| Error::config("shard", text, FORM))?;
        Self::new(number, count)
    }
}

/// The place of a file of samples in a run of several shards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleShard {
    /// The part of the images that the file holds.
    pub shard: Shard,
    /// Images of the whole run.
    pub images: usize,
    /// A string that changes with the images: model, settings, seed and labels. Shards of the same run have the same.
    pub run: String,
}

/// Writes the images of a shard, as [`write_samples`] does those of a whole run, and the place of the shard beside them.
/// `labels` are those of the whole run.
///
/// # Errors
/// The errors of [`write_samples`] and of [`Shard::range`].
pub fn write_shard<E: From<Error>>(
    path: impl AsRef<Path>,
    labels: &[usize],
    size: MapSize,
    (shard, run): (Shard, &str),
    make: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<(), E>,
) -> Result<(), E> {
    let range = shard.range(labels.len())?;
    let place = SampleShard { shard, images: labels.len(), run: run.to_owned() };
    write_arrays(path.as_ref(), &labels[range], size, Some(&place), make)
}

/// Puts the shards of a run together, given in any order: the file is that of one run, byte for byte. A batch of images is in
/// memory at a time. `progress` is called with the number of images that are done. Returns the number of shards.
///
/// # Errors
/// [`Error::Shards`] if a shard is missing, is there twice, or belongs to another run; [`Error::Format`] if a file is no
/// shard, or is damaged; [`Error::Io`]. An existing file at `path` is then untouched.
pub fn merge_samples(
    shards: &[impl AsRef<Path>],
    path: impl AsRef<Path>,
    progress: &mut dyn FnMut(usize),
) -> Result<usize> {
    let mut parts = shards.iter().map(|path| Part::open(path.as_ref())).collect::<Result<Vec<_>>>()?;
    let named: Vec<(Shard, String)> = parts.iter().map(|part| (part.place.shard, part.name())).collect();
    if let Some((first, others)) = parts.split_first() {
        others.iter().try_for_each(|part| part.check_same_run(first))?;
    }
    let count = Shard::check_all(&named)?;
    parts.sort_unstable_by_key(|part| part.place.shard.number);
    let labels: Vec<usize> = parts.iter().flat_map(|part| part.file.labels().unwrap_or_default()).copied().collect();
    let (size, mut done) = (parts[0].file.size(), 0);
    let image_bytes = 3 * size.area();
    write_samples(path, &labels, size, |take| {
        parts.iter_mut().try_for_each(|part| {
            part.file.read(0..part.file.count(), COPY_BATCH, &mut |pixels| {
                take(pixels)?;
                done += pixels.len() / image_bytes;
                progress(done);
                Ok(())
            })
        })
    })?;
    Ok(count)
}

/// An open shard of samples.
struct Part {
    file: SampleFile,
    place: SampleShard,
}

impl Part {
    fn open(path: &Path) -> Result<Self> {
        let mut file = SampleFile::open(path)?;
        let place = file.shard()?.ok_or_else(|| {
            Error::format(path, "it is no shard of a run; `burn-var sample --npz` writes one with `--shard`")
        })?;
        let expected = place.shard.range(place.images)?.len();
        if file.count() != expected || file.labels().is_none() {
            let reason = format!(
                "shard {} of {} images has {expected} of them, with labels; the file has {}: generate it again",
                place.shard,
                place.images,
                file.count()
            );
            return Err(Error::format(path, reason));
        }
        Ok(Self { file, place })
    }

    fn name(&self) -> String {
        format!("`{}`", self.file.path().display())
    }

    fn check_same_run(&self, first: &Self) -> Result<()> {
        let run = |part: &Self| (part.place.images, part.place.run.clone(), part.file.size());
        if run(self) == run(first) {
            return Ok(());
        }
        let about = |part: &Self| format!("{} of {} images [{}]", part.name(), part.place.images, part.place.run);
        let reason =
            format!("they belong to different runs: {}, {}; name the shards of one run", about(first), about(self));
        Err(Error::Shards { reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: MapSize = MapSize { height: 2, width: 3 };

    fn text(result: Result<impl fmt::Debug>) -> String {
        result.expect_err("refused").to_string()
    }

    #[test]
    fn shards_cut_a_set_into_parts_of_equal_length() {
        for (images, count) in [(7, 3), (50_000, 8), (5, 5), (1, 1), (1000, 7)] {
            let ranges: Vec<_> = Shard::all(count).map(|shard| shard.range(images).unwrap()).collect();
            assert_eq!((ranges[0].start, ranges[count - 1].end), (0, images), "all images");
            assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start), "each once: {ranges:?}");
            let lengths = || ranges.iter().map(ExactSizeIterator::len);
            assert!(lengths().max() <= lengths().min().map(|least| least + 1), "{ranges:?}");
        }
        assert_eq!(Shard::all(3).map(|shard| shard.range(7).unwrap().len()).collect::<Vec<_>>(), [2, 2, 3]);
        assert!(text(Shard::new(1, 8).unwrap().range(7)).contains("at most 7"));
    }

    #[test]
    fn names_are_read_back() {
        let shard: Shard = "2/8".parse().unwrap();
        assert_eq!((shard.number(), shard.count(), shard.to_string()), (2, 8, "2/8".to_owned()));
        assert_eq!(Shard::from_name(&shard.name()), Some(shard));
        assert_eq!(shard.path(Path::new("a/b.c.npz")), Path::new("a/b.c.2-of-8.npz"));
        assert_eq!(shard.path(Path::new("images")), Path::new("images.2-of-8"));
        for wrong in ["", "2", "0/8", "9/8", "2/x", "-1/8", "1/0", "2-of-8"] {
            assert!(text(wrong.parse::<Shard>()).contains("shard"), "{wrong}");
        }
        for wrong in ["logits.f32", "9-of-8", "02-of-8", "a-of-b"] {
            assert_eq!(Shard::from_name(wrong), None, "{wrong}");
        }
    }

    /// Writes 7 images in one file and in shards of it.
    fn write(folder: &Path, count: usize, run: &str) -> (PathBuf, Vec<PathBuf>) {
        let labels: Vec<usize> = (0..7).map(|i| i % 3).collect();
        let pixels: Vec<u8> = (0..7 * 18).map(|i| (i * 7 % 251) as u8).collect();
        let whole = folder.join("whole.npz");
        write_samples(&whole, &labels, SIZE, |push| pixels.chunks(50).try_for_each(push)).unwrap();
        let write = |shard: Shard| {
            let path = shard.path(&whole);
            let range = shard.range(7).unwrap();
            let pixels = &pixels[range.start * 18..range.end * 18];
            write_shard(&path, &labels, SIZE, (shard, run), |push| push(pixels)).unwrap();
            path
        };
        let shards = Shard::all(count).map(write).collect();
        (whole, shards)
    }

    fn merge(shards: &[impl AsRef<Path>], out: &Path) -> Result<usize> {
        merge_samples(shards, out, &mut |_| ())
    }

    #[test]
    fn merged_shards_are_the_file_of_one_run() {
        let folder = tempfile::tempdir().unwrap();
        let (whole, mut shards) = write(folder.path(), 3, "run");
        shards.rotate_left(1);
        let out = folder.path().join("merged.npz");
        let mut reported = Vec::new();
        assert_eq!(merge_samples(&shards, &out, &mut |done| reported.push(done)).unwrap(), 3);
        assert_eq!(std::fs::read(out).unwrap(), std::fs::read(whole).unwrap(), "byte for byte");
        assert_eq!(reported, [2, 4, 7]);
        let place = SampleFile::open(&shards[0]).unwrap().shard().unwrap();
        let expected = SampleShard { shard: Shard::new(2, 3).unwrap(), images: 7, run: "run".to_owned() };
        assert_eq!(place, Some(expected), "a shard knows its place");
    }

    #[test]
    fn shards_that_are_not_one_run_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let others = folder.path().join("others");
        std::fs::create_dir(&others).unwrap();
        let (whole, three) = write(folder.path(), 3, "run");
        let (_, two) = write(folder.path(), 2, "run");
        let (_, foreign) = write(&others, 3, "another");
        let out = folder.path().join("out.npz");
        std::fs::write(&out, b"before").unwrap();
        let [a, b, c] = [&three[0], &three[1], &three[2]];
        let refused = |shards: &[&PathBuf]| {
            let message = text(merge(shards, &out));
            assert_eq!(std::fs::read(&out).unwrap(), b"before", "nothing was written: {message}");
            message
        };
        let message = refused(&[a, c]);
        assert!(message.contains("shard 2/3 is missing") && message.contains("--shard 2/3"), "{message}");
        assert!(refused(&[b]).contains("the shards 1/3, 3/3 are missing"));
        let message = refused(&[a, b, c, b]);
        assert!(message.contains("are both shard 2/3") && message.contains("whole.2-of-3.npz"), "{message}");
        let message = refused(&[a, &foreign[1], c]);
        for part in ["different runs", "others/whole.2-of-3.npz", "[run]", "[another]"] {
            assert!(message.contains(part), "`{part}` in: {message}");
        }
        let message = refused(&[a, &two[1], c]);
        assert!(message.contains("shard 1/3") && message.contains("shard 2/2"), "{message}");
        assert!(refused(&[a, &whole]).contains("no shard of a run"));
        assert!(text(merge(&[] as &[PathBuf], &out)).contains("there is none"));
        let bytes = std::fs::read(b).unwrap();
        std::fs::write(b, &bytes[..bytes.len() / 2]).unwrap();
        assert!(refused(&[a, b, c]).contains("not an .npz file"), "half a file");
        let mut damaged = bytes;
        let third: Vec<u8> = (36..54_usize).map(|i| (i * 7 % 251) as u8).collect();
        let pixel = damaged.windows(18).position(|part| part == third.as_slice()).expect("its first image");
        damaged[pixel] ^= 0x55;
        std::fs::write(b, &damaged).unwrap();
        let message = refused(&[a, b, c]);
        assert!(message.contains("whole.2-of-3.npz") && message.contains("damaged"), "{message}");
    }
}
