use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{FolderImages, IdxImages, View};
use crate::{Error, Result};

/// The shape that images are brought to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageShape {
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// 1 (gray) or 3 (red, green, blue).
    pub channels: usize,
}

impl ImageShape {
    /// Creates a shape that a source can deliver.
    ///
    /// # Errors
    /// [`Error::Config`] if a side is 0, or there are neither 1 nor 3 channels.
    pub fn new(height: usize, width: usize, channels: usize) -> Result<Self> {
        if height == 0 || width == 0 {
            return Err(Error::config("image_size", format!("{height}x{width}"), "at least one pixel each way"));
        }
        if ![1, 3].contains(&channels) {
            return Err(Error::config("channels", channels, "1 (grey) or 3 (red, green, blue)"));
        }
        Ok(Self { height, width, channels })
    }

    /// Numbers that one image takes.
    pub fn elements(self) -> usize {
        self.channels * self.height * self.width
    }
}

/// A part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Images to train on.
    Train,
    /// Images to measure on, never trained on.
    Test,
}

impl std::fmt::Display for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Split::Train => "train",
            Split::Test => "test",
        })
    }
}

/// An image that was left out since it cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedImage {
    /// The file.
    pub path: PathBuf,
    /// The reason.
    pub reason: String,
}

/// Labelled images in an order that never changes.
#[allow(clippy::len_without_is_empty, reason = "no source without an image can be opened")]
pub trait ImageSource: Send + Sync {
    /// Number of images, at least 1.
    fn len(&self) -> usize;

    /// The names of the classes; a label is an index into these.
    fn class_names(&self) -> &[String];

    /// The class of image `index`.
    ///
    /// # Panics
    /// If `index` is not below [`ImageSource::len`].
    fn label(&self, index: usize) -> usize;

    /// Decodes image `index` into `out`, channel by channel and row by row, black as -1 and white as 1.
    ///
    /// # Errors
    /// If the image cannot be read or brought to the shape.
    ///
    /// # Panics
    /// If `index` is not below [`ImageSource::len`], or `out` does not hold [`ImageShape::elements`] numbers.
    fn load(&self, index: usize, shape: ImageShape, view: View, out: &mut [f32]) -> Result<()>;

    /// The name of image `index` for messages.
    fn describe(&self, index: usize) -> String;

    /// The folder of the images.
    fn path(&self) -> &Path;

    /// The [`Fingerprint`](super::Fingerprint) of images and labels, and of the steps before a crop. Of a folder it covers names,
    /// lengths and labels of the files; of IDX files, all pixels.
    fn fingerprint(&self) -> String;

    /// The fingerprint that a run is resumed by. Of a folder it covers names and labels of the files, not their lengths: a
    /// broken image can be replaced during a run.
    fn run_fingerprint(&self) -> String {
        self.fingerprint()
    }

    /// Returns the fingerprint by the rules of the version that made `recorded`: of earlier versions, FNV-1a, and for a
    /// folder over the content of the files.
    ///
    /// # Errors
    /// If images must be read for it and cannot be.
    fn fingerprint_like(&self, recorded: &str) -> Result<String>;

    /// Broken images that were left out.
    fn skipped(&self) -> &[SkippedImage] {
        &[]
    }

    /// Number of files that are not images and were ignored.
    fn ignored(&self) -> usize {
        0
    }
}

/// Options for opening a set of images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageOptions {
    /// Names of the classes, in the order of the labels, instead of the folders' names or numbers.
    pub class_names: Option<Vec<String>>,
    /// Folders: an image is resized to this many times the crop, at least 1. VAR uses 1.125.
    pub resize_ratio: f64,
    /// Folders without a `test` or `val` folder: the share of each class that is kept for testing, in [0, 1).
    pub holdout: f64,
    /// Folders: seed of the choice of test images.
    pub seed: u64,
    /// Folders: decodes every image when the folder is opened and leaves broken ones out. Without it only the names are
    /// read at the start, and a broken image is an error when its turn comes.
    pub check: bool,
    /// Folders: checks every image when the folder is opened, and refuses broken ones.
    pub strict: bool,
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self { class_names: None, resize_ratio: 1.125, holdout: 0.1, seed: 0, check: false, strict: false }
    }
}

/// Opens IDX files or a folder with one sub-folder per class, whichever `path` holds.
///
/// # Errors
/// If nothing usable is there; the message names the file and what is wrong with it. See [`IdxImages::open`] and
/// [`FolderImages::open`].
pub fn open_images(path: &Path, split: Split, options: &ImageOptions) -> Result<Arc<dyn ImageSource>> {
    if !path.is_dir() {
        let expected = "a folder of IDX files, or a folder with one sub-folder per class";
        return Err(Error::config("data", path.display(), expected));
    }
    if IdxImages::found_in(path) {
        Ok(Arc::new(IdxImages::open(path, split, options)?))
    } else {
        Ok(Arc::new(FolderImages::open(path, split, options)?))
    }
}
