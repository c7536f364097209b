use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

use super::{BatchOrder, PictureShape, PictureSource, View};
use crate::{Error, Result};

/// How many batches wait, loaded, while the device computes.
const PREFETCH: usize = 2;

/// Pictures on a device, with their classes.
#[derive(Debug, Clone)]
pub struct PictureBatch {
    /// Shape `[batch, channels, height, width]`, black as -1 and white as 1.
    pub images: Tensor<4>,
    /// The class of each picture.
    pub labels: Vec<usize>,
}

/// Loads pictures of a source in batches, on all cores.
#[derive(Clone)]
pub struct BatchLoader {
    source: Arc<dyn PictureSource>,
    shape: PictureShape,
}

impl BatchLoader {
    /// Loads pictures of `source`, brought to `shape`.
    pub fn new(source: Arc<dyn PictureSource>, shape: PictureShape) -> Self {
        Self { source, shape }
    }

    /// Where the pictures come from.
    pub fn source(&self) -> &Arc<dyn PictureSource> {
        &self.source
    }

    /// The shape of the pictures.
    pub fn shape(&self) -> PictureShape {
        self.shape
    }

    /// The pictures of the given numbers, in that order.
    ///
    /// # Errors
    /// As [`PictureSource::load`].
    ///
    /// # Panics
    /// If an index is not below the number of pictures.
    pub fn load(&self, indices: &[usize], view: View, device: &Device) -> Result<PictureBatch> {
        Ok(self.read(indices, view)?.upload(self.shape, device))
    }

    /// The batches of `order` from step `from` on, without end, loaded on a thread of their own while the last one is
    /// at work. Pictures get random views, the seed of which is `seed`; half of them mirrored if `mirror` is true.
    ///
    /// # Errors
    /// [`Error::Io`] if the system has no thread to give.
    pub fn prefetch(
        &self,
        mut order: BatchOrder,
        from: usize,
        (seed, mirror): (u64, bool),
        device: &Device,
    ) -> Result<PrefetchedBatches> {
        let (sender, receiver) = sync_channel(PREFETCH);
        let loader = self.clone();
        let work = move || {
            for step in from.. {
                let view = View::Random { seed, epoch: order.epoch(step), mirror };
                let batch = loader.read(&order.batch(step), view);
                let failed = batch.is_err();
                // Nobody listens any more: the training has ended.
                if sender.send(batch).is_err() || failed {
                    return;
                }
            }
        };
        let failure = Error::io("start a thread to load", PathBuf::from(self.source.path()));
        std::thread::Builder::new().name("pictures".to_owned()).spawn(work).map_err(failure)?;
        Ok(PrefetchedBatches { receiver, shape: self.shape, device: device.clone() })
    }

    fn read(&self, indices: &[usize], view: View) -> Result<HostBatch> {
        let elements = self.shape.elements();
        let mut pixels = vec![0.0; indices.len() * elements];
        pixels
            .par_chunks_exact_mut(elements)
            .zip(indices)
            .try_for_each(|(out, &index)| self.source.load(index, self.shape, view, out))?;
        Ok(HostBatch { pixels, labels: indices.iter().map(|&index| self.source.label(index)).collect() })
    }
}

impl std::fmt::Debug for BatchLoader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BatchLoader").field("source", &self.source.path()).field("shape", &self.shape).finish()
    }
}

/// Batches that a thread loads ahead; it ends when this is dropped.
///
/// After an error, the iterator ends.
#[derive(Debug)]
pub struct PrefetchedBatches {
    receiver: Receiver<Result<HostBatch>>,
    shape: PictureShape,
    device: Device,
}

impl Iterator for PrefetchedBatches {
    type Item = Result<PictureBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.receiver.recv().ok()?;
        Some(batch.map(|batch| batch.upload(self.shape, &self.device)))
    }
}

/// A batch that is not on the device yet.
#[derive(Debug)]
struct HostBatch {
    pixels: Vec<f32>,
    labels: Vec<usize>,
}

impl HostBatch {
    fn upload(self, shape: PictureShape, device: &Device) -> PictureBatch {
        let dims = [self.labels.len(), shape.channels, shape.height, shape.width];
        PictureBatch { images: Tensor::from_data(TensorData::new(self.pixels, dims), device), labels: self.labels }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Pictures whose every pixel tells the index, the view's mirroring and the position; `broken` fails.
    struct Fake {
        broken: Option<usize>,
    }

    impl PictureSource for Fake {
        fn len(&self) -> usize {
            17
        }

        fn class_names(&self) -> &[String] {
            &[]
        }

        fn label(&self, index: usize) -> usize {
            index % 5
        }

        fn load(&self, index: usize, _: PictureShape, view: View, out: &mut [f32]) -> Result<()> {
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
        BatchLoader::new(Arc::new(Fake { broken }), PictureShape::new(2, 5, 3).unwrap())
    }

    fn values(batch: &PictureBatch) -> Vec<f32> {
        batch.images.to_data().try_to_vec().unwrap()
    }

    #[test]
    fn a_batch_keeps_the_order_asked_for() {
        let batch = loader(None).load(&[13, 2, 13], View::Fixed { mirrored: true }, &Device::flex()).unwrap();
        assert_eq!(batch.images.dims(), [3, 3, 2, 5], "batch, channels, height, width");
        assert_eq!(batch.labels, [3, 2, 3], "labels");
        let values = values(&batch);
        assert_eq!([values[0], values[30], values[60]], [13441.0, 2441.0, 13441.0], "first pixels");
        assert!((values[59] - 2441.29).abs() < 1e-3, "the last pixel of the second picture: {}", values[59]);
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
        let mut ahead = loader.prefetch(order.clone(), 3, (6, true), &device).unwrap();
        for step in 3..10 {
            let batch = ahead.next().unwrap().unwrap();
            let view = View::Random { seed: 6, epoch: step / 4, mirror: true };
            let expected = loader.load(&order.batch(step), view, &device).unwrap();
            assert_eq!(batch.labels, expected.labels, "labels of step {step}");
            assert_eq!(values(&batch), values(&expected), "pictures of step {step}");
        }
    }

    #[test]
    fn an_error_comes_through_and_ends_the_batches() {
        let mut ahead = loader(Some(7)).prefetch(BatchOrder::new(17, 17, 0).unwrap(), 0, (0, false), &Device::flex());
        let message = ahead.as_mut().unwrap().next().unwrap().unwrap_err().to_string();
        assert!(message.contains("fake 7"), "names the picture: {message}");
        assert!(ahead.unwrap().next().is_none(), "nothing follows");
    }
}
