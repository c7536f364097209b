//! Memory that kernels reuse, so that it is neither mapped nor cleared at every call.

use core::ops::{Deref, DerefMut};
use std::cell::RefCell;

thread_local! {
    /// Buffers that this thread returned.
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Number of values per cache line. A 512-bit vector that is not aligned to one is read from two.
const LINE: usize = 16;

/// Uninitialized values from an earlier use, aligned to a cache line. Returned to the current thread's list when
/// dropped.
pub(super) struct Scratch {
    values: Vec<f32>,
    start: usize,
    len: usize,
}

impl Scratch {
    /// Creates a buffer of `len` arbitrary values.
    pub(super) fn new(len: usize) -> Self {
        let with_gap = len + LINE - 1;
        let mut values = FREE.with_borrow_mut(|free| {
            // The smallest that is large enough, or the largest, which then grows.
            let fitting = free.iter().enumerate().filter(|(_, values)| values.len() >= with_gap);
            let best = fitting.min_by_key(|(_, values)| values.len()).map(|(index, _)| index);
            let best = best.or_else(|| (0..free.len()).max_by_key(|&index| free[index].len()));
            best.map(|index| free.swap_remove(index)).unwrap_or_default()
        });
        if values.len() < with_gap {
            values.resize(with_gap, 0.0);
        }
        // Exceeds the gap only if the alignment cannot be computed.
        let start = values.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE - 1);
        Self { values, start, len }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let values = core::mem::take(&mut self.values);
        // A thread that is ending no longer has a list.
        let _ = FREE.try_with(|free| free.borrow_mut().push(values));
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[self.start..][..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.start..][..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_reused() {
        let mut first = Scratch::new(10);
        first.fill(1.0);
        let (second, place) = (Scratch::new(20), first.as_ptr());
        drop(first);
        let again = Scratch::new(7);
        assert_eq!((again.len(), again.as_ptr()), (7, place), "the returned buffer is reused");
        assert!(again.iter().all(|&value| value == 1.0), "it keeps its values");
        assert_ne!(second.as_ptr(), again.as_ptr(), "a buffer in use is not reused");
    }
}
