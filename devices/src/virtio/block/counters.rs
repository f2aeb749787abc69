//! What a disk counts of its requests, readable from any thread while it works.

use std::sync::atomic::{AtomicU64, Ordering};

use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

use super::request::Outcome;

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

/// What [`BlockCounters`] say at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockCounts {
    /// Reads that succeeded.
    pub reads: u64,
    /// Bytes that they read.
    pub bytes_read: u64,
    /// Writes that succeeded.
    pub writes: u64,
    /// Bytes that they wrote.
    pub bytes_written: u64,
    /// Flushes that succeeded.
    pub flushes: u64,
    /// Requests that failed, of whatever kind.
    pub errors: u64,
}

impl BlockCounters {
    /// The counts now. They are read one after another while the disk works.
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

    /// Counts a request.
    pub(super) fn count(&self, outcome: &Outcome) {
        let add = |counter: &AtomicU64, n: u64| {
            counter.fetch_add(n, Ordering::Relaxed);
        };
        match (&outcome.result, outcome.kind) {
            (Err(_), _) => add(&self.errors, 1),
            (Ok(()), Some(VIRTIO_BLK_T_IN)) => {
                add(&self.reads, 1);
                add(&self.bytes_read, outcome.data as u64);
            }
            (Ok(()), Some(VIRTIO_BLK_T_OUT)) => {
                add(&self.writes, 1);
                add(&self.bytes_written, outcome.data as u64);
            }
            (Ok(()), Some(VIRTIO_BLK_T_FLUSH)) => add(&self.flushes, 1),
            _ => {}
        }
    }
}
