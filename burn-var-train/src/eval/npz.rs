//! NumPy's `.npz` files, in which evaluation tools exchange images and statistics.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use burn_var::MapSize;
use npyz::npz::{NpzWriter, array_name_from_file_name, file_name_from_array_name};
use npyz::zip::write::FileOptions;
use npyz::zip::{CompressionMethod, DateTime, ZipArchive};
use npyz::{AutoSerialize, NpyHeader, Order, WriterBuilder};
use tempfile::NamedTempFile;

use super::SampleShard;
use crate::fs::{put_in_place, refuse_device, temporary_beside};
use crate::{Error, Result};

/// The array of the images.
const IMAGES: &str = "arr_0";
/// The array of the labels, one per image.
const LABELS: &str = "arr_1";
/// The array of a shard that tells its place: JSON, as bytes.
const SHARD: &str = "shard";
/// Bytes skipped at a time.
const SKIP: usize = 1 << 20;

/// An `.npz` file, read array by array.
#[derive(Debug)]
pub struct NpzFile {
    path: PathBuf,
    archive: ZipArchive<BufReader<File>>,
}

impl NpzFile {
    /// Opens a file, and reads only its directory.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Format`] if it is not a zip archive.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(Error::io("read", path))?;
        let archive = ZipArchive::new(BufReader::new(file)).map_err(|error| {
            Error::format(
                path,
                format!("not an .npz file, which is a zip archive of arrays ({error}); was it cut off?"),
            )
        })?;
        Ok(Self { path: path.into(), archive })
    }

    /// Returns the names of the arrays, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.archive.file_names().filter_map(array_name_from_file_name).collect();
        names.sort_unstable();
        names
    }

    /// Returns `true` if the file has an array of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.names().contains(&name)
    }

    /// Reads the shape and numbers of a float array.
    ///
    /// # Errors
    /// [`Error::Format`] if there is no array of that name, or it has another type.
    pub fn floats(&mut self, name: &str) -> Result<(Vec<usize>, Vec<f64>)> {
        self.array(name, &["<f4", "<f8", "<f2"], |header, reader| {
            let count = header.len() as usize;
            let numbers = match header.dtype().descr().trim_matches('\'') {
                "<f8" => numbers(reader, count, f64::from_le_bytes)?,
                "<f4" => numbers(reader, count, |bytes| f64::from(f32::from_le_bytes(bytes)))?,
                _ => numbers(reader, count, |bytes| f64::from(burn::tensor::f16::from_le_bytes(bytes)))?,
            };
            Ok((shape(header), numbers))
        })
    }

    /// Reads the numbers of an integer array.
    ///
    /// # Errors
    /// The errors of [`NpzFile::floats`].
    pub fn integers(&mut self, name: &str) -> Result<Vec<i64>> {
        self.array(name, &["<i8", "<i4", "|u1", "<u2"], |header, reader| {
            let count = header.len() as usize;
            match header.dtype().descr().trim_matches('\'') {
                "<i8" => numbers(reader, count, i64::from_le_bytes),
                "<i4" => numbers(reader, count, |bytes| i64::from(i32::from_le_bytes(bytes))),
                "<u2" => numbers(reader, count, |bytes| i64::from(u16::from_le_bytes(bytes))),
                _ => numbers(reader, count, |[byte]: [u8; 1]| i64::from(byte)),
            }
        })
    }

    /// Reads an array of one of the types `accepted`.
    fn array<R>(
        &mut self,
        name: &str,
        accepted: &[&str],
        read: impl FnOnce(&NpyHeader, &mut dyn Read) -> std::io::Result<R>,
    ) -> Result<R> {
        let bad = |reason: String| Error::format(&self.path, format!("array `{name}`: {reason}"));
        let names = self.names().join(", ");
        let mut file = match self.archive.by_name(&file_name_from_array_name(name)) {
            Ok(file) => file,
            Err(npyz::zip::result::ZipError::FileNotFound) => {
                return Err(bad(format!("not in the file, which holds: {names}")));
            }
            Err(error) => return Err(bad(error.to_string())),
        };
        let broken = |error: std::io::Error| bad(format!("truncated or damaged ({error})"));
        let header = NpyHeader::from_reader(&mut file).map_err(broken)?;
        let dtype = header.dtype().descr();
        if !accepted.contains(&dtype.trim_matches('\'')) {
            return Err(bad(format!("type {dtype} is not supported, expected {}", accepted.join(" or "))));
        }
        if header.order() != Order::C && header.shape().len() > 1 {
            return Err(bad("it is in Fortran order, column by column; save it with `np.ascontiguousarray`".into()));
        }
        read(&header, &mut file).map_err(broken)
    }
}

fn shape(header: &NpyHeader) -> Vec<usize> {
    header.shape().iter().map(|side| *side as usize).collect()
}

fn numbers<T, const N: usize>(
    reader: &mut dyn Read,
    count: usize,
    convert: impl Fn([u8; N]) -> T,
) -> std::io::Result<Vec<T>> {
    // The archive compares its checksum at the end, so read to there; and never allocate by the header, which may lie.
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes)?;
    if bytes.len() != count * N {
        let message = format!("expected {count} numbers of {N} bytes, found {} bytes", bytes.len());
        return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, message));
    }
    let (chunks, _) = bytes.as_chunks::<N>();
    Ok(chunks.iter().map(|chunk| convert(*chunk)).collect())
}

/// A file of samples: images in `arr_0`, uint8, `[N, height, width, 3]`, and optional labels in `arr_1`.
#[derive(Debug)]
pub struct SampleFile {
    file: NpzFile,
    count: usize,
    size: MapSize,
    labels: Option<Vec<usize>>,
}

impl SampleFile {
    /// Opens a file, and reads its labels and the shape of its images.
    ///
    /// # Errors
    /// [`Error::Format`] if it has no images in that form.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let mut file = NpzFile::open(path)?;
        let shape = file.array(IMAGES, &["|u1"], |header, _| Ok(shape(header)))?;
        let &[count, height, width, 3] = shape.as_slice() else {
            let reason = format!("`{IMAGES}` has shape {shape:?}, expected [images, height, width, 3]");
            return Err(Error::format(&file.path, reason));
        };
        if count == 0 || height == 0 || width == 0 {
            return Err(Error::format(&file.path, format!("`{IMAGES}` has shape {shape:?}: there is no image")));
        }
        let labels = match file.contains(LABELS) {
            false => None,
            true => {
                let labels = file.integers(LABELS)?;
                let whole = labels.len() == count && labels.iter().all(|label| *label >= 0);
                if !whole {
                    let reason = format!(
                        "`{LABELS}` holds {} numbers, expected one label of 0 or more for each of {count} images",
                        labels.len()
                    );
                    return Err(Error::format(&file.path, reason));
                }
                Some(labels.into_iter().map(|label| label as usize).collect())
            }
        };
        Ok(Self { file, count, size: MapSize { height, width }, labels })
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Returns the number of images.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns the size of the images.
    pub fn size(&self) -> MapSize {
        self.size
    }

    /// Returns the labels, one per image, if the file has any.
    pub fn labels(&self) -> Option<&[usize]> {
        self.labels.as_deref()
    }

    /// Returns the place of the file in a run of several shards; `None` if it is none of them.
    ///
    /// # Errors
    /// [`Error::Format`] if the file does not tell it as this program writes it.
    pub fn shard(&mut self) -> Result<Option<SampleShard>> {
        if !self.file.contains(SHARD) {
            return Ok(None);
        }
        let bytes: Vec<u8> = self.file.integers(SHARD)?.into_iter().map(|byte| byte as u8).collect();
        let wrong =
            |error| format!("array `{SHARD}`: it is not the place of a shard ({error}); generate the file again");
        serde_json::from_slice(&bytes).map(Some).map_err(|error| Error::format(self.path(), wrong(error)))
    }

    /// Reads the images with these numbers, and calls `take` with at most `batch` at a time; only those are in memory.
    ///
    /// # Errors
    /// [`Error::Format`] naming the image at which the file is truncated, and the errors of `take`.
    pub fn read(
        &mut self,
        numbers: Range<usize>,
        batch: usize,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let image_bytes = self.size.area() * 3;
        let Range { start: mut at, end } = numbers;
        let mut failed = None;
        let count = self.count;
        let read = self.file.array(IMAGES, &["|u1"], |_, reader| {
            skip(reader, at as u64 * image_bytes as u64)?;
            let mut pixels = vec![0; batch * image_bytes];
            while at < end && failed.is_none() {
                let pixels = &mut pixels[..batch.min(end - at) * image_bytes];
                reader.read_exact(pixels)?;
                failed = take(pixels).err();
                at += pixels.len() / image_bytes;
            }
            // The archive compares its checksum at the end of the array.
            if failed.is_none() && end == count { skip(reader, u64::MAX) } else { Ok(()) }
        });
        match (failed, read) {
            (Some(error), _) => Err(error),
            (None, Err(Error::Format { path, reason })) => {
                Err(Error::Format { path, reason: format!("{reason}, from image {at} of {count} on") })
            }
            (None, read) => read,
        }
    }
}

/// Reads and drops `count` bytes, or all that are left.
fn skip(reader: &mut dyn Read, mut count: u64) -> std::io::Result<()> {
    let mut bytes = vec![0; SKIP];
    while count > 0 {
        let part = count.min(SKIP as u64) as usize;
        match reader.read(&mut bytes[..part])? {
            0 => break,
            read => count -= read as u64,
        }
    }
    Ok(())
}

/// Writes an `.npz` file array by array. The file has a temporary name until [`NpzBuilder::finish`].
pub struct NpzBuilder {
    path: PathBuf,
    file: NpzWriter<BufWriter<NamedTempFile>>,
}

impl NpzBuilder {
    /// Creates a file in a folder that exists.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        refuse_device(path)?;
        let file = temporary_beside(path).map_err(Error::io("write", path))?;
        Ok(Self { path: path.into(), file: NpzWriter::new(BufWriter::new(file)) })
    }

    /// Adds an array.
    ///
    /// # Errors
    /// The errors of [`NpzBuilder::create`]; [`burn_var::Error::Shape`] if the numbers do not fill the shape exactly.
    pub fn array<T: AutoSerialize + Clone>(&mut self, name: &str, shape: &[usize], numbers: &[T]) -> Result<()> {
        self.stream(name, shape, |push| push(numbers))
    }

    /// Adds an array piece by piece: `fill` is called with a function that appends numbers.
    ///
    /// # Errors
    /// The errors of [`NpzBuilder::array`], and the errors of `fill`.
    pub fn stream<T: AutoSerialize + Clone, E: From<Error>>(
        &mut self,
        name: &str,
        shape: &[usize],
        fill: impl FnOnce(&mut dyn FnMut(&[T]) -> Result<()>) -> Result<(), E>,
    ) -> Result<(), E> {
        // Arrays of more than 4 GB need the large form; 50,000 images of 256x256 take 9.8 GB. Without a time stamp, the
        // same numbers give the same file.
        let options = FileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .large_file(true);
        let sides: Vec<u64> = shape.iter().map(|side| *side as u64).collect();
        let path = self.path.clone();
        let failed = || Error::io("write", &path);
        let array = self.file.array(name, options).map_err(failed())?;
        let mut array = array.default_dtype().shape(&sides).begin_nd().map_err(failed())?;
        let mut written = 0;
        fill(&mut |numbers| {
            written += numbers.len();
            array.extend(numbers.iter().cloned()).map_err(failed())
        })?;
        let expected: usize = shape.iter().product();
        if written != expected {
            let error = burn_var::Error::shape(format!("array {name}"), format!("{expected} numbers"), [written]);
            return Err(Error::from(error).into());
        }
        Ok(array.finish().map_err(failed())?)
    }

    /// Syncs the file to disk, then gives it its name.
    ///
    /// # Errors
    /// The errors of [`NpzBuilder::create`].
    pub fn finish(mut self) -> Result<()> {
        let mut finish = || {
            let buffer = self.file.zip_writer().finish().map_err(std::io::Error::other)?;
            put_in_place(buffer.into_inner().map_err(|error| error.into_error())?, &self.path)
        };
        finish().map_err(Error::io("write", &self.path))
    }
}

/// Writes a file of samples: images as they come in `arr_0`, and their labels in `arr_1`. `make` is called with a function
/// that appends images: red, green and blue bytes, row by row, image by image.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written, [`burn_var::Error::Shape`] if there is not one image per label, and the
/// errors of `make`. An existing file at `path` is then untouched.
pub fn write_samples<E: From<Error>>(
    path: impl AsRef<Path>,
    labels: &[usize],
    size: MapSize,
    make: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<(), E>,
) -> Result<(), E> {
    write_arrays(path.as_ref(), labels, size, None, make)
}

/// Writes the arrays of a file of samples; a `shard` tells its place.
pub(super) fn write_arrays<E: From<Error>>(
    path: &Path,
    labels: &[usize],
    size: MapSize,
    shard: Option<&SampleShard>,
    make: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<(), E>,
) -> Result<(), E> {
    let mut file = NpzBuilder::create(path)?;
    file.stream(IMAGES, &[labels.len(), size.height, size.width, 3], make)?;
    let labels: Vec<i64> = labels.iter().map(|label| *label as i64).collect();
    file.array(LABELS, &[labels.len()], &labels)?;
    if let Some(shard) = shard {
        let json = serde_json::to_vec(shard).map_err(|error| Error::format(path, error.to_string()))?;
        file.array(SHARD, &[json.len()], &json)?;
    }
    Ok(file.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(path: &Path, count: usize, size: MapSize) -> Vec<u8> {
        let pixels: Vec<u8> = (0..count * size.area() * 3).map(|i| (i * 7 % 251) as u8).collect();
        let labels: Vec<usize> = (0..count).map(|i| i % 3).collect();
        let make = |push: &mut dyn FnMut(&[u8]) -> Result<()>| pixels.chunks(100).try_for_each(push);
        write_samples(path, &labels, size, make).unwrap();
        pixels
    }

    fn read(file: &mut SampleFile, numbers: Range<usize>, batch: usize) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        file.read(numbers, batch, &mut |pixels| {
            all.extend(pixels);
            Ok(())
        })?;
        Ok(all)
    }

    #[test]
    fn images_read_back_from_any_place_in_any_batch() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let pixels = samples(&path, 7, MapSize { height: 3, width: 5 });
        let mut file = SampleFile::open(&path).unwrap();
        assert_eq!((file.count(), file.size()), (7, MapSize { height: 3, width: 5 }));
        assert_eq!(file.labels(), Some(&[0, 1, 2, 0, 1, 2, 0][..]));
        for (numbers, batch) in [(0..7, 1), (0..7, 3), (0..7, 100), (5..7, 2), (6..7, 4), (7..7, 1), (2..6, 3)] {
            let expected = &pixels[numbers.start * 45..numbers.end * 45];
            assert_eq!(read(&mut file, numbers.clone(), batch).unwrap(), expected, "{numbers:?} by {batch}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn an_unfinished_file_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = NpzBuilder::create(folder.path().join("a.npz")).unwrap();
        let error = file.array("mu", &[3], &[1.0, 2.0]).unwrap_err().to_string();
        assert!(error.contains("`array mu`"), "{error}");
        drop(file);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing");
        assert!(NpzBuilder::create(folder.path().join("none/a.npz")).is_err(), "no folder");
    }

    #[test]
    fn statistics_come_back_in_both_precisions() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let mut file = NpzBuilder::create(&path).unwrap();
        file.array("mu", &[2], &[0.5_f32, 1.5]).unwrap();
        file.array("sigma", &[2, 2], &[1.0_f64, 0.1, 0.1, 2.0]).unwrap();
        file.finish().unwrap();
        let mut file = NpzFile::open(&path).unwrap();
        assert_eq!(file.floats("mu").unwrap(), (vec![2], vec![0.5, 1.5]));
        assert_eq!(file.floats("sigma").unwrap(), (vec![2, 2], vec![1.0, 0.1, 0.1, 2.0]));
        let error = file.floats("mu_s").unwrap_err().to_string();
        assert!(error.contains("not in the file, which holds: mu, sigma"), "{error}");
        let error = file.integers("mu").unwrap_err().to_string();
        assert!(error.contains("`mu`: type '<f4'"), "{error}");
    }

    #[test]
    fn bad_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let open = |path: &Path| SampleFile::open(path).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(open(&path).contains("cannot read"), "no file");
        samples(&path, 4, MapSize { height: 8, width: 8 });
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(open(&path).contains("not an .npz file"), "half a file: {}", open(&path));
        std::fs::write(&path, b"no archive").unwrap();
        assert!(open(&path).contains("not an .npz file"), "{}", open(&path));
        let mut damaged = whole.clone();
        damaged[400] ^= 0x55;
        std::fs::write(&path, &damaged).unwrap();
        let error = read(&mut SampleFile::open(&path).unwrap(), 0..4, 4).unwrap_err().to_string();
        assert!(error.contains("`arr_0`") && error.contains("damaged"), "{error}");
        let write = |shape: &[usize], labels: usize| {
            let mut file = NpzBuilder::create(&path).unwrap();
            file.array(IMAGES, shape, &vec![0_u8; shape.iter().product()]).unwrap();
            file.array(LABELS, &[labels], &vec![0_i64; labels]).unwrap();
            file.finish().unwrap();
        };
        write(&[2, 3, 8, 8], 2);
        assert!(open(&path).contains("shape [2, 3, 8, 8], expected"), "channels first: {}", open(&path));
        write(&[0, 8, 8, 3], 0);
        assert!(open(&path).contains("no image"), "{}", open(&path));
        write(&[2, 8, 8, 3], 3);
        assert!(open(&path).contains("one label of 0 or more for each of 2"), "{}", open(&path));
        let mut file = NpzBuilder::create(&path).unwrap();
        file.array(IMAGES, &[1, 2, 2, 3], &[0.5_f32; 12]).unwrap();
        file.finish().unwrap();
        assert!(open(&path).contains("type '<f4'"), "floats: {}", open(&path));
    }
}
