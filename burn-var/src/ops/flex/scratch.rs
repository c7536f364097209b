//! Memory that kernels use again and again, so that it is neither mapped nor cleared at every call.

use core::ops::{Deref, DerefMut};
use std::cell::RefCell;

thread_local! {
    /// What this thread has given back.
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Values of a line of the cache. A vector of 512 bits that begins elsewhere is read from two of them.
const LINE: usize = 16;

/// A slice of values left over from an earlier use, at the beginning of a line of the cache. Goes back to its thread when
/// dropped.
pub(super) struct Scratch {
    values: Vec<f32>,
    start: usize,
    len: usize,
}

impl Scratch {
    /// `len` values of any size.
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
        // More than the gap only where the alignment cannot be found out.
        let start = values.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE - 1);
        Self { values, start, len }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let values = core::mem::take(&mut self.values);
        // A thread that is ending has no list any more.
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
    fn memory_is_used_again() {
        let mut first = Scratch::new(10);
        first.fill(1.0);
        let (second, place) = (Scratch::new(20), first.as_ptr());
        drop(first);
        let again = Scratch::new(7);
        assert_eq!((again.len(), again.as_ptr()), (7, place), "the one that was given back");
        assert!(again.iter().all(|&value| value == 1.0), "with what was in it");
        assert_ne!(second.as_ptr(), again.as_ptr(), "one in use is not given out");
    }
}
