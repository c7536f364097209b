//! Sets of 8-bit pictures to be measured: they are read in order, a few at a time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use burn_var::MapSize;
use rayon::prelude::*;

use super::SampleFile;
use crate::data::{Fingerprint, PictureShape, PictureSource, View};
use crate::{Error, Result};

/// Pictures of one size in an order that never changes.
pub trait PictureSet {
    /// What they are, for reports.
    fn describe(&self) -> String;

    /// Changes when the pictures do, so that what is known of others is not taken for theirs.
    ///
    /// # Errors
    /// If they cannot be looked at.
    fn identity(&self) -> Result<String> {
        Ok(self.describe())
    }

    /// How many, at least 1.
    fn count(&self) -> usize;

    /// Their size.
    fn size(&self) -> MapSize;

    /// 3, or 1 if they are grey: red, green and blue are then the same.
    fn channels(&self) -> usize {
        3
    }

    /// The class of each, where that is known.
    fn labels(&self) -> Option<&[usize]>;

    /// Hands out the pictures from `first` on, at most `batch` at a time: rows of red, green and blue in `0..=255`,
    /// picture after picture.
    ///
    /// # Errors
    /// If a picture cannot be had, and what `take` fails with.
    fn read(&mut self, first: usize, batch: usize, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;

    /// The pictures of these numbers, rising, one after the other.
    ///
    /// # Errors
    /// If a picture cannot be had.
    ///
    /// # Panics
    /// If a number is not below [`PictureSet::count`].
    fn pick(&mut self, numbers: &[usize]) -> Result<Vec<u8>> {
        let (picture, mut at, mut wanted, mut found) =
            (3 * self.size().area(), 0, numbers.iter().copied().peekable(), Vec::new());
        assert!(numbers.last().is_none_or(|last| *last < self.count()), "picture {numbers:?} of {}", self.count());
        self.read(0, PICK_BATCH, &mut |pixels| {
            for pixels in pixels.chunks_exact(picture) {
                while wanted.next_if_eq(&at).is_some() {
                    found.extend(pixels);
                }
                at += 1;
            }
            Ok(())
        })?;
        Ok(found)
    }
}

/// Pictures passed over at a time.
const PICK_BATCH: usize = 64;

impl PictureSet for SampleFile {
    fn describe(&self) -> String {
        self.path().display().to_string()
    }

    fn identity(&self) -> Result<String> {
        files([self.path()])
    }

    fn count(&self) -> usize {
        SampleFile::count(self)
    }

    fn size(&self) -> MapSize {
        SampleFile::size(self)
    }

    fn labels(&self) -> Option<&[usize]> {
        SampleFile::labels(self)
    }

    fn read(&mut self, first: usize, batch: usize, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        SampleFile::read(self, first, batch, take)
    }
}

/// A folder of PNG files of one size, in the order of their names; sub-folders are looked into, and are not classes.
///
/// Nothing but PNG: other formats lose what is to be measured.
#[derive(Debug)]
pub struct PngFolder {
    folder: PathBuf,
    files: Vec<PathBuf>,
    size: MapSize,
}

impl PngFolder {
    /// Lists a folder, and reads the size of its first picture.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; [`Error::Format`] if it holds no PNG file, or its first cannot be read.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let mut files = Vec::new();
        list(folder, &mut files)?;
        files.sort();
        let Some(first) = files.first() else {
            return Err(Error::format(folder, "it holds no PNG file"));
        };
        let (width, height) =
            image::image_dimensions(first).map_err(|error| Error::format(first, error.to_string()))?;
        let size = MapSize { height: height as usize, width: width as usize };
        Ok(Self { folder: folder.into(), files, size })
    }
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let path = entry.map_err(Error::io("read", folder))?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")) {
            files.push(path);
        }
    }
    Ok(())
}

impl PictureSet for PngFolder {
    fn describe(&self) -> String {
        self.folder.display().to_string()
    }

    fn identity(&self) -> Result<String> {
        files(self.files.iter().map(PathBuf::as_path))
    }

    fn count(&self) -> usize {
        self.files.len()
    }

    fn size(&self) -> MapSize {
        self.size
    }

    fn labels(&self) -> Option<&[usize]> {
        None
    }

    fn read(&mut self, first: usize, batch: usize, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let picture = 3 * self.size.area();
        for files in self.files[first..].chunks(batch) {
            let mut pixels = vec![0; files.len() * picture];
            pixels.par_chunks_exact_mut(picture).zip(files).try_for_each(|(pixels, file)| {
                let image = image::open(file).map_err(|error| Error::format(file, error.to_string()))?.into_rgb8();
                let found = MapSize { height: image.height() as usize, width: image.width() as usize };
                if found != self.size {
                    let reason =
                        format!("it is {found} pixels, the first picture {}; all must have one size", self.size);
                    return Err(Error::format(file, reason));
                }
                pixels.copy_from_slice(image.as_raw());
                Ok(())
            })?;
            take(&pixels)?;
        }
        Ok(())
    }
}

/// A data set brought to a size as it is for training.
#[derive(Clone)]
pub struct DataPictures {
    source: Arc<dyn PictureSource>,
    shape: PictureShape,
    labels: Vec<usize>,
    mirrored: bool,
}

impl DataPictures {
    /// All pictures of `source`.
    pub fn new(source: Arc<dyn PictureSource>, shape: PictureShape) -> Self {
        let labels = (0..source.len()).map(|index| source.label(index)).collect();
        Self { source, shape, labels, mirrored: false }
    }

    /// Their mirror images.
    #[must_use]
    pub fn mirrored(&self) -> Self {
        Self { mirrored: !self.mirrored, ..self.clone() }
    }
}

impl PictureSet for DataPictures {
    fn describe(&self) -> String {
        let path = self.source.path().display();
        if self.mirrored { format!("{path}, mirrored") } else { path.to_string() }
    }

    fn identity(&self) -> Result<String> {
        Ok(format!("{}, mirrored: {}", self.source.fingerprint(), self.mirrored))
    }

    fn channels(&self) -> usize {
        self.shape.channels
    }

    fn count(&self) -> usize {
        self.source.len()
    }

    fn size(&self) -> MapSize {
        MapSize { height: self.shape.height, width: self.shape.width }
    }

    fn labels(&self) -> Option<&[usize]> {
        Some(&self.labels)
    }

    fn read(&mut self, first: usize, batch: usize, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let all: Vec<usize> = (first..self.source.len()).collect();
        let (area, elements) = (self.shape.height * self.shape.width, self.shape.elements());
        for indices in all.chunks(batch) {
            let mut pixels = vec![0; indices.len() * area * 3];
            pixels.par_chunks_exact_mut(area * 3).zip(indices).try_for_each(|(pixels, index)| {
                let mut planes = vec![0.0; elements];
                self.source.load(*index, self.shape, View::Fixed { mirrored: self.mirrored }, &mut planes)?;
                for (place, pixel) in pixels.chunks_exact_mut(3).enumerate() {
                    for (channel, value) in pixel.iter_mut().enumerate() {
                        *value = to_byte(planes[channel % self.shape.channels * area + place]);
                    }
                }
                Ok::<_, Error>(())
            })?;
            take(&pixels)?;
        }
        Ok(())
    }
}

/// Changes with the names, lengths and times of files: what is in them is too much to read for this.
fn files<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Result<String> {
    let mut print = Fingerprint::new();
    for path in paths {
        let about = std::fs::metadata(path).map_err(Error::io("read", path))?;
        let modified = about.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let name = path.to_string_lossy();
        print = print.field(name.as_bytes()).field(format!("{} {modified:?}", about.len()).as_bytes());
    }
    Ok(print.finish())
}

/// A value in `[-1, 1]` as a file has it.
fn to_byte(value: f32) -> u8 {
    ((value + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};

    use super::*;
    use crate::grid::write_png;

    fn read(set: &mut dyn PictureSet, first: usize, batch: usize) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        set.read(first, batch, &mut |pixels| {
            all.extend(pixels);
            Ok(())
        })?;
        Ok(all)
    }

    #[test]
    fn a_folder_is_read_in_the_order_of_names() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("b")).unwrap();
        for (name, shade) in [("b/2.png", 3), ("a.png", 1), ("b/1.PNG", 2)] {
            let picture = RgbImage::from_pixel(2, 1, Rgb([shade, 0, 9]));
            write_png(folder.path().join(name), &picture).unwrap();
        }
        std::fs::write(folder.path().join("notes.txt"), "no picture").unwrap();
        let mut set = PngFolder::open(folder.path()).unwrap();
        assert_eq!((set.count(), set.size()), (3, MapSize { height: 1, width: 2 }));
        let shades = |pixels: Vec<u8>| pixels.into_iter().step_by(6).collect::<Vec<u8>>();
        assert_eq!(shades(read(&mut set, 0, 2).unwrap()), [1, 2, 3]);
        assert_eq!(shades(read(&mut set, 2, 5).unwrap()), [3]);
        assert_eq!(shades(set.pick(&[0, 2, 2]).unwrap()), [1, 3, 3]);
        assert!(set.pick(&[]).unwrap().is_empty(), "none");
    }

    #[test]
    fn pictures_of_another_size_are_named() {
        let folder = tempfile::tempdir().unwrap();
        write_png(folder.path().join("a.png"), &RgbImage::new(4, 4)).unwrap();
        write_png(folder.path().join("b.png"), &RgbImage::new(4, 5)).unwrap();
        let mut set = PngFolder::open(folder.path()).unwrap();
        let error = read(&mut set, 0, 9).unwrap_err().to_string();
        assert!(error.contains("b.png") && error.contains("one size"), "{error}");
        std::fs::write(folder.path().join("b.png"), b"not a picture").unwrap();
        assert!(read(&mut set, 0, 9).unwrap_err().to_string().contains("b.png"));
        let empty = tempfile::tempdir().unwrap();
        assert!(PngFolder::open(empty.path()).unwrap_err().to_string().contains("no PNG file"));
    }
}
