//! Counters of frames and bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Traffic between a guest and the network since the device was created. A reset of the device does
/// not clear it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetCounters {
    /// Frames from the guest that the network received.
    pub frames_from_guest: u64,
    /// Their length in bytes, Ethernet header included.
    pub bytes_from_guest: u64,
    /// Frames from the guest that were dropped, because they were malformed.
    pub dropped_from_guest: u64,
    /// Frames that were written to the guest's buffers.
    pub frames_to_guest: u64,
    /// Their length in bytes, Ethernet header included.
    pub bytes_to_guest: u64,
    /// Frames to the guest that were dropped, because the guest does not want them or has no buffers
    /// large enough.
    pub dropped_to_guest: u64,
}

/// Reads a device's [`NetCounters`] from any thread. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct NetMeter(Arc<[Direction; 2]>);

/// Counters of one direction. Only one thread at a time writes them.
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

    /// Counters of frames from the guest.
    pub(super) fn tx(&self) -> &Direction {
        let [tx, _] = &*self.0;
        tx
    }

    /// Counters of frames to the guest.
    pub(super) fn rx(&self) -> &Direction {
        let [_, rx] = &*self.0;
        rx
    }
}

impl Direction {
    /// Counts a frame of `len` bytes that was transferred.
    pub(super) fn passed(&self, len: usize) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(len as u64, Ordering::Relaxed);
    }

    /// Counts a frame that was dropped.
    pub(super) fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}
