//! Tests of the device between a guest's driver and a test in the network's place.

mod any;
mod link;
mod receive;
mod send;

use std::io::IoSlice;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL,
};

use super::*;
use crate::virtio::NeedsReset;
use crate::virtio::testing::{Buffer, DATA, DRIVER_OK, Driver, MEMORY_END, SIZE, driver};

const RX: u32 = 0;
const TX: u32 = 1;
const CONTROL: u32 = 2;

const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const GUEST_CSUM: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM;

const MAC: Mac = [2, 0xb0, 0, 0, 0, 1];

/// A `struct virtio_net_hdr` without offloads.
const PLAIN: [u8; 12] = [0; 12];

/// The network's end: it holds the port while the device runs.
#[derive(Clone, Default)]
struct Slot {
    port: Arc<Mutex<Option<NetPort>>>,
    refuses: bool,
}

impl NetBackend for Slot {
    fn attach(&mut self, port: NetPort) -> io::Result<()> {
        if self.refuses {
            return Err(io::Error::other("the network refuses"));
        }
        assert!(self.port.lock().unwrap().replace(port).is_none());
        Ok(())
    }

    fn detach(&mut self) -> Option<NetPort> {
        self.port.lock().unwrap().take()
    }
}

/// A guest and its network.
struct Pair {
    driver: Driver,
    slot: Slot,
    meter: NetMeter,
}

impl Pair {
    fn new(options: NetOptions) -> Self {
        let slot = Slot::default();
        let device = NetDevice::new(options, slot.clone()).unwrap();
        let meter = device.meter();
        Self { driver: driver(device), slot, meter }
    }

    /// A running pair.
    fn start(features: u64) -> Self {
        let mut pair = Self::new(NetOptions::new(MAC));
        pair.driver.start(features, 3);
        pair
    }

    fn port<T>(&self, work: impl FnOnce(&mut NetPort) -> T) -> T {
        work(self.slot.port.lock().unwrap().as_mut().expect("a port"))
    }

    /// The guest sends a chain, made of descriptors from `head` on.
    fn transmit(&mut self, head: u16, buffers: &[Buffer]) {
        self.driver.write_chain(TX, head, buffers);
        self.driver.make_available(TX, head);
    }

    /// The guest sends a header and a frame, from memory that belongs to the chain.
    fn transmit_frame(&mut self, head: u16, header: [u8; 12], frame: &[u8]) {
        let at = DATA + 0x1000 * u64::from(head);
        self.driver.put(at, &[&header, frame].concat());
        let len = u32::try_from(header.len() + frame.len()).unwrap();
        self.transmit(head, &[(at, len, false)]);
    }

    /// The next frame of the guest, copied.
    fn received(&self) -> Option<(Vec<u8>, Offload)> {
        self.port(|port| {
            let mut frame = port.receive().unwrap()?;
            let mut bytes = vec![0; frame.remaining()];
            assert_eq!(frame.read(&mut bytes), bytes.len());
            assert_eq!(frame.remaining(), 0);
            Some((bytes, frame.offload()))
        })
    }

    /// The guest makes a receive buffer in one piece available.
    fn add_buffer(&mut self, head: u16, address: u64, len: u32) {
        self.driver.write_chain(RX, head, &[(address, len, true)]);
        self.driver.make_available(RX, head);
    }

    fn send(&self, frame: &[u8]) -> Sent {
        self.send_with(frame, &Offload::default())
    }

    fn send_with(&self, frame: &[u8], offload: &Offload) -> Sent {
        // Split at an unusual place.
        let (a, b) = frame.split_at(frame.len().min(5));
        self.port(|port| port.send(&[IoSlice::new(a), IoSlice::new(b)], offload)).unwrap()
    }

    fn flush(&self) {
        self.port(|port| port.flush()).unwrap();
    }

    /// The guest sends a command, and the network is woken. Returns the command's `ack`.
    fn command(&mut self, command: &[u8]) -> Option<u8> {
        let len = u32::try_from(command.len()).unwrap();
        self.driver.put(DATA, command);
        self.driver.put(DATA + 0x1000, &[0xaa]);
        self.driver.write_chain(CONTROL, 0, &[(DATA, len, false), (DATA + 0x1000, 1, true)]);
        self.driver.make_available(CONTROL, 0);
        self.driver.kick(CONTROL);
        self.port(|port| port.woken());
        match self.driver.wait_used(CONTROL) {
            (0, 1) => Some(self.driver.get(DATA + 0x1000, 1)[0]),
            (0, 0) => None,
            other => panic!("another chain was used: {other:?}"),
        }
    }

    /// Whether the network's doorbell was rung since the last call.
    fn rung(&self) -> bool {
        self.port(|port| rustix::io::read(port.as_fd(), &mut [0u8; 8]).is_ok())
    }

    /// The MAC address in configuration space.
    fn mac(&mut self) -> Mac {
        let [a, b, c, d, e, f, ..] = self.driver.config::<8>(0);
        [a, b, c, d, e, f]
    }

    fn needs_reset(&mut self) -> bool {
        self.driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }
}

/// A broadcast frame of `len` bytes, whose content depends on `seed`.
fn frame(len: usize, seed: u8) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend((6..len).map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed));
    frame
}
