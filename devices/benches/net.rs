//! The cost of virtio-net itself: frames through the device, without a guest or a network.
//!
//! `cargo bench -p boxlite-devices --bench net`
//!
//! An iteration is a turn of the network: frames are received or sent, and then flushed. The frames'
//! memory is in the CPU's caches.

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
use boxlite_devices_testing::{Driver, Line, Registers};
use boxlite_hv::Doorbell;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use vm_memory::GuestAddress;

const RX: usize = 0;
const TX: usize = 1;

/// Size of a queue, in chains.
const SIZE: u16 = 256;
/// Frames in a turn.
const TURN: u16 = 64;

/// Address of a header and a frame that the guest sends, and of receive buffers of a page each.
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

struct Transport(MmioTransport);

impl Registers for Transport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.write(offset, data);
    }
}

/// A guest's driver with a running device, and the device's port.
fn start() -> (Driver<Transport>, NetPort) {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
    let (memory, line, slot) = (Arc::new(memory), Line::default(), Slot::default());
    let device = NetDevice::new(NetOptions::new([2; 6]), slot.clone()).expect("a device");
    let doorbell = Doorbell::new().expect("a doorbell");
    let transport =
        MmioTransport::new(Box::new(device), Arc::clone(&memory), line.interrupt(), doorbell)
            .expect("a transport");
    let mut guest = Driver::new(Transport(transport), memory, line, SIZE);
    guest.start(u64::MAX, 2);
    (guest, slot.detach_port())
}

impl Slot {
    fn detach_port(&self) -> NetPort {
        self.0.lock().expect("the port").take().expect("a port")
    }
}

const LENS: [usize; 3] = [60, 1514, 65_534];

/// The guest sends frames as Linux does: with the header in a descriptor of its own, and the frame in
/// pages.
fn transmit(c: &mut Criterion, name: &str, take: fn(&mut NetPort, &mut [u8]) -> bool) {
    let mut group = c.benchmark_group(name);
    for len in LENS {
        let (guest, mut port) = start();
        let (memory, mut ring) = (&*guest.memory, guest.rings[TX].clone());
        let mut chain = vec![(FRAME, 12, false)];
        for from in (0..len).step_by(0x1000) {
            let piece = u32::try_from((len - from).min(0x1000)).expect("a page");
            chain.push((FRAME + 0x1000 + from as u64, piece, false));
        }
        ring.write_chain(memory, 0, &chain);
        (0..SIZE).for_each(|slot| ring.write_slot(memory, slot, 0));
        let mut buffer = vec![0; MAX_FRAME];
        group.throughput(Throughput::Bytes(len as u64 * u64::from(TURN)));
        group.bench_function(format!("{len} bytes"), |b| {
            b.iter(|| {
                ring.offer(memory, TURN);
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
        let (guest, mut port) = start();
        let (memory, mut ring) = (&*guest.memory, guest.rings[RX].clone());
        for index in 0..SIZE {
            let at = BUFFERS + BUFFER * u64::from(index);
            ring.write_chain(memory, index, &[(at, BUFFER as u32, true)]);
            ring.write_slot(memory, index, index);
        }
        ring.offer(memory, SIZE);
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
                            let now = ring.used_index(memory);
                            ring.offer(memory, now.wrapping_sub(used));
                            used = now;
                        }
                        Sent::Dropped => panic!("a frame was dropped"),
                    }
                }
                port.flush().expect("a good queue");
            });
        });
    }
}

criterion_group!(benches, receive, send);
criterion_main!(benches);
