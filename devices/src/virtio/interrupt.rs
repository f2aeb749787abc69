//! The interrupt of a virtio-mmio device: a line, and the status register with its reasons.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use boxlite_hv::Interrupt;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};

/// Interrupts the driver for used buffers and configuration changes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct QueueInterrupt {
    line: Interrupt,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    status: AtomicU32,
    failed: AtomicBool,
}

impl QueueInterrupt {
    /// An interrupt that raises `line` and keeps its reasons in a status register of its own.
    pub fn new(line: Interrupt) -> Self {
        Self { line, shared: Arc::default() }
    }

    /// Signals used buffers in one of the queues.
    pub fn used_buffer(&self) -> io::Result<()> {
        self.raise(VIRTIO_MMIO_INT_VRING)
    }

    /// Signals a change of the configuration space.
    pub fn config_change(&self) -> io::Result<()> {
        self.raise(VIRTIO_MMIO_INT_CONFIG)
    }

    /// Signals that the device has failed until a reset: sets DEVICE_NEEDS_RESET (virtio 1.3,
    /// section 2.1.2).
    pub fn device_failed(&self) -> io::Result<()> {
        self.shared.failed.store(true, Ordering::SeqCst);
        self.config_change()
    }

    fn raise(&self, reason: u32) -> io::Result<()> {
        self.shared.status.fetch_or(reason, Ordering::SeqCst);
        self.line.raise()
    }

    /// `InterruptStatus`.
    pub(super) fn status(&self) -> u32 {
        self.shared.status.load(Ordering::SeqCst)
    }

    /// `InterruptACK`.
    pub(super) fn acknowledge(&self, reasons: u32) {
        self.shared.status.fetch_and(!reasons, Ordering::SeqCst);
    }

    /// Whether the device has failed since the last reset.
    pub(super) fn has_failed(&self) -> bool {
        self.shared.failed.load(Ordering::SeqCst)
    }

    /// Clears all state at a reset of the device.
    pub(super) fn reset(&self) {
        self.shared.failed.store(false, Ordering::SeqCst);
        self.acknowledge(u32::MAX);
    }
}
