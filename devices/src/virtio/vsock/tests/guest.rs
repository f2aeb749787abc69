//! The guest's side for tests: a driver with real rings in memory. It relies on the interrupts that it
//! asks for, and notifies the device only when it has to.

use std::collections::VecDeque;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boxlite_hv::Doorbell;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, IntoBytes};

use super::event_loop::TestLoop;
use crate::GuestMemory;
use crate::virtio::testing::{Layout, Line, Ring};
use crate::virtio::vsock::packet::{HEADER_SIZE, Header, op};
use crate::virtio::vsock::{GUEST_CID, HostPorts, Timeouts, Vsock, VsockHandle};
use crate::virtio::{Activation, QueueInterrupt, VirtioDevice};

pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;
pub(super) const EVENT: usize = 2;

/// Time limit of a step. Generous: test machines are slow and busy.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// The address of each ring's buffers: 512 slots of rx, 64 of tx.
const BUFFERS: [u64; 3] = [0x40_0000, 0x300_0000, 0x30_0000];
const SLOT: u64 = 0x1_1000;
const MEMORY: usize = 0x400_0000;

/// A packet that the guest received.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub(super) header: Header,
    pub(super) data: Vec<u8>,
}

impl Packet {
    pub(super) fn op(&self) -> u16 {
        self.header.op.get()
    }
}

/// Options of a guest.
pub(super) struct Setup {
    pub(super) rx_size: u16,
    pub(super) rx_buffer: u32,
    pub(super) event_idx: bool,
    pub(super) timeouts: Timeouts,
    pub(super) listener: Option<UnixListener>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            rx_size: 64,
            rx_buffer: 4096,
            event_idx: true,
            timeouts: Timeouts::default(),
            listener: None,
        }
    }
}

/// A guest with a driver for the device.
pub(super) struct Guest {
    pub(super) device: Vsock,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) rings: [Ring; 3],
    doorbell: Doorbell,
    line: Line,
    interrupt: QueueInterrupt,
    event_idx: bool,
    rx_size: u16,
    pub(super) rx_buffer: u32,
    received: VecDeque<Packet>,
    // Last, so that the device is dropped before it.
    pub(super) event_loop: TestLoop,
}

impl Guest {
    /// A guest whose device runs and whose rx queue is full of buffers.
    pub(super) fn new(ports: impl HostPorts) -> Self {
        Self::with(Setup::default(), ports)
    }

    pub(super) fn with(setup: Setup, ports: impl HostPorts) -> Self {
        let mut guest = Self::without_buffers(setup, ports);
        guest.fill();
        guest
    }

    pub(super) fn without_buffers(setup: Setup, ports: impl HostPorts) -> Self {
        let event_loop = TestLoop::start();
        let mut device = Vsock::new(GUEST_CID, event_loop.handle.clone(), ports).unwrap();
        device.timeouts = setup.timeouts;
        if let Some(listener) = setup.listener {
            device = device.with_listener(listener).unwrap();
        }
        let regions = [(GuestAddress(0), 0x50_0000), (GuestAddress(0x50_0000), MEMORY - 0x50_0000)];
        let line = Line::default();
        let interrupt = QueueInterrupt::new(line.interrupt());
        let mut guest = Self {
            device,
            memory: Arc::new(GuestMemory::from_ranges(&regions).unwrap()),
            rings: [0, 1, 2].map(|index| Ring::new(Layout::of(index), 16, false)),
            doorbell: Doorbell::new().unwrap(),
            line,
            interrupt,
            event_idx: setup.event_idx,
            rx_size: setup.rx_size,
            rx_buffer: setup.rx_buffer,
            received: VecDeque::new(),
            event_loop,
        };
        guest.activate();
        guest
    }

    pub(super) fn activate(&mut self) {
        let sizes = [self.rx_size, 64, 16];
        self.rings =
            [0, 1, 2].map(|index| Ring::new(Layout::of(index), sizes[index], self.event_idx));
        self.received.clear();
        let activation = Activation {
            memory: Arc::clone(&self.memory),
            queues: self.rings.iter_mut().map(|ring| ring.queue(&self.memory)).collect(),
            doorbell: self.doorbell.try_clone().unwrap(),
            interrupt: self.interrupt.clone(),
            features: self.device.features(),
        };
        self.device.activate(activation).unwrap();
    }

    pub(super) fn handle(&self) -> VsockHandle {
        self.device.handle()
    }

    pub(super) fn kick(&self) {
        self.doorbell.ring().unwrap();
    }

    /// Gives the device as many rx buffers as fit.
    pub(super) fn fill(&mut self) {
        self.give(usize::from(self.rx_size));
    }

    /// Gives the device up to `count` rx buffers.
    pub(super) fn give(&mut self, count: usize) {
        let mut kick = false;
        for _ in 0..count.min(self.rings[RX].free.len()) {
            let slot = BUFFERS[RX] + SLOT * u64::from(*self.rings[RX].free.last().unwrap());
            kick |= self.rings[RX].publish(&self.memory, &[(slot, self.rx_buffer)], true);
        }
        if kick {
            self.kick();
        }
    }

    /// How often the interrupt line was raised.
    pub(super) fn interrupts(&self) -> u32 {
        self.line.raised()
    }

    /// Waits until `take` returns something, from interrupt to interrupt.
    pub(super) fn wait<T>(
        &mut self,
        ring: usize,
        what: &str,
        mut take: impl FnMut(&mut Self) -> Option<T>,
    ) -> T {
        self.wait_for(ring, PATIENCE, &mut take)
            .unwrap_or_else(|| panic!("timed out waiting for {what}"))
    }

    fn wait_for<T>(
        &mut self,
        ring: usize,
        patience: Duration,
        mut take: impl FnMut(&mut Self) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + patience;
        loop {
            let before = self.interrupts();
            if let Some(found) = take(self) {
                return Some(found);
            }
            if !self.rings[ring].ask_for_interrupt(&self.memory) {
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.line.wait_beyond(before, left) {
                return None;
            }
        }
    }

    /// Takes all packets in the rx queue, and makes their buffers available again.
    fn poll(&mut self) {
        let before = self.rings[RX].free.len();
        while let Some(packet) = self.take_packet() {
            self.received.extend(packet);
        }
        self.give(self.rings[RX].free.len() - before);
    }

    /// Takes the next used buffer of the rx queue, and its packet if it is not empty.
    pub(super) fn take_packet(&mut self) -> Option<Option<Packet>> {
        let (ids, len) = self.rings[RX].take_used(&self.memory)?;
        let at = GuestAddress(BUFFERS[RX] + SLOT * u64::from(ids[0]));
        self.rings[RX].recycle(ids);
        if len == 0 {
            return Some(None);
        }
        let mut bytes = vec![0; len as usize];
        self.memory.read_slice(&mut bytes, at).unwrap();
        let (header, data) = bytes.split_at(HEADER_SIZE);
        let header: Header = Header::read_from_bytes(header).expect("44 bytes of header");
        assert_eq!(header.len.get() as usize, data.len());
        assert_eq!(header.dst_cid.get(), u64::from(GUEST_CID));
        Some(Some(Packet { header, data: data.to_vec() }))
    }

    /// The next packet from the device.
    pub(super) fn receive(&mut self) -> Packet {
        self.wait(RX, "a packet", |guest| {
            guest.poll();
            guest.received.pop_front()
        })
    }

    /// The next packet from the device, which must have this operation.
    pub(super) fn expect(&mut self, op: u16) -> Packet {
        let packet = self.receive();
        assert_eq!(packet.op(), op, "{packet:?}");
        packet
    }

    /// The next packet from the device that is not a credit update, which must have this operation.
    pub(super) fn expect_besides_credit(&mut self, op: u16) -> Packet {
        loop {
            let packet = self.receive();
            if packet.op() != op::CREDIT_UPDATE {
                assert_eq!(packet.op(), op, "{packet:?}");
                return packet;
            }
        }
    }

    /// The next packet, if one arrives within `patience`.
    pub(super) fn receive_within(&mut self, patience: Duration) -> Option<Packet> {
        self.wait_for(RX, patience, |guest| {
            guest.poll();
            guest.received.pop_front()
        })
    }

    pub(super) fn expect_silence(&mut self) {
        let packet = self.receive_within(Duration::from_millis(100));
        assert!(packet.is_none(), "{packet:?}");
    }

    /// Makes a packet available without waiting, in a chain that is split at `cuts`. False if the tx
    /// queue is full.
    pub(super) fn try_send(&mut self, header: &Header, data: &[u8], cuts: &[usize]) -> bool {
        self.reclaim();
        let ring = &mut self.rings[TX];
        if ring.free.len() < cuts.len() + 1 {
            return false;
        }
        let slot = BUFFERS[TX] + SLOT * u64::from(ring.free[ring.free.len() - cuts.len() - 1]);
        let bytes = [header.as_bytes(), data].concat();
        assert!(bytes.len() as u64 <= SLOT);
        self.memory.write_slice(&bytes, GuestAddress(slot)).unwrap();
        let mut chain = Vec::new();
        let mut start = 0;
        for &end in cuts.iter().chain([&bytes.len()]) {
            chain.push((slot + start as u64, (end - start) as u32));
            start = end;
        }
        if ring.publish(&self.memory, &chain, false) {
            self.kick();
        }
        true
    }

    /// Makes a packet available, in the layout of Linux.
    pub(super) fn send(&mut self, header: &Header, data: &[u8]) {
        let cuts: &[usize] = if data.is_empty() { &[] } else { &[HEADER_SIZE] };
        self.wait(TX, "room in the tx queue", |guest| {
            guest.try_send(header, data, cuts).then_some(())
        });
    }

    /// Makes any chain of the tx queue available, if the queue has room.
    pub(super) fn send_chain(&mut self, chain: &[(u64, u32)], writable: bool) {
        self.reclaim();
        if self.rings[TX].free.len() >= chain.len() {
            self.rings[TX].publish(&self.memory, chain, writable);
            self.kick();
        }
    }

    fn reclaim(&mut self) {
        while let Some((ids, _)) = self.rings[TX].take_used(&self.memory) {
            self.rings[TX].recycle(ids);
        }
    }

    /// Waits until the device has taken all packets.
    pub(super) fn flush(&mut self) {
        self.wait(TX, "the device to take all packets", |guest| {
            guest.reclaim();
            (guest.rings[TX].free.len() == usize::from(guest.rings[TX].size)).then_some(())
        });
    }

    /// The interrupt status: 1 for used buffers, 2 for a change of configuration.
    pub(super) fn interrupt_status(&self) -> u32 {
        self.interrupt.status()
    }

    /// Gives the device a buffer for an event.
    pub(super) fn give_event_buffer(&mut self, len: u32) {
        if self.rings[EVENT].publish(&self.memory, &[(BUFFERS[EVENT], len)], true) {
            self.kick();
        }
    }

    pub(super) fn receive_event(&mut self) -> Vec<u8> {
        let len = self.wait(EVENT, "an event", |guest| {
            let (ids, len) = guest.rings[EVENT].take_used(&guest.memory)?;
            guest.rings[EVENT].recycle(ids);
            Some(len)
        });
        let mut event = vec![0; len as usize];
        self.memory.read_slice(&mut event, GuestAddress(BUFFERS[EVENT])).unwrap();
        event
    }
}
