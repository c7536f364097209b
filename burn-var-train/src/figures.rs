//! The figures of a generator of pictures: does it show what was asked for, how near is it to the real pictures as a
//! whole, and does it merely repeat the ones it was trained on.

use burn::tensor::{Device, Tensor, TensorData};
use burn_var::classifier::{Classifier, Judgement};
use burn_var::metrics::{FeatureStats, NearCopies, NeighbourIndex, frechet_distance};
use serde::Serialize;

use crate::data::{BatchLoader, View};
use crate::{Error, Result};

/// Pictures judged at a time.
const BATCH: usize = 250;

/// Generated pictures, and as many real ones, that are compared with all training pictures.
const COMPARED: usize = 1000;

/// Pictures and a classifier's judgement of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Collection {
    /// In `[-1, 1]` in 256 steps, as a file has them; one after the other, `[pictures, channels * height * width]`.
    pub pixels: Vec<f32>,
    /// Features and classes.
    pub judgement: Judgement,
}

impl Collection {
    /// Adds a batch `[batch, channels, height, width]` in `[-1, 1]`, one label a picture, rounded as a file would be.
    ///
    /// # Errors
    /// If shape or labels do not fit, or the device fails. Nothing is added then.
    pub fn add(&mut self, classifier: &Classifier, images: Tensor<4>, labels: &[usize]) -> Result<()> {
        let (shape, device) = (images.dims(), images.device());
        let mut pixels = images.try_into_vec_as::<f32>().map_err(burn_var::Error::device("read pictures"))?;
        pixels.iter_mut().for_each(|x| *x = ((*x + 1.0) * 127.5).round().clamp(0.0, 255.0) / 127.5 - 1.0);
        let images = Tensor::from_data(TensorData::new(pixels.clone(), shape), &device);
        self.judgement.add(classifier, images, labels)?;
        self.pixels.extend(pixels);
        Ok(())
    }

    /// Adds all pictures of a data set, each as it is or mirrored.
    ///
    /// # Errors
    /// If a picture cannot be read, or has another shape than the classifier takes.
    pub fn add_all(
        &mut self,
        classifier: &Classifier,
        loader: &BatchLoader,
        mirrored: bool,
        device: &Device,
    ) -> Result<()> {
        let all: Vec<usize> = (0..loader.source().len()).collect();
        for indices in all.chunks(BATCH) {
            let batch = loader.load(indices, View::Fixed { mirrored }, device)?;
            self.add(classifier, batch.images, &batch.labels)?;
        }
        Ok(())
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.judgement.labels.len()
    }

    /// Whether there is no picture.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The figures of one generator.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// How many pictures were generated.
    pub generated: usize,
    /// Share of generated pictures in which the classifier sees the class that was asked for.
    pub recognised: f64,
    /// The same share of the test pictures: what is possible.
    pub recognised_test: f64,
    /// Frechet distance of generated to test pictures, in the classifier's features.
    pub frechet: f64,
    /// Frechet distance of as many training pictures to the test pictures: what is possible.
    pub frechet_floor: f64,
    /// Near copies of training pictures, by distance of pixels.
    pub copies_in_pixels: Copies,
    /// Near copies of training pictures, by distance of the classifier's features.
    pub copies_in_features: Copies,
}

/// Shares of near copies of training pictures; see [`NearCopies`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Copies {
    /// Among generated pictures.
    pub generated: f64,
    /// Among test pictures, which nobody copied.
    pub test: f64,
    /// How many of each were compared.
    pub compared: usize,
    /// The closeness below which a picture counts.
    pub threshold: f64,
}

/// Real pictures to measure a generator by.
#[derive(Debug, Clone, Copy)]
pub struct Real<'a> {
    /// What it was trained on; `mirror` if it saw them mirrored too, so that a mirrored copy counts.
    pub train: &'a BatchLoader,
    /// See `train`.
    pub mirror: bool,
    /// What it was not trained on.
    pub test: &'a BatchLoader,
}

/// Measures generated pictures, in equal parts by class, against real ones.
///
/// Of the test pictures, 1,000 at even distances are compared with generated ones for copies; the others say what
/// counts as one.
///
/// # Errors
/// With fewer than 2 generated pictures, or too few test pictures to compare (1,100 are needed); or if pictures cannot
/// be read.
pub fn figures(classifier: &Classifier, generated: &Collection, real: Real<'_>, device: &Device) -> Result<Figures> {
    let (mut train, mut test) = (Collection::default(), Collection::default());
    train.add_all(classifier, real.train, false, device)?;
    test.add_all(classifier, real.test, false, device)?;
    let dim = classifier.config().features();
    let gaussian = |features: &[f32]| {
        let mut stats = FeatureStats::new(dim);
        stats.push(features)?;
        stats.gaussian()
    };
    let test_gaussian = gaussian(&test.judgement.features)?;
    let as_many = &train.judgement.features[..train.len().min(generated.len()) * dim];
    let frechet = frechet_distance(&gaussian(&generated.judgement.features)?, &test_gaussian)?;
    let frechet_floor = frechet_distance(&gaussian(as_many)?, &test_gaussian)?;
    if real.mirror {
        train.add_all(classifier, real.train, true, device)?;
    }
    let by = |rows: fn(&Collection) -> &[f32]| copies(rows(&train), rows(generated), rows(&test), test.len(), device);
    Ok(Figures {
        generated: generated.len(),
        recognised: generated.judgement.accuracy(),
        recognised_test: test.judgement.accuracy(),
        frechet,
        frechet_floor,
        copies_in_pixels: by(|pictures| &pictures.pixels)?,
        copies_in_features: by(|pictures| &pictures.judgement.features)?,
    })
}

fn copies(train: &[f32], generated: &[f32], test: &[f32], tests: usize, device: &Device) -> Result<Copies> {
    if tests <= COMPARED {
        let expected = format!("more than {COMPARED}: as many are compared, the others say what a near copy is");
        return Err(Error::config("number of test pictures", tests, expected));
    }
    let dim = test.len() / tests;
    let (test, others) = spread(test, dim);
    let (generated, _) = spread(generated, dim);
    let index = NeighbourIndex::new(train, dim, device)?;
    let nearest = |rows: &[f32]| index.nearest(rows, NearCopies::NEIGHBOURS.min(train.len() / dim));
    let near = NearCopies::calibrate(&nearest(&others)?)?;
    let compared = generated.len() / dim;
    Ok(Copies {
        generated: near.share(&nearest(&generated)?),
        test: near.share(&nearest(&test)?),
        compared,
        threshold: near.threshold,
    })
}

/// [`COMPARED`] rows at even distances, and all others: even, since pictures may be sorted by class.
fn spread(rows: &[f32], dim: usize) -> (Vec<f32>, Vec<f32>) {
    let count = rows.len() / dim;
    let (mut chosen, mut others) = (Vec::new(), Vec::new());
    for (i, row) in rows.chunks_exact(dim).enumerate() {
        // Row i is chosen where i * COMPARED / count rises above what it was for the row before.
        let is_chosen = count <= COMPARED || i == 0 || i * COMPARED / count != (i - 1) * COMPARED / count;
        if is_chosen { &mut chosen } else { &mut others }.extend(row);
    }
    (chosen, others)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use burn_var::classifier::ClassifierConfig;
    use burn_var::rng::Rng;

    use super::*;
    use crate::data::{PictureShape, PictureSource};

    /// Noise of 8x8 pixels, another one for each name.
    struct Noise(&'static str, usize);

    impl PictureSource for Noise {
        fn len(&self) -> usize {
            self.1
        }

        fn class_names(&self) -> &[String] {
            &[]
        }

        fn label(&self, index: usize) -> usize {
            index % 2
        }

        fn load(&self, index: usize, _: PictureShape, view: View, out: &mut [f32]) -> Result<()> {
            let mut rng = Rng::new(7, self.0, index as u64);
            out.iter_mut().for_each(|x| *x = rng.uniform() as f32 * 2.0 - 1.0);
            if matches!(view, View::Fixed { mirrored: true }) {
                out.chunks_mut(8).for_each(<[f32]>::reverse);
            }
            Ok(())
        }

        fn describe(&self, index: usize) -> String {
            format!("noise {index}")
        }

        fn path(&self) -> &Path {
            Path::new("noise")
        }

        fn fingerprint(&self) -> String {
            self.0.to_owned()
        }
    }

    fn loader(name: &'static str, count: usize) -> BatchLoader {
        BatchLoader::new(Arc::new(Noise(name, count)), PictureShape::new(8, 8, 1).expect("valid"))
    }

    fn classifier() -> Classifier {
        let config = ClassifierConfig { image_channels: 1, image_size: [8, 8], classes: 2, ch: 32 };
        config.init(1, &Device::default()).expect("valid")
    }

    #[test]
    fn tells_strangers_from_copies_and_mirrored_copies() {
        let (device, classifier) = (Device::default(), classifier());
        let (train, test) = (loader("train", 300), loader("test", 1500));
        let measure = |loader: &BatchLoader, mirrored: bool| {
            let mut generated = Collection::default();
            generated.add_all(&classifier, loader, mirrored, &device).expect("readable");
            let real = Real { train: &train, mirror: true, test: &test };
            figures(&classifier, &generated, real, &device).expect("enough pictures")
        };
        let strangers = measure(&loader("strangers", 300), false);
        assert_eq!((strangers.generated, strangers.copies_in_pixels.compared), (300, 300), "all were compared");
        assert!(strangers.copies_in_pixels.generated < 0.05, "{:?}", strangers.copies_in_pixels);
        assert!(strangers.copies_in_pixels.test < 0.05, "{:?}", strangers.copies_in_pixels);
        for mirrored in [false, true] {
            let copies = measure(&train, mirrored);
            assert_eq!(copies.copies_in_pixels.generated, 1.0, "mirrored {mirrored}: {:?}", copies.copies_in_pixels);
            assert_eq!(
                copies.copies_in_features.generated, 1.0,
                "mirrored {mirrored}: {:?}",
                copies.copies_in_features
            );
        }
        let copies = measure(&train, false);
        assert_eq!(copies.frechet, copies.frechet_floor, "the training pictures themselves are at the floor");
    }

    #[test]
    fn chooses_rows_evenly() {
        let rows: Vec<f32> = (0..2 * 2500).map(|i| (i / 2) as f32).collect();
        let (chosen, others) = spread(&rows, 2);
        assert_eq!((chosen.len(), others.len()), (2 * 1000, 2 * 1500), "all rows, each once");
        assert!(chosen[..2 * 500].iter().all(|x| *x < 1250.0), "half of them from the first half");
        assert_eq!(spread(&rows[..20], 2).0, rows[..20], "few rows are all chosen");
    }

    #[test]
    fn too_few_test_pictures_are_named() {
        let (device, classifier) = (Device::default(), classifier());
        let mut generated = Collection::default();
        generated.add_all(&classifier, &loader("some", 9), false, &device).expect("readable");
        let (train, test) = (loader("train", 60), loader("test", 1000));
        let real = Real { train: &train, mirror: false, test: &test };
        let message = figures(&classifier, &generated, real, &device).expect_err("too few").to_string();
        assert!(message.contains("number of test pictures"), "{message}");
    }
}
