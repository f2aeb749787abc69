//! virtio-net (virtio 1.3, section 5.1): Ethernet frames between a guest and a network.
//!
//! ```text
//!   vCPU thread                              network's thread
//!   NetDevice ── attach(NetPort) ─▶ NetBackend ─▶ receive, send, flush
//!        ◀────── detach() ─────────────┘
//! ```
//!
//! The device does not depend on a network: a [`NetBackend`] takes the queues, as a [`NetPort`], to
//! the thread that serves them, and returns them. A frame from the guest is used in place in guest
//! memory; a frame to the guest is copied once, into its buffers.

mod control;
mod counters;
mod header;
mod pieces;
mod port;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_bindings::virtio_config::VIRTIO_F_RING_RESET;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::*;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};

use self::control::{Mac, Settings, is_multicast};
use super::{ActivateError, Activation, VirtioDevice, read_bytes};
use crate::LogBudget;

pub use boxlite_net_frame::{MAX_FRAME, Offload, OffloadFeatures, PartialChecksum, Segmentation};
pub use counters::{NetCounters, NetMeter};
pub use port::{NetPort, Sent, TxFrame};

const NAME: &str = "virtio-net";

/// The size of the control queue: Linux sends one command at a time.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// The smallest MTU that a device may have, in bytes (section 5.1.4.1).
const MIN_MTU: u16 = 68;

/// Options of a network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetOptions {
    /// The guest's Ethernet address.
    pub mac: [u8; 6],
    /// The largest IP packet without segmentation offload, in bytes; at least 68.
    pub mtu: u16,
    /// The guest may leave the segmentation of TCP to the network: its frames may then be up to
    /// [`MAX_FRAME`] long, whatever the MTU.
    pub tso_from_guest: bool,
    /// The network may leave the segmentation of TCP to the guest.
    pub tso_to_guest: bool,
    /// Size of the receive queue, and of the transmit queue: a power of two. With mergeable buffers
    /// Linux fills the receive queue with one page per chain.
    pub queue_size: u16,
}

impl NetOptions {
    /// A link with a large MTU, and without segmentation offload.
    pub fn new(mac: [u8; 6]) -> Self {
        Self { mac, mtu: 65_520, tso_from_guest: false, tso_to_guest: false, queue_size: 256 }
    }
}

/// Why a network device cannot be created.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetOptionsError {
    /// The guest's address is a multicast address.
    #[error("virtio-net: {0:02x?} is a multicast address; give the guest a unicast one")]
    MulticastMac([u8; 6]),
    /// The MTU is too small.
    #[error("virtio-net: an MTU of {0} bytes is below the minimum, {MIN_MTU}")]
    Mtu(u16),
}

/// The network behind a device. The transport's thread calls it, at activation and reset of the
/// device.
pub trait NetBackend: Send {
    /// Hands the network a port, which it serves on a thread of its own.
    ///
    /// # Errors
    /// The network accepts no port; the driver must reset the device.
    fn attach(&mut self, port: NetPort) -> io::Result<()>;

    /// Takes the port back: nothing uses it when this returns. `None` if the port is lost, because
    /// the network has stopped.
    fn detach(&mut self) -> Option<NetPort>;
}

/// A network device.
pub struct NetDevice {
    backend: Box<dyn NetBackend>,
    options: NetOptions,
    queue_sizes: [u16; 3],
    shared: Arc<Shared>,
    attached: bool,
    /// The driver's settings from before the last [`detach`](NetBackend::detach).
    settings: Option<Settings>,
}

/// State that vCPU threads share with the port, which is on the network's thread.
#[derive(Debug, Default)]
struct Shared {
    mac: AtomicU64,
    meter: NetMeter,
    log: LogBudget,
}

impl Shared {
    fn mac(&self) -> Mac {
        let [a, b, c, d, e, f, _, _] = self.mac.load(Ordering::Relaxed).to_le_bytes();
        [a, b, c, d, e, f]
    }

    fn set_mac(&self, [a, b, c, d, e, f]: Mac) {
        self.mac.store(u64::from_le_bytes([a, b, c, d, e, f, 0, 0]), Ordering::Relaxed);
    }
}

impl NetDevice {
    /// A device whose frames `backend` carries.
    ///
    /// # Errors
    /// The address or the MTU is not valid.
    pub fn new(
        options: NetOptions,
        backend: impl NetBackend + 'static,
    ) -> Result<Self, NetOptionsError> {
        if is_multicast(options.mac) {
            return Err(NetOptionsError::MulticastMac(options.mac));
        }
        if options.mtu < MIN_MTU {
            return Err(NetOptionsError::Mtu(options.mtu));
        }
        let shared = Arc::<Shared>::default();
        shared.set_mac(options.mac);
        Ok(Self {
            backend: Box::new(backend),
            options,
            queue_sizes: [options.queue_size, options.queue_size, CONTROL_QUEUE_SIZE],
            shared,
            attached: false,
            settings: None,
        })
    }

    /// The meter of the device's frames, for other threads.
    pub fn meter(&self) -> NetMeter {
        self.shared.meter.clone()
    }
}

impl VirtioDevice for NetDevice {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        let always = [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_MTU,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_CTRL_VQ,
            VIRTIO_NET_F_CTRL_RX,
            VIRTIO_NET_F_CTRL_MAC_ADDR,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_F_RING_RESET,
        ];
        let from_guest = [VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_ECN];
        let to_guest = [VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6];
        let bits = |bits: &[u32], offered: bool| {
            bits.iter().filter(|_| offered).fold(0, |features, bit| features | 1 << bit)
        };
        bits(&always, true)
            | bits(&from_guest, self.options.tso_from_guest)
            | bits(&to_guest, self.options.tso_to_guest)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    /// `struct virtio_net_config` (section 5.1.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let [a, b, c, d, e, f] = self.shared.mac();
        let [up_low, up_high] = (VIRTIO_NET_S_LINK_UP as u16).to_le_bytes();
        let [mtu_low, mtu_high] = self.options.mtu.to_le_bytes();
        // max_virtqueue_pairs, before the MTU, is not offered.
        let config = [a, b, c, d, e, f, up_low, up_high, 0, 0, mtu_low, mtu_high];
        read_bytes(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let failed = |reason: String| ActivateError { device: NAME, reason };
        let mut activation = activation;
        let queues = std::mem::take(&mut activation.queues);
        let queues = <[Queue; 3]>::try_from(queues)
            .map_err(|_| failed("it needs three queues".to_owned()))?;
        // Queues that have advanced were detached only to reset another one. Then the driver is the
        // same, and its settings stay in force.
        let resumed = queues.iter().any(|queue| queue.next_avail() != 0);
        let settings = self.settings.take().filter(|_| resumed);
        let settings = settings.unwrap_or_else(|| Settings::new(self.options.mac));
        self.shared.set_mac(settings.mac);
        let shared = Arc::clone(&self.shared);
        let port = NetPort::new(activation, queues, self.options.mtu, settings, shared);
        self.backend.attach(port).map_err(|e| failed(e.to_string()))?;
        self.attached = true;
        Ok(())
    }

    fn reset(&mut self) -> Vec<Queue> {
        if !std::mem::take(&mut self.attached) {
            return Vec::new();
        }
        self.shared.set_mac(self.options.mac);
        let Some(port) = self.backend.detach() else { return Vec::new() };
        let (queues, settings) = port.into_parts();
        self.settings = Some(settings);
        queues
    }
}

impl Drop for NetDevice {
    /// Takes the port away from the network.
    fn drop(&mut self) {
        self.reset();
    }
}

impl fmt::Debug for NetDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetDevice")
            .field("options", &self.options)
            .field("attached", &self.attached)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
