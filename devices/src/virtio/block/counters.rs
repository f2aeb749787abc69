//! Counters of a disk's requests, readable from any thread while it works.

use std::sync::atomic::{AtomicU64, Ordering};

use super::request::Request;

/// Counters of a disk, from its opening. Only the disk's thread writes them.
#[derive(Debug, Default)]
pub struct BlockCounters {
    reads: AtomicU64,
    bytes_read: AtomicU64,
    writes: AtomicU64,
    bytes_written: AtomicU64,
    flushes: AtomicU64,
    errors: AtomicU64,
}

/// A reading of [`BlockCounters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockCounts {
    /// Reads that succeeded.
    pub reads: u64,
    /// Bytes read by them.
    pub bytes_read: u64,
    /// Writes that succeeded.
    pub writes: u64,
    /// Bytes written by them.
    pub bytes_written: u64,
    /// Flushes that succeeded.
    pub flushes: u64,
    /// Requests of any kind that failed.
    pub errors: u64,
}

impl BlockCounters {
    /// The counts now. Each is read by itself, while the disk works.
    pub fn get(&self) -> BlockCounts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BlockCounts {
            reads: get(&self.reads),
            bytes_read: get(&self.bytes_read),
            writes: get(&self.writes),
            bytes_written: get(&self.bytes_written),
            flushes: get(&self.flushes),
            errors: get(&self.errors),
        }
    }

    /// Counts a request that succeeded.
    pub(super) fn count(&self, request: &Request<'_>) {
        match request {
            Request::Read { data, .. } => {
                add(&self.reads, 1);
                add(&self.bytes_read, data.len());
            }
            Request::Write { data, .. } => {
                add(&self.writes, 1);
                add(&self.bytes_written, data.len());
            }
            Request::Flush => add(&self.flushes, 1),
            Request::Discard(_) | Request::WriteZeroes(_) | Request::GetId { .. } => {}
        }
    }

    /// Counts a request that failed.
    pub(super) fn count_error(&self) {
        add(&self.errors, 1);
    }
}

fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}
