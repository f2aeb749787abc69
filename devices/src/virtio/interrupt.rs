//! The interrupt of a virtio-mmio device: a line and the status register that says why it rose.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::Interrupt;

/// `InterruptStatus` bit 0: the device used a buffer (virtio 1.3, section 4.2.2).
pub(super) const USED_BUFFER: u32 = 1;
/// `InterruptStatus` bit 1: the configuration changed.
pub(super) const CONFIG_CHANGE: u32 = 2;

/// Tells the driver of used buffers and configuration changes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct QueueInterrupt {
    line: Interrupt,
    status: Arc<AtomicU32>,
}

impl QueueInterrupt {
    /// An interrupt that raises `line` and keeps its reasons in a status register of its own.
    pub fn new(line: Interrupt) -> Self {
        Self { line, status: Arc::default() }
    }

    /// The device used a buffer in one of its queues. Ask
    /// [`needs_notification`](virtio_queue::QueueT::needs_notification) first.
    pub fn used_buffer(&self) -> io::Result<()> {
        self.raise(USED_BUFFER)
    }

    /// The device changed its configuration space.
    pub fn config_change(&self) -> io::Result<()> {
        self.raise(CONFIG_CHANGE)
    }

    fn raise(&self, reason: u32) -> io::Result<()> {
        self.status.fetch_or(reason, Ordering::SeqCst);
        self.line.raise()
    }

    /// `InterruptStatus`.
    pub(super) fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// `InterruptACK`.
    pub(super) fn acknowledge(&self, reasons: u32) {
        self.status.fetch_and(!reasons, Ordering::SeqCst);
    }
}
