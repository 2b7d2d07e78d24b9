//! Splitting one operation among all threads of the pool.

use std::marker::PhantomData;
use std::ops::Range;

use super::pool::team;

/// Splits `0..len` into ranges whose length is a multiple of `grain` (the last may be shorter) and
/// runs `body` on each, on all threads of the current [`team`].
pub fn for_each_range(len: usize, grain: usize, body: impl Fn(Range<usize>) + Sync) {
    let team = team();
    // A few ranges per thread, so that one slow core does not hold up the rest.
    let ranges = team.threads() * RANGES;
    let chunk = len.div_ceil(ranges).next_multiple_of(grain.max(1));
    if chunk >= len {
        return body(0..len);
    }
    team.run(len, chunk, &body);
}

/// Ranges per thread and operation.
const RANGES: usize = 4;

/// A slice that several threads write, each at different elements.
pub struct Scattered<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: the pointer comes from a `&mut [T]` that is borrowed for `'a`, and the contracts of the
// methods forbid two threads from accessing the same element.
unsafe impl<T: Send> Sync for Scattered<'_, T> {}

impl<'a, T> Scattered<'a, T> {
    /// Borrows `slice` for writes from several threads.
    pub fn new(slice: &'a mut [T]) -> Self {
        let (start, len) = (slice.as_mut_ptr(), slice.len());
        Self {
            start,
            len,
            slice: PhantomData,
        }
    }

    /// The elements of `range`, mutably.
    ///
    /// # Safety
    /// No other live reference may overlap `range`.
    ///
    /// # Panics
    /// If `range` is not within the slice.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the range is within the slice (asserted) and not aliased (the caller's contract).
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// Pointer to the start of `range`.
    ///
    /// # Panics
    /// If `range` is not within the slice.
    pub fn pointer(&self, range: Range<usize>) -> *mut T {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the start is within the slice or one past its end (asserted).
        unsafe { self.start.add(range.start) }
    }

    /// Writes one element.
    ///
    /// # Safety
    /// No other thread may read or write element `index` at the same time.
    ///
    /// # Panics
    /// If `index` is not within the slice.
    #[inline(always)]
    pub unsafe fn write(&self, index: usize, value: T) {
        assert!(index < self.len);
        // SAFETY: the index is within the slice (asserted), and no other thread accesses the
        // element (the caller's contract).
        unsafe { self.start.add(index).write(value) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU8, Ordering};

    #[test]
    fn ranges_cover_each_index_once() {
        for (len, grain) in [(0, 1), (1, 1), (5, 8), (64, 4), (1000, 7), (1001, 16)] {
            let seen: Vec<_> = (0..len).map(|_| AtomicU8::new(0)).collect();
            for_each_range(len, grain, |range| {
                for i in range {
                    seen[i].fetch_add(1, Ordering::Relaxed);
                }
            });
            assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 1), "{len}");
        }
    }
}
