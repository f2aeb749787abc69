//! Buffers for what the guest has not acknowledged yet, and the bound on all of them.

/// Bytes of a buffer: one TCP segment of the largest size.
pub(crate) const CHUNK: usize = 65_536;

/// Buffers that all flows together may hold: 64 MiB.
const MAX_CHUNKS: usize = 1024;

/// A pool of buffers of [`CHUNK`] bytes. The one given back last is given out first: its memory is
/// in the processor's cache.
#[derive(Default)]
pub(crate) struct Pool {
    free: Vec<Box<[u8]>>,
    out: usize,
    /// Most that were out since the last [`Pool::shrink`].
    peak: usize,
}

impl Pool {
    pub(crate) fn take(&mut self) -> Option<Box<[u8]>> {
        if self.out == MAX_CHUNKS {
            return None;
        }
        self.out += 1;
        self.peak = self.peak.max(self.out);
        Some(self.free.pop().unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice()))
    }

    /// Takes a buffer back; one that [`Pool::take`] did not make is freed.
    pub(crate) fn give_back(&mut self, chunk: Box<[u8]>) {
        if chunk.len() == CHUNK {
            self.out = self.out.saturating_sub(1);
            self.free.push(chunk);
        }
    }

    /// Frees what was not needed lately.
    pub(crate) fn shrink(&mut self) {
        self.free.truncate(self.peak.saturating_sub(self.out));
        self.peak = self.out;
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

    /// Windows had better be small.
    pub(crate) fn is_tight(&self) -> bool {
        self.used > Self::MAX / 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_reused_bounded_and_freed() {
        let mut pool = Pool::default();
        let chunks: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(chunks.len(), MAX_CHUNKS);
        chunks.into_iter().for_each(|chunk| pool.give_back(chunk));
        assert_eq!(pool.free.len(), MAX_CHUNKS);
        pool.shrink();
        let chunk = pool.take().unwrap();
        pool.give_back(chunk);
        pool.shrink();
        assert_eq!(pool.free.len(), 1);
        pool.shrink();
        assert_eq!(pool.free.len(), 0);
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
