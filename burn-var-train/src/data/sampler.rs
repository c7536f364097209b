use super::random::{Purpose, keyed};
use crate::{Error, Result};

/// The images of each step: every epoch is a random order of all of them, cut into batches.
///
/// The incomplete batch at the end of an epoch is dropped. The images of a step depend on the seed and the number of
/// the step alone, so a resumed run needs only that number.
///
/// ```
/// # fn main() -> burn_var_train::Result<()> {
/// use burn_var_train::data::BatchOrder;
/// let mut order = BatchOrder::new(7, 3, 42)?;
/// assert_eq!(order.steps_per_epoch(), 2);
/// assert_eq!(order.batch(1_000_001), BatchOrder::new(7, 3, 42)?.batch(1_000_001));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct BatchOrder {
    len: usize,
    batch: usize,
    seed: u64,
    /// The last epoch asked for, so that its order is drawn once and not in every step.
    current: Option<(usize, Vec<usize>)>,
}

impl BatchOrder {
    /// Creates the order of `len` images in batches of `batch`.
    ///
    /// # Errors
    /// [`Error::Config`] unless `batch` lies in `1..=len`.
    pub fn new(len: usize, batch: usize, seed: u64) -> Result<Self> {
        if batch == 0 || batch > len {
            return Err(Error::config("batch_size", batch, format!("1 to the number of images, {len}")));
        }
        Ok(Self { len, batch, seed, current: None })
    }

    /// Full batches in an epoch.
    pub fn steps_per_epoch(&self) -> usize {
        self.len / self.batch
    }

    /// The epoch that `step` belongs to; both count from 0.
    pub fn epoch(&self, step: usize) -> usize {
        step / self.steps_per_epoch()
    }

    /// Returns the numbers of the images of `step`, which counts from 0 through all epochs.
    pub fn batch(&mut self, step: usize) -> Vec<usize> {
        let epoch = self.epoch(step);
        if self.current.as_ref().is_none_or(|(current, _)| *current != epoch) {
            self.current = Some((epoch, keyed(Purpose::Order, self.seed, [epoch, 0]).permutation(self.len)));
        }
        let start = step % self.steps_per_epoch() * self.batch;
        self.current.iter().flat_map(|(_, order)| &order[start..start + self.batch]).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_sees_each_image_once_and_drops_the_rest() {
        let mut order = BatchOrder::new(17, 5, 1).unwrap();
        for epoch in 0..3 {
            let mut seen: Vec<usize> = (0..3).flat_map(|i| order.batch(epoch * 3 + i)).collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 15, "three batches of five different images in epoch {epoch}");
        }
    }

    #[test]
    fn any_step_can_be_asked_for_in_any_order() {
        let mut onward = BatchOrder::new(11, 2, 9).unwrap();
        let all: Vec<_> = (0..25).map(|step| onward.batch(step)).collect();
        for step in [24, 3, 17, 3, 0] {
            assert_eq!(BatchOrder::new(11, 2, 9).unwrap().batch(step), all[step], "step {step} in a fresh order");
            assert_eq!(onward.batch(step), all[step], "step {step} going back");
        }
        assert_ne!(all[..5], all[5..10], "the next epoch has another order");
        assert_ne!(BatchOrder::new(11, 2, 10).unwrap().batch(0), all[0], "another seed has another order");
    }

    #[test]
    fn a_batch_must_fit() {
        for batch in [0, 8] {
            let message = BatchOrder::new(7, batch, 0).unwrap_err().to_string();
            assert!(message.contains("batch_size") && message.contains('7'), "names field and limit: {message}");
        }
    }
}
