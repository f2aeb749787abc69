//! Buffers for what the guest has not acknowledged yet, and the bound on all of them.

use std::collections::VecDeque;

/// Bytes of a buffer: one TCP segment of the largest size.
pub(crate) const CHUNK: usize = 65_536;
/// Bytes of a small buffer: an answer of a few bytes must not hold 64 KiB.
pub(crate) const SMALL: usize = 4096;

/// Bytes that the buffers of each size may have that all flows together hold.
const MAX_BYTES: usize = 64 << 20;

/// Buffers of two sizes.
pub(crate) struct Pool {
    large: Shelf,
    small: Shelf,
}

/// Buffers of one size. The one given back last is given out first: its memory is in the
/// processor's cache.
struct Shelf {
    size: usize,
    free: Vec<Box<[u8]>>,
    out: usize,
    /// Most that were out since the last [`Pool::shrink`].
    peak: usize,
}

impl Default for Pool {
    fn default() -> Self {
        Self { large: Shelf::new(CHUNK), small: Shelf::new(SMALL) }
    }
}

impl Pool {
    /// A buffer of [`CHUNK`] bytes; None if there may be no more.
    pub(crate) fn take(&mut self) -> Option<Box<[u8]>> {
        self.large.take()
    }

    /// A buffer of [`SMALL`] bytes; None if there may be no more.
    pub(crate) fn take_small(&mut self) -> Option<Box<[u8]>> {
        self.small.take()
    }

    pub(crate) fn give_back(&mut self, buffer: Box<[u8]>) {
        let shelf = if buffer.len() == CHUNK { &mut self.large } else { &mut self.small };
        shelf.out = shelf.out.saturating_sub(1);
        shelf.free.push(buffer);
    }

    /// Frees what was not needed lately.
    pub(crate) fn shrink(&mut self) {
        for shelf in [&mut self.large, &mut self.small] {
            shelf.free.truncate(shelf.peak.saturating_sub(shelf.out));
            shelf.peak = shelf.out;
        }
    }
}

impl Shelf {
    fn new(size: usize) -> Self {
        Self { size, free: Vec::new(), out: 0, peak: 0 }
    }

    fn take(&mut self) -> Option<Box<[u8]>> {
        if self.out * self.size >= MAX_BYTES {
            return None;
        }
        self.out += 1;
        self.peak = self.peak.max(self.out);
        Some(self.free.pop().unwrap_or_else(|| vec![0; self.size].into_boxed_slice()))
    }
}

/// Bytes of memory that hold what the host's sockets have no room for, or what came out of order,
/// and how many are in use.
#[derive(Default)]
pub(crate) struct Budget {
    used: usize,
}

impl Budget {
    /// Over all flows.
    const MAX: usize = 64 << 20;

    /// True if `bytes` more may be kept; they then are counted.
    pub(crate) fn take(&mut self, bytes: usize) -> bool {
        let fits = self.used.saturating_add(bytes) <= Self::MAX;
        if fits {
            self.used += bytes;
        }
        fits
    }

    pub(crate) fn give_back(&mut self, bytes: usize) {
        self.used = self.used.saturating_sub(bytes);
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// Windows had better be small.
    pub(crate) fn is_tight(&self) -> bool {
        self.used > Self::MAX / 4
    }
}

/// Bytes that wait for a socket, charged to a [`Budget`] by the memory that they hold, which is more
/// than their number.
#[derive(Default)]
pub(crate) struct Backlog {
    bytes: VecDeque<u8>,
    charged: usize,
}

impl Backlog {
    /// The least memory that one has.
    const LEAST: usize = 256;

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes that are next, or some of them.
    pub(crate) fn first(&self) -> &[u8] {
        self.bytes.as_slices().0
    }

    /// Keeps `data`, if there may be so much memory.
    pub(crate) fn push(&mut self, data: &[u8], budget: &mut Budget) -> bool {
        let wanted = self.bytes.len().saturating_add(data.len());
        if wanted > self.bytes.capacity() {
            // Twice as much each time: else every byte would be moved with each that follows.
            let capacity = wanted.next_power_of_two().max(Self::LEAST);
            if !budget.take(capacity.saturating_sub(self.charged)) {
                return false;
            }
            self.charged = self.charged.max(capacity);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend(data);
        true
    }

    /// Forgets the first `len` bytes.
    pub(crate) fn consume(&mut self, len: usize, budget: &mut Budget) {
        self.bytes.drain(..len.min(self.bytes.len()));
        if self.bytes.len() <= self.charged / 4 {
            let rest = if self.bytes.is_empty() { 0 } else { self.bytes.len().max(Self::LEAST) };
            self.bytes.shrink_to(rest);
            budget.give_back(self.charged.saturating_sub(rest));
            self.charged = rest;
        }
    }

    pub(crate) fn clear(&mut self, budget: &mut Budget) {
        self.bytes = VecDeque::new();
        budget.give_back(std::mem::take(&mut self.charged));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A backlog is its bytes in order, and never holds more memory than it is charged for.
        #[test]
        fn a_backlog_is_charged_what_it_holds(
            steps in proptest::collection::vec((0..5000_usize, 0..6000_usize), 0..60),
        ) {
            let (mut backlog, mut budget) = (Backlog::default(), Budget::default());
            let (mut pushed, mut consumed) = (0_usize, 0_usize);
            for (push, consume) in steps {
                let data: Vec<u8> = (pushed..pushed + push).map(|n| n as u8).collect();
                prop_assert!(backlog.push(&data, &mut budget));
                pushed += push;
                prop_assert!(backlog.bytes.capacity() <= budget.used);
                let expected = (consumed..pushed).map(|n| n as u8);
                prop_assert!(backlog.bytes.iter().copied().eq(expected));
                let len = consume.min(backlog.first().len());
                backlog.consume(len, &mut budget);
                consumed += len;
                prop_assert!(backlog.bytes.capacity() <= budget.used);
                prop_assert!(budget.used <= (4 * backlog.len()).max(Backlog::LEAST));
            }
            backlog.clear(&mut budget);
            prop_assert_eq!(budget.used, 0);
        }
    }

    #[test]
    fn buffers_are_reused_bounded_and_freed() {
        let mut pool = Pool::default();
        for (size, take) in [(CHUNK, Pool::take as fn(&mut Pool) -> _), (SMALL, Pool::take_small)] {
            let buffers: Vec<_> = std::iter::from_fn(|| take(&mut pool)).collect();
            assert!(buffers.iter().all(|buffer| buffer.len() == size));
            assert_eq!(buffers.len(), MAX_BYTES / size);
            buffers.into_iter().for_each(|buffer| pool.give_back(buffer));
        }
        let free = |pool: &Pool| (pool.large.free.len(), pool.small.free.len());
        assert_eq!(free(&pool), (MAX_BYTES / CHUNK, MAX_BYTES / SMALL));
        pool.shrink();
        let buffer = pool.take().unwrap();
        pool.give_back(buffer);
        pool.shrink();
        assert_eq!(free(&pool), (1, 0));
        pool.shrink();
        assert_eq!(free(&pool), (0, 0));
    }

    #[test]
    fn a_budget_is_never_overdrawn() {
        let mut budget = Budget::default();
        assert!(budget.take(Budget::MAX - 1));
        assert!(!budget.take(2));
        assert!(budget.is_tight());
        budget.give_back(Budget::MAX);
        assert!(budget.take(Budget::MAX));
    }
}
