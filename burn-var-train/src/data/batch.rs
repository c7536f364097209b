use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

use super::{ImageShape, ImageSource, View};
use crate::{Error, Result};

/// Number of batches that are decoded ahead while the device computes.
const PREFETCH: usize = 2;

/// Images on a device, with their classes.
#[derive(Debug, Clone)]
pub struct ImageBatch {
    /// Shape `[batch, channels, height, width]`, black as -1 and white as 1.
    pub images: Tensor<4>,
    /// The class of each image.
    pub labels: Vec<usize>,
}

/// Loads images of a source in batches, on all cores.
#[derive(Clone)]
pub struct BatchLoader {
    source: Arc<dyn ImageSource>,
    shape: ImageShape,
}

impl BatchLoader {
    /// Creates a loader of the images of `source`, brought to `shape`.
    pub fn new(source: Arc<dyn ImageSource>, shape: ImageShape) -> Self {
        Self { source, shape }
    }

    /// The source of the images.
    pub fn source(&self) -> &Arc<dyn ImageSource> {
        &self.source
    }

    /// The shape of the images.
    pub fn shape(&self) -> ImageShape {
        self.shape
    }

    /// Loads the images of the given numbers, in that order.
    ///
    /// # Errors
    /// The errors of [`ImageSource::load`].
    ///
    /// # Panics
    /// If an index is not below the number of images.
    pub fn load(&self, indices: &[usize], view: View, device: &Device) -> Result<ImageBatch> {
        Ok(self.read(indices, view)?.upload(device))
    }

    /// Loads batches on a thread of its own, ahead of their use: the numbers of the images and their view.
    ///
    /// # Errors
    /// [`Error::Io`] if the system has no thread to give.
    pub fn prefetch(
        &self,
        batches: impl Iterator<Item = (Vec<usize>, View)> + Send + 'static,
    ) -> Result<PrefetchedBatches> {
        let (sender, receiver) = sync_channel(PREFETCH);
        let loader = self.clone();
        let work = move || {
            for (indices, view) in batches {
                let batch = loader.read(&indices, view);
                let failed = batch.is_err();
                // Nobody listens any more: the training has ended.
                if sender.send(batch).is_err() || failed {
                    return;
                }
            }
        };
        let failure = Error::io("start a thread to load", PathBuf::from(self.source.path()));
        std::thread::Builder::new().name("images".to_owned()).spawn(work).map_err(failure)?;
        Ok(PrefetchedBatches { receiver })
    }

    fn read(&self, indices: &[usize], view: View) -> Result<HostBatch> {
        let elements = self.shape.elements();
        let mut pixels = vec![0.0; indices.len() * elements];
        pixels
            .par_chunks_exact_mut(elements)
            .zip(indices)
            .try_for_each(|(out, &index)| self.source.load(index, self.shape, view, out))?;
        let labels = indices.iter().map(|&index| self.source.label(index)).collect();
        Ok(HostBatch { pixels, labels, shape: self.shape })
    }
}

impl std::fmt::Debug for BatchLoader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BatchLoader").field("source", &self.source.path()).field("shape", &self.shape).finish()
    }
}

/// Batches that a thread loads ahead; the thread ends when this is dropped.
///
/// After an error, the iterator ends.
#[derive(Debug)]
pub struct PrefetchedBatches {
    receiver: Receiver<Result<HostBatch>>,
}

impl Iterator for PrefetchedBatches {
    type Item = Result<HostBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.receiver.recv().ok()
    }
}

/// A batch in the memory of the host.
#[derive(Debug)]
pub struct HostBatch {
    pixels: Vec<f32>,
    labels: Vec<usize>,
    shape: ImageShape,
}

impl HostBatch {
    /// Brings all images to a device.
    pub fn upload(self, device: &Device) -> ImageBatch {
        let ImageShape { height, width, channels } = self.shape;
        let dims = [self.labels.len(), channels, height, width];
        ImageBatch { images: Tensor::from_data(TensorData::new(self.pixels, dims), device), labels: self.labels }
    }

    /// Returns some of the images.
    ///
    /// # Panics
    /// If there are fewer images.
    #[must_use]
    pub fn part(&self, images: Range<usize>) -> Self {
        let elements = self.shape.elements();
        let pixels = self.pixels[images.start * elements..images.end * elements].to_vec();
        Self { pixels, labels: self.labels[images].to_vec(), shape: self.shape }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::BatchOrder;

    /// Images whose every pixel tells the index, the view's mirroring and the position; `broken` fails.
    struct Fake {
        broken: Option<usize>,
    }

    impl ImageSource for Fake {
        fn len(&self) -> usize {
            17
        }

        fn class_names(&self) -> &[String] {
            &[]
        }

        fn label(&self, index: usize) -> usize {
            index % 5
        }

        fn load(&self, index: usize, _: ImageShape, view: View, out: &mut [f32]) -> Result<()> {
            if self.broken == Some(index) {
                return Err(Error::format(self.describe(index), "it is broken"));
            }
            let drawn = view.draw(index);
            let [top, left] = drawn.corner([9, 9]);
            let base = (index * 1000 + top * 100 + left * 10 + usize::from(drawn.mirrored)) as f32;
            out.iter_mut().enumerate().for_each(|(i, value)| *value = base + i as f32 / 100.0);
            Ok(())
        }

        fn describe(&self, index: usize) -> String {
            format!("fake {index}")
        }

        fn path(&self) -> &Path {
            Path::new("fake")
        }

        fn fingerprint(&self) -> String {
            String::new()
        }

        fn fingerprint_like(&self, _recorded: &str) -> Result<String> {
            Ok(self.fingerprint())
        }
    }

    fn loader(broken: Option<usize>) -> BatchLoader {
        BatchLoader::new(Arc::new(Fake { broken }), ImageShape::new(2, 5, 3).unwrap())
    }

    fn values(batch: &ImageBatch) -> Vec<f32> {
        batch.images.to_data().try_to_vec().unwrap()
    }

    #[test]
    fn a_batch_keeps_the_order_asked_for() {
        let batch = loader(None).load(&[13, 2, 13], View::Fixed { mirrored: true }, &Device::flex()).unwrap();
        assert_eq!(batch.images.dims(), [3, 3, 2, 5], "batch, channels, height, width");
        assert_eq!(batch.labels, [3, 2, 3], "labels");
        let values = values(&batch);
        assert_eq!([values[0], values[30], values[60]], [13441.0, 2441.0, 13441.0], "first pixels");
        assert!((values[59] - 2441.29).abs() < 1e-3, "the last pixel of the second image: {}", values[59]);
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let view = View::Random { seed: 5, epoch: 3, mirror: true };
        let load = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let indices: Vec<usize> = (0..17).rev().collect();
            pool.install(|| values(&loader(None).load(&indices, view, &Device::flex()).unwrap()))
        };
        assert_eq!(load(1), load(3), "one and three threads");
    }

    #[test]
    fn prefetched_batches_are_those_of_their_steps() {
        let (device, loader) = (Device::flex(), loader(None));
        let mut order = BatchOrder::new(17, 4, 8).unwrap();
        let view = |step: usize| View::Random { seed: 6, epoch: step / 4, mirror: true };
        let mut ahead_order = order.clone();
        let mut ahead = loader.prefetch((3..).map(move |step| (ahead_order.batch(step), view(step)))).unwrap();
        for step in 3..10 {
            let host = ahead.next().unwrap().unwrap();
            let part = values(&host.part(1..3).upload(&device));
            let batch = host.upload(&device);
            assert_eq!(part, values(&batch)[30..90], "two images of step {step}");
            let view = view(step);
            let expected = loader.load(&order.batch(step), view, &device).unwrap();
            assert_eq!(batch.labels, expected.labels, "labels of step {step}");
            assert_eq!(values(&batch), values(&expected), "images of step {step}");
        }
    }

    #[test]
    fn an_error_comes_through_and_ends_the_batches() {
        let view = View::Fixed { mirrored: false };
        let mut ahead = loader(Some(7)).prefetch([(vec![3, 7], view), (vec![3], view)].into_iter());
        let message = ahead.as_mut().unwrap().next().unwrap().unwrap_err().to_string();
        assert!(message.contains("fake 7"), "names the image: {message}");
        assert!(ahead.unwrap().next().is_none(), "nothing follows");
    }
}
