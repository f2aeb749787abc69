//! virtio devices (virtio 1.3) and the transport through which the guest reaches them.
//!
//! ```text
//!   guest driver ──registers──▶ MmioTransport ──activate/reset──▶ VirtioDevice
//!        │                                                            │
//!        └────────── Doorbell ──────────▶ queues ◀────────────────────┘
//!                                          └──── QueueInterrupt ───▶ guest
//! ```
//!
//! - `mmio`: the transport
//! - `queue`: split virtqueues, as every device uses them
//! - `chain`: the buffers of one request
//! - `block`, `net`, `vsock`, `rng`: the devices
//!
//! The transport owns the queues while the driver configures them, the device owns them while it
//! runs, and reset returns them to the transport.

pub mod block;
mod chain;
mod interrupt;
mod mmio;
pub mod net;
mod queue;
pub mod rng;
#[cfg(test)]
pub(crate) mod testing;
pub mod vsock;

use std::sync::Arc;

use boxlite_hv::Doorbell;
use virtio_queue::Queue;

pub use interrupt::QueueInterrupt;
pub use mmio::{MMIO_LEN, MMIO_QUEUE_NOTIFY, MmioTransport};
pub use queue::NeedsReset;

use crate::GuestMemory;

/// A virtio device behind a transport.
///
/// The transport calls these from vCPU threads and never twice at once. A device does its work on
/// another thread, on which it has stopped when [`reset`](Self::reset) returns: the event loop, or
/// one of its own, which the VMM starts before any vCPU runs.
pub trait VirtioDevice: Send {
    /// The device ID (virtio 1.3, section 5).
    fn device_type(&self) -> u32;

    /// Feature bits the device offers, without `VIRTIO_F_VERSION_1`, which the transport adds.
    fn features(&self) -> u64;

    /// The largest size of each queue; the length is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// Reads device configuration space. Bytes past its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes device configuration space. Writes to read-only fields are ignored.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver set DRIVER_OK: the device owns the queues from here on. The transport rings the
    /// doorbell when this returns, for buffers that were made available before.
    ///
    /// A queue that was reset alone comes through [`reset`](Self::reset) and here again, the others
    /// keeping their positions.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops all work and returns the queues. When it returns the device touches neither guest
    /// memory nor the interrupt. Empty if the device was not active.
    fn reset(&mut self) -> Vec<Queue>;
}

/// Why a device did not start. The transport sets DEVICE_NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
#[error("{device}: {reason}")]
pub struct ActivateError {
    /// The device, as in `virtio-blk`.
    pub device: &'static str,
    /// What happened.
    pub reason: String,
}

/// The resources of a device between DRIVER_OK and reset.
#[derive(Debug)]
pub struct Activation {
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// The queues, in the order of [`VirtioDevice::queue_sizes`]; one that the driver did not make
    /// ready has [`ready()`](virtio_queue::QueueT::ready) false.
    pub queues: Vec<Queue>,
    /// Rung when the guest notifies any queue.
    pub doorbell: Doorbell,
    /// Interrupts the driver for used buffers and configuration changes.
    pub interrupt: QueueInterrupt,
    /// The negotiated features.
    pub features: u64,
}

/// Whether feature bit `bit` is among `features`.
pub(crate) fn has_feature(features: u64, bit: u32) -> bool {
    features & 1 << bit != 0
}

/// Reads `data.len()` bytes of a configuration space from `offset` on. Bytes past its end are zero.
pub(crate) fn read_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let rest = usize::try_from(offset).ok().and_then(|offset| config.get(offset..));
    for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
        *to = *from;
    }
}
