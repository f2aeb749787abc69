//! What has passed through a device, counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How much has passed between a guest and the network since its device was made. Resets of the
/// device do not change it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetCounters {
    /// Frames that the guest sent and the network took.
    pub frames_from_guest: u64,
    /// Their length in bytes, Ethernet header included.
    pub bytes_from_guest: u64,
    /// Frames that the guest sent and nobody got, because they were malformed.
    pub dropped_from_guest: u64,
    /// Frames that the guest was given.
    pub frames_to_guest: u64,
    /// Their length in bytes, Ethernet header included.
    pub bytes_to_guest: u64,
    /// Frames that the guest was not given, because it does not want them or gives them no buffers
    /// that are large enough.
    pub dropped_to_guest: u64,
}

/// Reads a device's [`NetCounters`] from any thread. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct NetMeter(Arc<[Direction; 2]>);

/// The frames of one direction. One thread at a time counts.
#[derive(Debug, Default)]
pub(super) struct Direction {
    frames: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl NetMeter {
    /// The counters as they are now.
    pub fn counters(&self) -> NetCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (from, to) = (self.tx(), self.rx());
        NetCounters {
            frames_from_guest: read(&from.frames),
            bytes_from_guest: read(&from.bytes),
            dropped_from_guest: read(&from.dropped),
            frames_to_guest: read(&to.frames),
            bytes_to_guest: read(&to.bytes),
            dropped_to_guest: read(&to.dropped),
        }
    }

    /// From the guest.
    pub(super) fn tx(&self) -> &Direction {
        let [tx, _] = &*self.0;
        tx
    }

    /// To the guest.
    pub(super) fn rx(&self) -> &Direction {
        let [_, rx] = &*self.0;
        rx
    }
}

impl Direction {
    /// A frame of `len` bytes has passed.
    pub(super) fn passed(&self, len: usize) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(len as u64, Ordering::Relaxed);
    }

    /// A frame has not.
    pub(super) fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}
