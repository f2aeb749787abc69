//! Frames through virtio-net with nobody at either end: what the device itself costs.
//!
//! `cargo bench -p boxlite-devices --bench net`
//!
//! An iteration is a turn of the network: frames are received or sent, and then flushed. Their memory
//! is in the CPU's caches.

// `criterion_group!` makes a public function without documentation.
#![allow(missing_docs)]

use std::hint::black_box;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};

use boxlite_devices::virtio::MmioTransport;
use boxlite_devices::virtio::net::{
    MAX_FRAME, NetBackend, NetDevice, NetOptions, NetPort, Offload, Sent,
};
use boxlite_devices::{BusDevice, GuestMemory};
use boxlite_hv::{Doorbell, Interrupt};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

const RX: u64 = 0;
const TX: u64 = 1;

/// Chains of a queue.
const SIZE: u16 = 256;
/// Frames of a turn.
const TURN: u16 = 64;

/// Where a queue's table and rings are, and the next queue's after them.
const STRIDE: u64 = 0x4000;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;

/// A header and a frame to send, and buffers of a page to receive to.
const FRAME: u64 = 0x10_0000;
const BUFFERS: u64 = 0x20_0000;
const BUFFER: u64 = 4096;
const MEMORY: usize = 0x40_0000;

#[derive(Clone, Default)]
struct Slot(Arc<Mutex<Option<NetPort>>>);

impl NetBackend for Slot {
    fn attach(&mut self, port: NetPort) -> io::Result<()> {
        *self.0.lock().expect("the port") = Some(port);
        Ok(())
    }

    fn detach(&mut self) -> Option<NetPort> {
        self.0.lock().expect("the port").take()
    }
}

/// A driver that has laid out its queues once and for all.
struct Guest {
    memory: Arc<GuestMemory>,
    _transport: MmioTransport,
    available: [u16; 2],
}

impl Guest {
    /// A guest with a running device, whose port is the second part.
    fn start() -> (Self, NetPort) {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
        let memory = Arc::new(memory);
        let slot = Slot::default();
        let device = NetDevice::new(NetOptions::new([2; 6]), slot.clone()).expect("a device");
        let mut transport = MmioTransport::new(
            Box::new(device),
            Arc::clone(&memory),
            Interrupt::new(|| Ok(())),
            Doorbell::new().expect("a doorbell"),
        )
        .expect("a transport");
        let mut write = |register: u32, value: u64| {
            let value = u32::try_from(value).expect("a register's value");
            transport.write(register.into(), &value.to_le_bytes());
        };
        write(VIRTIO_MMIO_STATUS, 3);
        for (window, features) in [(0, 0x3087_802b), (1, 1)] {
            write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, window);
            write(VIRTIO_MMIO_DRIVER_FEATURES, features);
        }
        write(VIRTIO_MMIO_STATUS, 11);
        for queue in [RX, TX] {
            write(VIRTIO_MMIO_QUEUE_SEL, queue);
            write(VIRTIO_MMIO_QUEUE_NUM, SIZE.into());
            write(VIRTIO_MMIO_QUEUE_DESC_LOW, STRIDE * queue + DESC);
            write(VIRTIO_MMIO_QUEUE_AVAIL_LOW, STRIDE * queue + AVAIL);
            write(VIRTIO_MMIO_QUEUE_USED_LOW, STRIDE * queue + USED);
            write(VIRTIO_MMIO_QUEUE_READY, 1);
        }
        write(VIRTIO_MMIO_STATUS, 15);
        let port = slot.detach_port();
        (Self { memory, _transport: transport, available: [0; 2] }, port)
    }

    fn describe(&self, queue: u64, index: u16, descriptor: Descriptor) {
        let at = GuestAddress(STRIDE * queue + DESC + 16 * u64::from(index));
        self.memory.write_obj(RawDescriptor::from(descriptor), at).expect("a descriptor");
    }

    /// Says which chain each slot of the available ring is.
    fn fill_ring(&self, queue: u64, head: impl Fn(u16) -> u16) {
        for slot in 0..SIZE {
            let at = GuestAddress(STRIDE * queue + AVAIL + 4 + 2 * u64::from(slot));
            self.memory.write_obj(head(slot), at).expect("the ring");
        }
    }

    /// Makes `count` more slots of the ring available.
    fn offer(&mut self, queue: u64, count: u16) {
        let index = &mut self.available[usize::try_from(queue).expect("a queue")];
        *index = index.wrapping_add(count);
        let at = GuestAddress(STRIDE * queue + AVAIL + 2);
        self.memory.write_obj(*index, at).expect("the ring");
    }

    fn used(&self, queue: u64) -> u16 {
        self.memory.read_obj(GuestAddress(STRIDE * queue + USED + 2)).expect("the ring")
    }
}

impl Slot {
    fn detach_port(&self) -> NetPort {
        self.0.lock().expect("the port").take().expect("a port")
    }
}

const LENS: [usize; 3] = [60, 1514, 65_534];

/// As Linux does: a header of its own, and the frame in pages.
fn transmit(c: &mut Criterion, name: &str, take: fn(&mut NetPort, &mut [u8]) -> bool) {
    let mut group = c.benchmark_group(name);
    for len in LENS {
        let (mut guest, mut port) = Guest::start();
        let next = VRING_DESC_F_NEXT as u16;
        let mut index = 0;
        guest.describe(TX, index, Descriptor::new(FRAME, 12, next, 1));
        for from in (0..len).step_by(0x1000) {
            index += 1;
            let last = from + 0x1000 >= len;
            let piece = u32::try_from((len - from).min(0x1000)).expect("a page");
            let flags = if last { 0 } else { next };
            let at = FRAME + 0x1000 + from as u64;
            guest.describe(TX, index, Descriptor::new(at, piece, flags, index + 1));
        }
        guest.fill_ring(TX, |_| 0);
        let mut buffer = vec![0; MAX_FRAME];
        group.throughput(Throughput::Bytes(len as u64 * u64::from(TURN)));
        group.bench_function(format!("{len} bytes"), |b| {
            b.iter(|| {
                guest.offer(TX, TURN);
                let mut taken = 0;
                while take(&mut port, &mut buffer) {
                    taken += 1;
                }
                port.flush().expect("a good queue");
                assert_eq!(taken, TURN);
            });
        });
    }
}

fn copied(port: &mut NetPort, buffer: &mut [u8]) -> bool {
    let Some(mut frame) = port.receive().expect("a good queue") else { return false };
    black_box(frame.read(buffer));
    true
}

fn in_place(port: &mut NetPort, buffer: &mut [u8]) -> bool {
    let Some(mut frame) = port.receive().expect("a good queue") else { return false };
    black_box(frame.read(&mut buffer[..54]));
    for slice in frame.slices() {
        black_box(slice);
    }
    true
}

fn receive(c: &mut Criterion) {
    transmit(c, "from guest, copied", copied);
    transmit(c, "from guest, in place", in_place);
}

fn send(c: &mut Criterion) {
    let mut group = c.benchmark_group("to guest");
    for len in LENS {
        let (mut guest, mut port) = Guest::start();
        for index in 0..SIZE {
            let at = BUFFERS + BUFFER * u64::from(index);
            let write = VRING_DESC_F_WRITE as u16;
            guest.describe(RX, index, Descriptor::new(at, BUFFER as u32, write, 0));
        }
        guest.fill_ring(RX, |slot| slot);
        guest.offer(RX, SIZE);
        let bytes = vec![0xff; len];
        let frame = [IoSlice::new(&bytes[..54]), IoSlice::new(&bytes[54..])];
        let mut used = 0u16;
        group.throughput(Throughput::Bytes(len as u64 * u64::from(TURN)));
        group.bench_function(format!("{len} bytes"), |b| {
            b.iter(|| {
                let mut sent = 0;
                while sent < TURN {
                    match port.send(&frame, &Offload::default()).expect("a good queue") {
                        Sent::Sent => sent += 1,
                        Sent::Full => {
                            port.flush().expect("a good queue");
                            let now = guest.used(RX);
                            guest.offer(RX, now.wrapping_sub(used));
                            used = now;
                        }
                        Sent::Dropped => panic!("a frame is dropped"),
                    }
                }
                port.flush().expect("a good queue");
            });
        });
    }
}

criterion_group!(benches, receive, send);
criterion_main!(benches);
