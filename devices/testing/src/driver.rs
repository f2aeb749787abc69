//! A driver for a virtio-mmio device (virtio 1.3, section 4.2), which uses its registers.

use std::sync::Arc;

use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use crate::{Buffer, GuestMemory, Layout, Line, Ring, wait_until};

/// Status: the driver has recognized the device and can drive it.
pub const ACKNOWLEDGED: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
/// Status: features are negotiated.
pub const FEATURES_OK: u32 = ACKNOWLEDGED | VIRTIO_CONFIG_S_FEATURES_OK;
/// Status: the driver is ready, and the device runs.
pub const DRIVER_OK: u32 = FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;

/// The registers of a device's transport.
pub trait Registers {
    /// Reads guest-physical memory, `offset` bytes from the transport's address.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Writes to guest-physical memory, `offset` bytes from the transport's address.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A driver, with a ring for each of up to four queues.
pub struct Driver<T> {
    /// The transport.
    pub transport: T,
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// The queues.
    pub rings: [Ring; 4],
    line: Line,
}

impl<T: Registers> Driver<T> {
    /// A driver with rings of `size`, of a device whose transport raises `line`.
    pub fn new(transport: T, memory: Arc<GuestMemory>, line: Line, size: u16) -> Self {
        let rings = [0, 1, 2, 3].map(|index| Ring::new(Layout::of(index), size, false));
        Self { transport, memory, rings, line }
    }

    /// Reads a register.
    pub fn read(&mut self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub fn write(&mut self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    /// The device's status.
    pub fn status(&mut self) -> u32 {
        self.read(VIRTIO_MMIO_STATUS)
    }

    /// Sets the device's status. Returns the status afterwards.
    pub fn set_status(&mut self, status: u32) -> u32 {
        self.write(VIRTIO_MMIO_STATUS, status);
        self.status()
    }

    /// Reads configuration space.
    pub fn config<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut data = [0xaa; N];
        self.transport.read(u64::from(VIRTIO_MMIO_CONFIG) + offset, &mut data);
        data
    }

    /// The features that the device offers.
    pub fn offered(&mut self) -> u64 {
        let mut window = |sel| {
            self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, sel);
            u64::from(self.read(VIRTIO_MMIO_DEVICE_FEATURES))
        };
        window(0) | window(1) << 32
    }

    /// Accepts features, offered or not.
    pub fn accept_features(&mut self, features: u64) {
        for (sel, window) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, sel);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, window);
        }
    }

    /// Resets the device and negotiates `features` of those it offers. Returns the status.
    pub fn negotiate(&mut self, features: u64) -> u32 {
        self.set_status(0);
        self.set_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
        self.set_status(ACKNOWLEDGED);
        let features = self.offered() & (features | 1 << VIRTIO_F_VERSION_1);
        for ring in &mut self.rings {
            let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
            *ring = Ring::new(ring.layout, ring.size, event_idx);
        }
        self.accept_features(features);
        self.set_status(FEATURES_OK)
    }

    /// Sets the size and the addresses of a queue.
    pub fn lay_out_queue(&mut self, queue: u32) {
        let Ring { layout, size, .. } = self.rings[queue as usize];
        self.write(VIRTIO_MMIO_QUEUE_SEL, queue);
        self.write(VIRTIO_MMIO_QUEUE_NUM, size.into());
        for (register, address) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, layout.table),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, layout.available),
            (VIRTIO_MMIO_QUEUE_USED_LOW, layout.used),
        ] {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
    }

    /// Makes a queue ready, with empty rings.
    pub fn make_ready(&mut self, queue: u32) {
        self.rings[queue as usize].clear(&self.memory);
        self.lay_out_queue(queue);
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(self.read(VIRTIO_MMIO_QUEUE_READY), 1);
    }

    /// Initializes the device until it runs, with its first `queues` queues.
    pub fn start(&mut self, features: u64, queues: u32) {
        assert_eq!(self.negotiate(features), FEATURES_OK);
        (0..queues).for_each(|queue| self.make_ready(queue));
        assert_eq!(self.set_status(DRIVER_OK), DRIVER_OK);
    }

    /// Notifies the device of available chains in a queue.
    pub fn kick(&mut self, queue: u32) {
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, queue);
    }

    /// Sends one chain through queue 0 and waits until it is used. Returns the number of bytes
    /// written.
    pub fn request(&mut self, buffers: &[Buffer]) -> u32 {
        self.write_chain(0, 0, buffers);
        self.make_available(0, 0);
        self.kick(0);
        let (head, len) = self.wait_used(0);
        assert_eq!(head, 0);
        len
    }

    /// Waits for the next used chain. Returns its head and the number of bytes written.
    pub fn wait_used(&mut self, queue: u32) -> (u32, u32) {
        let (ring, mut used) = (&mut self.rings[queue as usize], None);
        wait_until("a used buffer", || {
            used = ring.next_used(&self.memory);
            used.is_some()
        });
        used.expect("a used buffer")
    }

    /// Writes to guest memory.
    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).expect("guest memory");
    }

    /// Reads guest memory.
    pub fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).expect("guest memory");
        bytes
    }

    /// How often the interrupt line was raised.
    pub fn raised(&self) -> u32 {
        self.line.raised()
    }
}

/// Access to the rings, by the queue's index.
impl<T> Driver<T> {
    /// See [`Ring::write_descriptor`].
    pub fn write_descriptor(&self, queue: u32, index: u16, descriptor: Descriptor) {
        self.rings[queue as usize].write_descriptor(&self.memory, index, descriptor);
    }

    /// See [`Ring::write_chain`].
    pub fn write_chain(&self, queue: u32, head: u16, buffers: &[Buffer]) {
        self.rings[queue as usize].write_chain(&self.memory, head, buffers);
    }

    /// See [`Ring::make_available`].
    pub fn make_available(&mut self, queue: u32, head: u16) {
        self.rings[queue as usize].make_available(&self.memory, head);
    }

    /// See [`Ring::set_available_index`].
    pub fn set_available_index(&self, queue: u32, index: u16) {
        self.rings[queue as usize].set_available_index(&self.memory, index);
    }

    /// See [`Ring::set_available_flags`].
    pub fn set_available_flags(&self, queue: u32, flags: u16) {
        self.rings[queue as usize].set_available_flags(&self.memory, flags);
    }

    /// See [`Ring::used_flags`].
    pub fn used_flags(&self, queue: u32) -> u16 {
        self.rings[queue as usize].used_flags(&self.memory)
    }

    /// See [`Ring::set_used_event`].
    pub fn set_used_event(&self, queue: u32, index: u16) {
        self.rings[queue as usize].set_used_event(&self.memory, index);
    }

    /// See [`Ring::available_event`].
    pub fn available_event(&self, queue: u32) -> u16 {
        self.rings[queue as usize].available_event(&self.memory)
    }

    /// See [`Ring::used_index`].
    pub fn used_index(&self, queue: u32) -> u16 {
        self.rings[queue as usize].used_index(&self.memory)
    }
}
