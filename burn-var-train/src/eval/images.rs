//! Sets of 8-bit images to evaluate, read in order, a batch at a time.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use burn_var::MapSize;
use rayon::prelude::*;

use super::SampleFile;
use crate::data::{Fingerprint, ImageShape, ImageSource, View};
use crate::{Error, Result};

/// A set of images of one size, in an order that never changes.
pub trait ImageSet {
    /// Returns a description for reports.
    fn describe(&self) -> String;

    /// Returns a string that changes with the images. Saved features belong to the images with the same identity.
    ///
    /// # Errors
    /// If the images cannot be inspected.
    fn identity(&self) -> Result<String> {
        Ok(self.describe())
    }

    /// Returns the number of images, at least 1.
    fn count(&self) -> usize;

    /// Returns the size of the images.
    fn size(&self) -> MapSize;

    /// Returns 3, or 1 for grey images, whose red, green and blue are equal.
    fn channels(&self) -> usize {
        3
    }

    /// Returns the class labels, one per image, where they are known.
    fn labels(&self) -> Option<&[usize]>;

    /// Reads the images with these numbers, and calls `take` with at most `batch` at a time: red, green and blue bytes, row
    /// by row, image by image.
    ///
    /// # Errors
    /// If an image cannot be read, and the errors of `take`.
    fn read(&mut self, numbers: Range<usize>, batch: usize, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;

    /// Reads the images with these numbers, in ascending order; a number may repeat.
    ///
    /// # Errors
    /// If an image cannot be read.
    ///
    /// # Panics
    /// If a number is not below [`ImageSet::count`].
    fn pick(&mut self, numbers: &[usize]) -> Result<Vec<u8>> {
        assert!(numbers.last().is_none_or(|last| *last < self.count()), "image {numbers:?} of {}", self.count());
        let image_bytes = 3 * self.size().area();
        let (mut at, mut found) = (0, Vec::new());
        let mut wanted = numbers.iter().copied().peekable();
        self.read(0..self.count(), PICK_BATCH, &mut |pixels| {
            for pixels in pixels.chunks_exact(image_bytes) {
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

/// Images read at a time to pick some.
const PICK_BATCH: usize = 64;

impl ImageSet for SampleFile {
    fn describe(&self) -> String {
        self.path().display().to_string()
    }

    fn identity(&self) -> Result<String> {
        file_identity([self.path()])
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

    fn read(&mut self, numbers: Range<usize>, batch: usize, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        SampleFile::read(self, numbers, batch, take)
    }
}

/// A folder of PNG files of one size, sorted by name. Sub-folders are included, and are not classes.
///
/// Only PNG is read: lossy formats would change the measures.
#[derive(Debug)]
pub struct PngFolder {
    folder: PathBuf,
    files: Vec<PathBuf>,
    size: MapSize,
}

impl PngFolder {
    /// Lists a folder, and reads the size of its first image.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; [`Error::Format`] if it holds no PNG file, or the first cannot be read.
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

impl ImageSet for PngFolder {
    fn describe(&self) -> String {
        self.folder.display().to_string()
    }

    fn identity(&self) -> Result<String> {
        file_identity(self.files.iter().map(PathBuf::as_path))
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

    fn read(&mut self, numbers: Range<usize>, batch: usize, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let image_bytes = 3 * self.size.area();
        for files in self.files[numbers].chunks(batch) {
            let mut pixels = vec![0; files.len() * image_bytes];
            pixels.par_chunks_exact_mut(image_bytes).zip(files).try_for_each(|(pixels, file)| {
                let image = image::open(file).map_err(|error| Error::format(file, error.to_string()))?.into_rgb8();
                let found = MapSize { height: image.height() as usize, width: image.width() as usize };
                if found != self.size {
                    let reason = format!("{found} pixels, expected one size for all images: {}", self.size);
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

/// The images of a data set, resized and cropped as for training.
#[derive(Clone)]
pub struct DataImages {
    source: Arc<dyn ImageSource>,
    shape: ImageShape,
    labels: Vec<usize>,
    mirrored: bool,
}

impl DataImages {
    /// Creates a set of all images of `source`.
    pub fn new(source: Arc<dyn ImageSource>, shape: ImageShape) -> Self {
        let labels = (0..source.len()).map(|index| source.label(index)).collect();
        Self { source, shape, labels, mirrored: false }
    }

    /// Returns the set with every image mirrored.
    #[must_use]
    pub fn mirrored(&self) -> Self {
        Self { mirrored: !self.mirrored, ..self.clone() }
    }
}

impl ImageSet for DataImages {
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

    fn read(&mut self, numbers: Range<usize>, batch: usize, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let all: Vec<usize> = numbers.collect();
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

/// Returns a fingerprint of the names, lengths and times of files; their content would take too long to read.
fn file_identity<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Result<String> {
    let mut print = Fingerprint::new();
    for path in paths {
        let about = std::fs::metadata(path).map_err(Error::io("read", path))?;
        let modified = about.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let name = path.to_string_lossy();
        print = print.field(name.as_bytes()).field(format!("{} {modified:?}", about.len()).as_bytes());
    }
    Ok(print.finish())
}

/// Converts a value in `[-1, 1]` to a byte.
fn to_byte(value: f32) -> u8 {
    ((value + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};

    use super::*;
    use crate::grid::write_png;

    fn read(set: &mut dyn ImageSet, numbers: Range<usize>, batch: usize) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        set.read(numbers, batch, &mut |pixels| {
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
            let image = RgbImage::from_pixel(2, 1, Rgb([shade, 0, 9]));
            write_png(folder.path().join(name), &image).unwrap();
        }
        std::fs::write(folder.path().join("notes.txt"), "not an image").unwrap();
        let mut set = PngFolder::open(folder.path()).unwrap();
        assert_eq!((set.count(), set.size()), (3, MapSize { height: 1, width: 2 }));
        let shades = |pixels: Vec<u8>| pixels.into_iter().step_by(6).collect::<Vec<u8>>();
        assert_eq!(shades(read(&mut set, 0..3, 2).unwrap()), [1, 2, 3]);
        assert_eq!(shades(read(&mut set, 2..3, 5).unwrap()), [3]);
        assert_eq!(shades(read(&mut set, 0..2, 5).unwrap()), [1, 2], "not beyond the end");
        assert_eq!(shades(set.pick(&[0, 2, 2]).unwrap()), [1, 3, 3]);
        assert!(set.pick(&[]).unwrap().is_empty(), "none");
    }

    #[test]
    fn images_of_another_size_are_named() {
        let folder = tempfile::tempdir().unwrap();
        write_png(folder.path().join("a.png"), &RgbImage::new(4, 4)).unwrap();
        write_png(folder.path().join("b.png"), &RgbImage::new(4, 5)).unwrap();
        let mut set = PngFolder::open(folder.path()).unwrap();
        let error = read(&mut set, 0..2, 9).unwrap_err().to_string();
        assert!(error.contains("b.png") && error.contains("one size"), "{error}");
        std::fs::write(folder.path().join("b.png"), b"not an image").unwrap();
        assert!(read(&mut set, 0..2, 9).unwrap_err().to_string().contains("b.png"));
        let empty = tempfile::tempdir().unwrap();
        assert!(PngFolder::open(empty.path()).unwrap_err().to_string().contains("no PNG file"));
    }
}
