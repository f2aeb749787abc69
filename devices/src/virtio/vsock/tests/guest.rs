//! The guest's side for tests: a driver with real rings in memory, which believes every
//! notification that it gets and gives only those that it must, and sockets on top of it.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

use crate::virtio::vsock::packet::{HEADER_SIZE, HOST_CID, Header, TYPE_STREAM, op};
use crate::virtio::vsock::{GUEST_CID, HostPorts, Timeouts, Vsock, VsockHandle};
use crate::virtio::{Activation, QueueInterrupt, VirtioDevice};
use crate::{Doorbell, EventLoop, GuestMemory, Interrupt, LoopHandle};

pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;
pub(super) const EVENT: usize = 2;

/// How long anything may take. Generous: test machines are slow and busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where each ring has its tables and its buffers.
const RING: u64 = 0x1_0000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x4000;
const BUFFERS: [u64; 3] = [0x40_0000, 0x80_0000, 0x30_0000];
const SLOT: u64 = 0x1_1000;
const MEMORY: usize = 0x200_0000;

/// One virtqueue, as its driver sees it.
pub(super) struct Vring {
    index: usize,
    size: u16,
    event_idx: bool,
    avail: u16,
    seen: u16,
    /// Descriptors that are not in use; each chain starts with one and takes as many as it needs.
    free: Vec<u16>,
}

impl Vring {
    fn new(index: usize, size: u16, event_idx: bool) -> Self {
        Self { index, size, event_idx, avail: 0, seen: 0, free: (0..size).rev().collect() }
    }

    fn base(&self) -> u64 {
        RING * (self.index as u64 + 1)
    }

    fn queue(&self, memory: &GuestMemory) -> Queue {
        memory.write_slice(&[0; RING as usize], GuestAddress(self.base())).unwrap();
        let mut queue = Queue::new(256.max(self.size)).unwrap();
        queue.try_set_size(self.size).unwrap();
        queue.try_set_desc_table_address(GuestAddress(self.base())).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(self.base() + AVAIL)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(self.base() + USED)).unwrap();
        queue.set_event_idx(self.event_idx);
        queue.set_ready(true);
        queue
    }

    fn load(&self, memory: &GuestMemory, offset: u64) -> u16 {
        memory.load(GuestAddress(self.base() + offset), Ordering::Acquire).unwrap()
    }

    fn store(&self, memory: &GuestMemory, offset: u64, value: u16) {
        memory.store(value, GuestAddress(self.base() + offset), Ordering::Release).unwrap();
    }

    /// Makes a chain available. Returns whether the device wants to hear of it.
    fn publish(&mut self, memory: &GuestMemory, chain: &[(u64, u32)], writable: bool) -> bool {
        let at = self.free.len() - chain.len();
        let ids = self.free.split_off(at);
        for (position, (&id, &(address, len))) in ids.iter().zip(chain).enumerate() {
            let mut flags = if writable { VRING_DESC_F_WRITE } else { 0 };
            let next = ids.get(position + 1).copied();
            if next.is_some() {
                flags |= VRING_DESC_F_NEXT;
            }
            let descriptor = Descriptor::new(address, len, flags as u16, next.unwrap_or(0));
            let slot = GuestAddress(self.base() + 16 * u64::from(id));
            memory.write_obj(RawDescriptor::from(descriptor), slot).unwrap();
        }
        self.publish_head(memory, ids[0])
    }

    fn publish_head(&mut self, memory: &GuestMemory, head: u16) -> bool {
        let old = self.avail;
        self.store(memory, AVAIL + 4 + 2 * u64::from(old % self.size), head);
        self.avail = old.wrapping_add(1);
        self.store(memory, AVAIL + 2, self.avail);
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.load(memory, USED + 4 + 8 * u64::from(self.size));
            self.avail.wrapping_sub(event).wrapping_sub(1) < self.avail.wrapping_sub(old)
        } else {
            self.load(memory, USED) & 1 == 0
        }
    }

    /// The next used chain: its descriptors and the number of bytes written.
    fn take_used(&mut self, memory: &GuestMemory) -> Option<(Vec<u16>, u32)> {
        if self.load(memory, USED + 2) == self.seen {
            return None;
        }
        let slot = self.base() + USED + 4 + 8 * u64::from(self.seen % self.size);
        let [head, len]: [u32; 2] = memory.read_obj(GuestAddress(slot)).unwrap();
        self.seen = self.seen.wrapping_add(1);
        let mut ids = vec![head as u16];
        loop {
            let at = GuestAddress(self.base() + 16 * u64::from(*ids.last().unwrap()));
            let descriptor: Descriptor = memory.read_obj::<RawDescriptor>(at).unwrap().into();
            if !descriptor.has_next() {
                break;
            }
            ids.push(descriptor.next());
        }
        Some((ids, len))
    }

    fn recycle(&mut self, ids: Vec<u16>) {
        self.free.extend(ids.into_iter().rev());
    }

    /// Asks for an interrupt with the next used chain. Returns whether there is one already.
    fn ask_for_interrupt(&self, memory: &GuestMemory) -> bool {
        self.store(memory, AVAIL + 4 + 2 * u64::from(self.size), self.seen);
        fence(Ordering::SeqCst);
        self.load(memory, USED + 2) != self.seen
    }
}

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

#[derive(Default)]
struct Line {
    raised: Mutex<u64>,
    changed: Condvar,
}

/// How a guest is set up.
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
    pub(super) rings: [Vring; 3],
    doorbell: Doorbell,
    line: Arc<Line>,
    interrupt: QueueInterrupt,
    event_idx: bool,
    rx_size: u16,
    pub(super) rx_buffer: u32,
    received: VecDeque<Packet>,
    // Last: the device goes first.
    pub(super) event_loop: TestLoop,
}

impl Guest {
    /// A guest that is up and has filled its rx queue.
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
        let line = Arc::<Line>::default();
        let rising = Arc::clone(&line);
        let interrupt = Interrupt::new(move || {
            *rising.raised.lock().unwrap() += 1;
            rising.changed.notify_all();
            Ok(())
        });
        let mut guest = Self {
            device,
            memory: Arc::new(GuestMemory::from_ranges(&regions).unwrap()),
            rings: [0, 1, 2].map(|index| Vring::new(index, 16, false)),
            doorbell: Doorbell::new().unwrap(),
            line,
            interrupt: QueueInterrupt::new(interrupt),
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
        self.rings = [0, 1, 2].map(|index| Vring::new(index, sizes[index], self.event_idx));
        self.received.clear();
        let activation = Activation {
            memory: Arc::clone(&self.memory),
            queues: self.rings.iter().map(|ring| ring.queue(&self.memory)).collect(),
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

    /// How often the interrupt line rose.
    pub(super) fn interrupts(&self) -> u64 {
        *self.line.raised.lock().unwrap()
    }

    /// Waits for an interrupt after which `take` finds something.
    pub(super) fn wait<T>(
        &mut self,
        ring: usize,
        what: &str,
        mut take: impl FnMut(&mut Self) -> Option<T>,
    ) -> T {
        self.wait_for(ring, PATIENCE, &mut take).unwrap_or_else(|| panic!("in vain: {what}"))
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
            if self.rings[ring].ask_for_interrupt(&self.memory) {
                continue;
            }
            let line = Arc::clone(&self.line);
            let raised = line.raised.lock().unwrap();
            let left = deadline.saturating_duration_since(Instant::now());
            let woken =
                line.changed.wait_timeout_while(raised, left, |now| *now == before).unwrap();
            if woken.1.timed_out() {
                return None;
            }
        }
    }

    /// Takes what is in the rx queue, and gives the buffers back.
    fn poll(&mut self) {
        let before = self.rings[RX].free.len();
        while let Some(packet) = self.take_packet() {
            self.received.extend(packet);
        }
        self.give(self.rings[RX].free.len() - before);
    }

    /// Takes the next buffer out of the rx queue, and the packet out of that if it is not empty.
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
        let header: Header =
            zerocopy::FromBytes::read_from_bytes(header).expect("44 bytes of header");
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

    /// The next packet from the device, which has to be of this kind.
    pub(super) fn expect(&mut self, op: u16) -> Packet {
        let packet = self.receive();
        assert_eq!(packet.op(), op, "{packet:?}");
        packet
    }

    /// The next packet, if one comes in a while.
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

    /// Gives the device a packet without waiting for it, in a chain cut at `cuts`. False if the tx
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

    /// Gives the device a packet, as Linux lays it out.
    pub(super) fn send(&mut self, header: &Header, data: &[u8]) {
        let cuts: &[usize] = if data.is_empty() { &[] } else { &[HEADER_SIZE] };
        self.wait(TX, "room in the tx queue", |guest| {
            guest.try_send(header, data, cuts).then_some(())
        });
    }

    /// Makes a chain of the tx queue available that is made of anything, if it has room.
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

    /// Makes more chains available than the ring has.
    pub(super) fn break_avail_index(&mut self, ring: usize) {
        let ring = &self.rings[ring];
        ring.store(&self.memory, AVAIL + 2, ring.avail.wrapping_add(ring.size * 2));
    }

    /// Why the line rose: 1 for used buffers, 2 for the configuration.
    pub(super) fn interrupt_status(&self) -> u32 {
        self.interrupt.status()
    }

    /// Gives the device a buffer for an event, and waits for the event.
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

/// A socket of the guest: what its driver knows of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Socket {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
    pub(super) buf_alloc: u32,
    /// Read by the application.
    pub(super) fwd_cnt: u32,
    pub(super) tx_cnt: u32,
    pub(super) peer_buf_alloc: u32,
    pub(super) peer_fwd_cnt: u32,
}

impl Socket {
    pub(super) fn new(host_port: u32, guest_port: u32) -> Self {
        Self {
            host_port,
            guest_port,
            buf_alloc: 256 * 1024,
            fwd_cnt: 0,
            tx_cnt: 0,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
        }
    }

    /// The socket that the host's REQUEST is for.
    pub(super) fn of(request: &Packet) -> Self {
        let mut socket = Self::new(request.header.src_port.get(), request.header.dst_port.get());
        socket.see(request);
        socket
    }

    /// Takes over the host's credit.
    pub(super) fn see(&mut self, packet: &Packet) {
        assert_eq!(packet.header.src_cid.get(), HOST_CID);
        assert_eq!(packet.header.socket_type.get(), TYPE_STREAM);
        assert_eq!(packet.header.src_port.get(), self.host_port);
        assert_eq!(packet.header.dst_port.get(), self.guest_port);
        self.peer_buf_alloc = packet.header.buf_alloc.get();
        self.peer_fwd_cnt = packet.header.fwd_cnt.get();
    }

    pub(super) fn credit(&self) -> usize {
        (self.peer_buf_alloc - self.tx_cnt.wrapping_sub(self.peer_fwd_cnt)) as usize
    }

    pub(super) fn header(&self, op: u16) -> Header {
        Header {
            src_cid: GUEST_CID.into_u64(),
            dst_cid: HOST_CID.into(),
            src_port: self.guest_port.into(),
            dst_port: self.host_port.into(),
            socket_type: TYPE_STREAM.into(),
            op: op.into(),
            buf_alloc: self.buf_alloc.into(),
            fwd_cnt: self.fwd_cnt.into(),
            ..Header::default()
        }
    }

    pub(super) fn send(&self, guest: &mut Guest, op: u16) {
        guest.send(&self.header(op), &[]);
    }

    pub(super) fn shutdown(&self, guest: &mut Guest, flags: u32) {
        guest.send(&Header { flags: flags.into(), ..self.header(op::SHUTDOWN) }, &[]);
    }

    /// Sends data, whether there is credit for it or not.
    pub(super) fn write(&mut self, guest: &mut Guest, data: &[u8]) {
        for data in data.chunks(64 * 1024) {
            self.tx_cnt = self.tx_cnt.wrapping_add(data.len() as u32);
            let header = Header { len: (data.len() as u32).into(), ..self.header(op::RW) };
            guest.send(&header, data);
        }
    }

    /// Sends data as credit allows. Packets that come meanwhile may only be about credit.
    pub(super) fn write_all(&mut self, guest: &mut Guest, mut data: &[u8]) {
        while !data.is_empty() {
            let len = data.len().min(self.credit());
            if len == 0 {
                let update = guest.expect(op::CREDIT_UPDATE);
                self.see(&update);
                continue;
            }
            self.write(guest, &data[..len]);
            data = &data[len..];
        }
    }

    /// Reads what there is to read until `len` bytes, and tells the host of the room.
    pub(super) fn read_exact(&mut self, guest: &mut Guest, len: usize) -> Vec<u8> {
        let mut data = Vec::new();
        let mut told = self.fwd_cnt;
        while data.len() < len {
            let packet = guest.receive();
            self.see(&packet);
            match packet.op() {
                op::RW => {
                    assert!(!packet.data.is_empty());
                    self.fwd_cnt = self.fwd_cnt.wrapping_add(packet.data.len() as u32);
                    data.extend(packet.data);
                    if self.fwd_cnt.wrapping_sub(told) > self.buf_alloc / 2 {
                        told = self.fwd_cnt;
                        self.send(guest, op::CREDIT_UPDATE);
                    }
                }
                op::CREDIT_REQUEST => {
                    told = self.fwd_cnt;
                    self.send(guest, op::CREDIT_UPDATE);
                }
                op::CREDIT_UPDATE => {}
                _ => panic!("{packet:?}"),
            }
        }
        assert_eq!(data.len(), len);
        data
    }
}

/// `u32` into a header's 64 bits.
trait IntoU64 {
    fn into_u64(self) -> zerocopy::little_endian::U64;
}

impl IntoU64 for u32 {
    fn into_u64(self) -> zerocopy::little_endian::U64 {
        u64::from(self).into()
    }
}

/// Runs `work` while the guest does something else, for so long at most.
pub(super) fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl FnOnce() -> T {
    let (sender, receiver): (_, Receiver<T>) = channel();
    let thread = thread::spawn(move || {
        let _ = sender.send(work());
    });
    move || match receiver.recv_timeout(PATIENCE) {
        Ok(result) => {
            thread.join().unwrap();
            result
        }
        Err(RecvTimeoutError::Timeout) => panic!("it takes too long"),
        Err(RecvTimeoutError::Disconnected) => panic!("it failed: {:?}", thread.join().is_err()),
    }
}

/// An event loop on a thread of its own.
pub(super) struct TestLoop {
    pub(super) handle: LoopHandle,
    thread: Option<JoinHandle<()>>,
    /// `/proc/<process>/task/<thread>`.
    proc: PathBuf,
}

static LOOPS: AtomicU32 = AtomicU32::new(0);

impl TestLoop {
    fn start() -> Self {
        let event_loop = EventLoop::new().unwrap();
        let handle = event_loop.handle();
        let (sender, receiver) = channel();
        let name = format!("vsock-{}", LOOPS.fetch_add(1, Ordering::Relaxed));
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || {
                let _ = sender.send(fs::read_link("/proc/thread-self").unwrap());
                event_loop.run().unwrap();
            })
            .unwrap();
        let proc = PathBuf::from("/proc").join(receiver.recv().unwrap());
        Self { handle, thread: Some(thread), proc }
    }

    /// How much processor time the loop has used.
    fn busy(&self) -> Duration {
        let schedstat = fs::read_to_string(self.proc.join("schedstat")).unwrap();
        let nanoseconds = schedstat.split_whitespace().next().unwrap().parse().unwrap();
        Duration::from_nanos(nanoseconds)
    }

    /// The loop has nothing to do, and knows it.
    pub(super) fn assert_idle(&self) {
        thread::sleep(Duration::from_millis(20));
        let before = self.busy();
        thread::sleep(Duration::from_millis(150));
        let busy = self.busy() - before;
        assert!(busy < Duration::from_millis(5), "the event loop was busy for {busy:?}");
    }
}

impl Drop for TestLoop {
    fn drop(&mut self) {
        self.handle.stop();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking());
    }
}
