use std::path::Path;
use std::sync::Arc;

use super::{Fingerprint, ImageShape, ImageSource, SkippedImage, View};
use crate::{Error, Result};

/// Some images of a source.
#[derive(Clone)]
pub struct Part {
    source: Arc<dyn ImageSource>,
    numbers: Vec<usize>,
}

impl Part {
    /// One image in this many is for validation.
    const ONE_IN: usize = 10;

    /// Creates a source of the images with these numbers, in this order.
    ///
    /// # Errors
    /// [`Error::Config`] without an image.
    ///
    /// # Panics
    /// If a number is not below the number of images.
    pub fn new(source: Arc<dyn ImageSource>, numbers: Vec<usize>) -> Result<Self> {
        assert!(numbers.iter().all(|number| *number < source.len()), "images {numbers:?} of {}", source.len());
        match numbers.is_empty() {
            true => Err(Error::config("images", 0, "at least one image")),
            false => Ok(Self { source, numbers }),
        }
    }

    /// Splits training images into those for validation, every tenth one, and the others. Which images these are does not
    /// depend on a seed, so that settings chosen by them in different runs never saw the others.
    ///
    /// # Errors
    /// [`Error::Config`] with fewer than 10 images.
    pub fn validation(train: &Arc<dyn ImageSource>) -> Result<[Self; 2]> {
        if train.len() < Self::ONE_IN {
            let expected = format!("at least {}: one in {} is for validation", Self::ONE_IN, Self::ONE_IN);
            return Err(Error::config("number of training images", train.len(), expected));
        }
        let (held_out, others): (Vec<usize>, Vec<usize>) =
            (0..train.len()).partition(|number| number % Self::ONE_IN == Self::ONE_IN - 1);
        Ok([Self::new(train.clone(), held_out)?, Self::new(train.clone(), others)?])
    }
}

impl ImageSource for Part {
    fn len(&self) -> usize {
        self.numbers.len()
    }

    fn class_names(&self) -> &[String] {
        self.source.class_names()
    }

    fn label(&self, index: usize) -> usize {
        self.source.label(self.numbers[index])
    }

    fn load(&self, index: usize, shape: ImageShape, view: View, out: &mut [f32]) -> Result<()> {
        self.source.load(self.numbers[index], shape, view, out)
    }

    fn describe(&self, index: usize) -> String {
        self.source.describe(self.numbers[index])
    }

    fn path(&self) -> &Path {
        self.source.path()
    }

    fn fingerprint(&self) -> String {
        let numbers: Vec<u8> = self.numbers.iter().flat_map(|number| (*number as u64).to_le_bytes()).collect();
        Fingerprint::new().field(self.source.fingerprint().as_bytes()).field(&numbers).finish()
    }

    fn fingerprint_like(&self, _recorded: &str) -> Result<String> {
        Ok(self.fingerprint())
    }

    fn skipped(&self) -> &[SkippedImage] {
        self.source.skipped()
    }

    fn ignored(&self) -> usize {
        self.source.ignored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{ImageOptions, Split, open_images};

    #[test]
    fn every_tenth_image_is_for_validation() {
        let folder = tempfile::tempdir().unwrap();
        for (name, class) in (0..23).map(|i| (format!("{i:02}.png"), i % 2)) {
            let at = folder.path().join(class.to_string());
            std::fs::create_dir_all(&at).unwrap();
            image::RgbImage::new(4, 4).save(at.join(name)).unwrap();
        }
        let options = ImageOptions { holdout: 0.0, ..Default::default() };
        let source = open_images(folder.path(), Split::Train, &options).unwrap();
        let [held_out, others] = Part::validation(&source).unwrap();
        assert_eq!((held_out.len(), others.len()), (2, 21));
        assert_eq!(held_out.describe(1), source.describe(19), "the twentieth");
        assert_eq!((others.describe(9), others.label(9)), (source.describe(10), source.label(10)));
        assert_ne!(held_out.fingerprint(), others.fingerprint(), "other images of one source");
        let few: Arc<dyn ImageSource> = Arc::new(Part::new(source, (0..9).collect()).unwrap());
        let message = Part::validation(&few).err().expect("too few").to_string();
        assert!(message.contains("is 9, expected at least 10"), "{message}");
    }
}
