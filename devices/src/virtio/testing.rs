//! A driver for tests: it drives a device through its transport's registers, well or badly.

pub(crate) mod vring;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use boxlite_hv::{Doorbell, Interrupt};
use proptest::prelude::*;
use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::{MmioTransport, VirtioDevice};
use crate::{BusDevice, EventLoop, GuestMemory, LoopHandle};

/// Guest memory is two regions that touch here, so that buffers can lie over the seam.
pub(crate) const SEAM: u64 = 0x8_0000;
pub(crate) const MEMORY_END: u64 = 0x20_0000;
/// Where tests put their buffers.
pub(crate) const DATA: u64 = 0x4_0000;

pub(crate) const SIZE: u16 = 16;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const QUEUE_STRIDE: u64 = 0x4000;

pub(crate) const ACKNOWLEDGED: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
pub(crate) const FEATURES_OK: u32 = ACKNOWLEDGED | VIRTIO_CONFIG_S_FEATURES_OK;
pub(crate) const DRIVER_OK: u32 = FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;

pub(crate) fn memory() -> Arc<GuestMemory> {
    let regions =
        [(GuestAddress(0), SEAM as usize), (GuestAddress(SEAM), (MEMORY_END - SEAM) as usize)];
    Arc::new(GuestMemory::from_ranges(&regions).unwrap())
}

pub(crate) struct Driver {
    pub(crate) transport: MmioTransport,
    pub(crate) memory: Arc<GuestMemory>,
    raised: Arc<AtomicU32>,
    avail: [u16; 4],
    seen: [u16; 4],
}

/// One descriptor: address, length, whether the device writes it.
pub(crate) type Buffer = (u64, u32, bool);

impl Driver {
    pub(crate) fn new(device: impl VirtioDevice + 'static) -> Self {
        let memory = memory();
        let raised = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&raised);
        let interrupt = Interrupt::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        let transport = MmioTransport::new(
            Box::new(device),
            Arc::clone(&memory),
            interrupt,
            Doorbell::new().unwrap(),
        )
        .unwrap();
        Self { transport, memory, raised, avail: [0; 4], seen: [0; 4] }
    }

    pub(crate) fn read(&mut self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn write(&mut self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    pub(crate) fn status(&mut self) -> u32 {
        self.read(VIRTIO_MMIO_STATUS)
    }

    pub(crate) fn set_status(&mut self, status: u32) -> u32 {
        self.write(VIRTIO_MMIO_STATUS, status);
        self.status()
    }

    pub(crate) fn config<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut data = [0xaa; N];
        self.transport.read(u64::from(VIRTIO_MMIO_CONFIG) + offset, &mut data);
        data
    }

    pub(crate) fn offered(&mut self) -> u64 {
        let mut window = |sel| {
            self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, sel);
            u64::from(self.read(VIRTIO_MMIO_DEVICE_FEATURES))
        };
        window(0) | window(1) << 32
    }

    pub(crate) fn take_features(&mut self, features: u64) {
        for (sel, window) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, sel);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, window);
        }
    }

    /// Resets the device and negotiates `features` of those it offers. Returns the status.
    pub(crate) fn negotiate(&mut self, features: u64) -> u32 {
        self.set_status(0);
        self.avail = [0; 4];
        self.seen = [0; 4];
        self.set_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
        self.set_status(ACKNOWLEDGED);
        let features = self.offered() & (features | 1 << VIRTIO_F_VERSION_1);
        self.take_features(features);
        self.set_status(FEATURES_OK)
    }

    pub(crate) fn lay_out_queue(&mut self, queue: u32) {
        let base = QUEUE_STRIDE * u64::from(queue);
        self.write(VIRTIO_MMIO_QUEUE_SEL, queue);
        self.write(VIRTIO_MMIO_QUEUE_NUM, SIZE.into());
        for (register, address) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, DESC),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, AVAIL),
            (VIRTIO_MMIO_QUEUE_USED_LOW, USED),
        ] {
            self.write(register, (base + address) as u32);
            self.write(register + 4, 0);
        }
    }

    /// Makes a queue of [`SIZE`] ready, with empty rings.
    pub(crate) fn make_ready(&mut self, queue: u32) {
        let base = QUEUE_STRIDE * u64::from(queue);
        self.memory.write_slice(&[0; 0x3000], GuestAddress(base + DESC)).unwrap();
        self.avail[queue as usize] = 0;
        self.seen[queue as usize] = 0;
        self.lay_out_queue(queue);
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(self.read(VIRTIO_MMIO_QUEUE_READY), 1);
    }

    /// All the way to a running device with `queues` queues.
    pub(crate) fn start(&mut self, features: u64, queues: u32) {
        assert_eq!(self.negotiate(features), FEATURES_OK);
        (0..queues).for_each(|queue| self.make_ready(queue));
        assert_eq!(self.set_status(DRIVER_OK), DRIVER_OK);
    }

    pub(crate) fn write_descriptor(&self, queue: u32, index: u16, descriptor: Descriptor) {
        let table = QUEUE_STRIDE * u64::from(queue) + DESC;
        let at = GuestAddress(table + 16 * u64::from(index));
        self.memory.write_obj(RawDescriptor::from(descriptor), at).unwrap();
    }

    /// Writes a chain that starts at descriptor `head`.
    pub(crate) fn write_chain(&self, queue: u32, head: u16, buffers: &[Buffer]) {
        for (&(address, len, writable), index) in buffers.iter().zip(head..) {
            let mut flags = 0;
            if writable {
                flags |= VRING_DESC_F_WRITE;
            }
            if usize::from(index - head) + 1 < buffers.len() {
                flags |= VRING_DESC_F_NEXT;
            }
            let descriptor = Descriptor::new(address, len, flags as u16, index + 1);
            self.write_descriptor(queue, index, descriptor);
        }
    }

    /// Puts the chain at `head` into the available ring.
    pub(crate) fn make_available(&mut self, queue: u32, head: u16) {
        let ring = QUEUE_STRIDE * u64::from(queue) + AVAIL;
        let index = &mut self.avail[queue as usize];
        let slot = GuestAddress(ring + 4 + 2 * u64::from(*index % SIZE));
        self.memory.write_obj(head, slot).unwrap();
        *index = index.wrapping_add(1);
        fence(Ordering::SeqCst);
        self.memory.write_obj(*index, GuestAddress(ring + 2)).unwrap();
    }

    pub(crate) fn set_avail_index(&mut self, queue: u32, index: u16) {
        let ring = QUEUE_STRIDE * u64::from(queue) + AVAIL;
        self.memory.write_obj(index, GuestAddress(ring + 2)).unwrap();
    }

    /// Without EVENT_IDX: whether the driver wants no interrupts.
    pub(crate) fn set_avail_flags(&self, queue: u32, flags: u16) {
        let ring = QUEUE_STRIDE * u64::from(queue) + AVAIL;
        self.memory.write_obj(flags, GuestAddress(ring)).unwrap();
    }

    /// Without EVENT_IDX: whether the device wants no doorbell.
    pub(crate) fn used_flags(&self, queue: u32) -> u16 {
        let ring = QUEUE_STRIDE * u64::from(queue) + USED;
        self.memory.read_obj(GuestAddress(ring)).unwrap()
    }

    /// With EVENT_IDX: the used index after which the driver wants an interrupt.
    pub(crate) fn set_used_event(&self, queue: u32, index: u16) {
        let ring = QUEUE_STRIDE * u64::from(queue) + AVAIL;
        self.memory.write_obj(index, GuestAddress(ring + 4 + 2 * u64::from(SIZE))).unwrap();
    }

    /// With EVENT_IDX: the available index after which the device wants the doorbell.
    pub(crate) fn avail_event(&self, queue: u32) -> u16 {
        let ring = QUEUE_STRIDE * u64::from(queue) + USED;
        self.memory.read_obj(GuestAddress(ring + 4 + 8 * u64::from(SIZE))).unwrap()
    }

    pub(crate) fn kick(&mut self, queue: u32) {
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, queue);
    }

    pub(crate) fn used_index(&self, queue: u32) -> u16 {
        let ring = QUEUE_STRIDE * u64::from(queue) + USED;
        self.memory.read_obj(GuestAddress(ring + 2)).unwrap()
    }

    /// Waits for the next used chain. Returns its head and the number of bytes written.
    pub(crate) fn wait_used(&mut self, queue: u32) -> (u32, u32) {
        let seen = self.seen[queue as usize];
        wait_until("a used buffer", || self.used_index(queue) != seen);
        let ring = QUEUE_STRIDE * u64::from(queue) + USED;
        let element = GuestAddress(ring + 4 + 8 * u64::from(seen % SIZE));
        self.seen[queue as usize] = seen.wrapping_add(1);
        let [id, len]: [u32; 2] = self.memory.read_obj(element).unwrap();
        (id, len)
    }

    /// Sends one chain and waits until it is used. Returns the number of bytes written.
    pub(crate) fn request(&mut self, buffers: &[Buffer]) -> u32 {
        self.write_chain(0, 0, buffers);
        self.make_available(0, 0);
        self.kick(0);
        let (head, len) = self.wait_used(0);
        assert_eq!(head, 0);
        len
    }

    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(crate) fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// How often the interrupt line rose.
    pub(crate) fn raised(&self) -> u32 {
        self.raised.load(Ordering::SeqCst)
    }
}

pub(crate) fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !happened() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_micros(50));
    }
}

/// An event loop on a thread that ends with the test.
pub(crate) struct TestLoop {
    pub(crate) handle: LoopHandle,
    thread: Option<JoinHandle<()>>,
}

impl TestLoop {
    pub(crate) fn start() -> Self {
        let event_loop = EventLoop::new().unwrap();
        let handle = event_loop.handle();
        let thread = thread::spawn(move || event_loop.run().unwrap());
        Self { handle, thread: Some(thread) }
    }
}

impl Drop for TestLoop {
    fn drop(&mut self) {
        self.handle.stop();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking());
    }
}

/// An access to the registers: mostly one that a driver makes, with any value.
pub(crate) fn any_write() -> impl Strategy<Value = (u64, Vec<u8>)> {
    let register = prop_oneof![
        Just(VIRTIO_MMIO_STATUS),
        Just(VIRTIO_MMIO_QUEUE_READY),
        Just(VIRTIO_MMIO_QUEUE_NOTIFY),
        (0..0x40u32).prop_map(|index| index * 4),
    ];
    let value = prop_oneof![
        prop::sample::select(vec![
            0,
            1,
            ACKNOWLEDGED,
            FEATURES_OK,
            DRIVER_OK,
            2,
            16,
            0x1000,
            0x2000
        ]),
        any::<u32>(),
    ];
    let proper = (register, value)
        .prop_map(|(register, value)| (u64::from(register), value.to_le_bytes().to_vec()));
    // The features that every driver must take.
    let modern = prop::sample::select(vec![
        (VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1u32),
        (VIRTIO_MMIO_DRIVER_FEATURES, 1),
        (VIRTIO_MMIO_DRIVER_FEATURES, 0x101),
    ])
    .prop_map(|(register, value)| (u64::from(register), value.to_le_bytes().to_vec()));
    let wild = (0..0x200u64, prop::collection::vec(any::<u8>(), 0..9));
    prop_oneof![8 => proper, 3 => modern, 1 => wild]
}
