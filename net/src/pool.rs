//! Memory of all flows, and its bounds: buffers for data that the guest has not acknowledged, and bytes
//! that wait for the host's sockets.

use std::collections::VecDeque;

/// Bytes of a large buffer: the largest TCP segment.
pub(crate) const CHUNK: usize = 65_536;
/// Bytes of a small buffer, so that an answer of a few bytes does not hold 64 KiB.
pub(crate) const SMALL: usize = 4096;

/// The most bytes in buffers of each size, over all flows.
const MAX_BYTES: usize = 64 << 20;

/// Buffers of two sizes.
pub(crate) struct Pool {
    large: FreeList,
    small: FreeList,
}

/// Buffers of one size. The one that was returned last is used first: its memory is in the processor's
/// cache.
struct FreeList {
    size: usize,
    free: Vec<Box<[u8]>>,
    in_use: usize,
    /// The most that were in use at a time since the last [`Pool::shrink`].
    peak: usize,
}

impl Default for Pool {
    fn default() -> Self {
        Self { large: FreeList::new(CHUNK), small: FreeList::new(SMALL) }
    }
}

impl Pool {
    /// A buffer of [`CHUNK`] bytes; none if the bound is reached.
    pub(crate) fn take(&mut self) -> Option<Box<[u8]>> {
        self.large.take()
    }

    /// A buffer of [`SMALL`] bytes; none if the bound is reached.
    pub(crate) fn take_small(&mut self) -> Option<Box<[u8]>> {
        self.small.take()
    }

    /// Returns a buffer.
    pub(crate) fn put_back(&mut self, buffer: Box<[u8]>) {
        let list = if buffer.len() == CHUNK { &mut self.large } else { &mut self.small };
        list.in_use = list.in_use.saturating_sub(1);
        list.free.push(buffer);
    }

    /// Frees buffers that were not needed since the last call.
    pub(crate) fn shrink(&mut self) {
        for list in [&mut self.large, &mut self.small] {
            list.free.truncate(list.peak.saturating_sub(list.in_use));
            list.peak = list.in_use;
        }
    }
}

impl FreeList {
    fn new(size: usize) -> Self {
        Self { size, free: Vec::new(), in_use: 0, peak: 0 }
    }

    fn take(&mut self) -> Option<Box<[u8]>> {
        if self.in_use * self.size >= MAX_BYTES {
            return None;
        }
        self.in_use += 1;
        self.peak = self.peak.max(self.in_use);
        Some(self.free.pop().unwrap_or_else(|| vec![0; self.size].into_boxed_slice()))
    }
}

/// The memory of data for which the host's sockets have no room, or that arrived out of order: how much
/// of it is in use, over all flows.
#[derive(Default)]
pub(crate) struct Budget {
    used: usize,
}

impl Budget {
    /// The bound.
    const MAX: usize = 64 << 20;

    /// Charges `bytes` more. False, and no charge, if that exceeds the bound.
    pub(crate) fn take(&mut self, bytes: usize) -> bool {
        let fits = self.used.saturating_add(bytes) <= Self::MAX;
        if fits {
            self.used += bytes;
        }
        fits
    }

    /// Takes back a charge.
    pub(crate) fn release(&mut self, bytes: usize) {
        self.used = self.used.saturating_sub(bytes);
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// True if windows should be small.
    pub(crate) fn is_tight(&self) -> bool {
        self.used > Self::MAX / 4
    }
}

/// Bytes that wait for a socket. A [`Budget`] is charged for the memory that they occupy, which is more
/// than their number.
#[derive(Default)]
pub(crate) struct Backlog {
    bytes: VecDeque<u8>,
    charged: usize,
}

impl Backlog {
    /// The least capacity.
    const LEAST: usize = 256;

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The next bytes, or some of them.
    pub(crate) fn first(&self) -> &[u8] {
        self.bytes.as_slices().0
    }

    /// Appends `data`. False if there is no memory for it.
    pub(crate) fn push(&mut self, data: &[u8], budget: &mut Budget) -> bool {
        let wanted = self.bytes.len().saturating_add(data.len());
        if wanted > self.bytes.capacity() {
            // Doubled each time, or else every byte would be moved with each that follows.
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

    /// Removes the first `len` bytes.
    pub(crate) fn consume(&mut self, len: usize, budget: &mut Budget) {
        self.bytes.drain(..len.min(self.bytes.len()));
        if self.bytes.len() <= self.charged / 4 {
            let rest = if self.bytes.is_empty() { 0 } else { self.bytes.len().max(Self::LEAST) };
            self.bytes.shrink_to(rest);
            budget.release(self.charged.saturating_sub(rest));
            self.charged = rest;
        }
    }

    pub(crate) fn clear(&mut self, budget: &mut Budget) {
        self.bytes = VecDeque::new();
        budget.release(std::mem::take(&mut self.charged));
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
            buffers.into_iter().for_each(|buffer| pool.put_back(buffer));
        }
        let free = |pool: &Pool| (pool.large.free.len(), pool.small.free.len());
        assert_eq!(free(&pool), (MAX_BYTES / CHUNK, MAX_BYTES / SMALL));
        pool.shrink();
        let buffer = pool.take().unwrap();
        pool.put_back(buffer);
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
        budget.release(Budget::MAX);
        assert!(budget.take(Budget::MAX));
    }
}
