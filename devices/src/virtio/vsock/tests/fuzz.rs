//! Property tests with random guests and clients.

use std::net::Shutdown;

use proptest::prelude::*;

use super::*;
use crate::virtio::vsock::GUEST_CID;
use crate::virtio::vsock::packet::Header;

/// A packet with random fields, of one of a few connections.
fn any_header() -> impl Strategy<Value = Header> {
    let cid = |usual: u64| prop_oneof![20 => Just(usual), 1 => 0..5u64, 1 => any::<u64>()];
    (
        (cid(GUEST_CID.into()), cid(2)),
        (0..3u32, prop_oneof![0..3u32, (1u32 << 30)..(1 << 30) + 4]),
        prop_oneof![9 => 0..300u32, 1 => any::<u32>()],
        prop_oneof![20 => Just(1u16), 1 => any::<u16>()],
        prop_oneof![20 => 1..8u16, 1 => any::<u16>()],
        prop_oneof![0..4u32, any::<u32>()],
        (prop_oneof![Just(256 * 1024), any::<u32>()], prop_oneof![0..1000u32, any::<u32>()]),
    )
        .prop_map(|(cids, ports, len, socket_type, op, flags, credit)| Header {
            src_cid: cids.0.into(),
            dst_cid: cids.1.into(),
            src_port: (PORT + ports.0).into(),
            dst_port: ports.1.into(),
            len: len.into(),
            socket_type: socket_type.into(),
            op: op.into(),
            flags: flags.into(),
            buf_alloc: credit.0.into(),
            fwd_cnt: credit.1.into(),
        })
}

/// A step of a hostile guest, a client or a server.
#[derive(Clone, Debug)]
enum Hostile {
    Packet(Header, usize, Vec<usize>),
    Chain(Vec<(u64, u32)>, bool),
    Client(Vec<u8>),
    ClientWrites(usize, Vec<u8>),
    ClientShutsDown(usize, Shutdown),
    ClientCloses(usize),
    ServerWrites(Vec<u8>),
    ServerCloses,
    Receive,
    ResetTransport,
}

fn any_hostile() -> impl Strategy<Value = Hostile> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..300);
    let address = prop_oneof![0..0x400_1000u64, any::<u64>()];
    prop_oneof![
        20 => (any_header(), 0..300usize, prop::collection::btree_set(1..44usize, 0..4))
            .prop_map(|(header, len, cuts)| Hostile::Packet(header, len, cuts.into_iter().collect())),
        2 => (prop::collection::vec((address, 0..70_000u32), 1..5), any::<bool>())
            .prop_map(|(chain, writable)| Hostile::Chain(chain, writable)),
        2 => prop_oneof![
            (0..4u32).prop_map(|port| format!("CONNECT {}\n", PORT + port).into_bytes()),
            bytes(),
        ].prop_map(Hostile::Client),
        2 => (0..8usize, bytes()).prop_map(|(index, bytes)| Hostile::ClientWrites(index, bytes)),
        1 => (0..8usize, any::<bool>()).prop_map(|(index, read)| {
            Hostile::ClientShutsDown(index, if read { Shutdown::Read } else { Shutdown::Write })
        }),
        1 => (0..8usize).prop_map(Hostile::ClientCloses),
        1 => bytes().prop_map(Hostile::ServerWrites),
        1 => Just(Hostile::ServerCloses),
        8 => Just(Hostile::Receive),
        1 => Just(Hostile::ResetTransport),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever a guest and clients do, the device keeps working and does not spin.
    #[test]
    fn any_steps_are_survived(steps in prop::collection::vec(any_hostile(), 0..150)) {
        let (ports, served) = all_ports();
        let mut guest = Guest::with(Setup { rx_size: 8, ..Setup::default() }, ports);
        let mut clients = Vec::new();
        let mut servers = Vec::new();
        for step in steps {
            let count = clients.len().max(1);
            match step {
                Hostile::Packet(header, len, cuts) => {
                    guest.try_send(&header, &pattern(len), &cuts);
                }
                Hostile::Chain(chain, writable) => {
                    guest.send_chain(&chain, writable);
                }
                Hostile::Client(line) => {
                    let (ours, mut client) = pair();
                    client.write_all(&line).unwrap();
                    if guest.handle().attach(ours).is_ok() {
                        clients.push(client);
                    }
                }
                Hostile::ClientWrites(index, bytes) => {
                    if let Some(client) = clients.get_mut(index % count) {
                        let _ = client.write(&bytes);
                    }
                }
                Hostile::ClientShutsDown(index, how) => {
                    if let Some(client) = clients.get_mut(index % count) {
                        let _ = client.shutdown(how);
                    }
                }
                Hostile::ClientCloses(index) => {
                    if !clients.is_empty() {
                        clients.swap_remove(index % count);
                    }
                }
                Hostile::ServerWrites(bytes) => {
                    servers.extend(served.try_iter());
                    if let Some((_, server)) = servers.last_mut() {
                        let _ = Write::write(server, &bytes);
                    }
                }
                Hostile::ServerCloses => {
                    servers.pop();
                }
                Hostile::Receive => while guest.receive_within(Duration::ZERO).is_some() {},
                Hostile::ResetTransport => guest.handle().reset_transport().unwrap(),
            }
        }
        while guest.receive_within(Duration::from_millis(20)).is_some() {}
        guest.event_loop.assert_idle();
        // It still serves a connection that follows the protocol.
        guest.handle().reset_transport().unwrap();
        drop((clients, servers));
        let (ours, mut client) = pair();
        guest.handle().attach(ours).unwrap();
        client.write_all(b"CONNECT 9\nhello").unwrap();
        let mut socket = loop {
            let packet = guest.receive();
            if packet.op() == op::REQUEST && packet.header.dst_port.get() == 9 {
                break Socket::of(&packet);
            }
        };
        socket.send(&mut guest, op::RESPONSE);
        prop_assert_eq!(socket.read_exact(&mut guest, 5), b"hello");
        prop_assert_eq!(guest.device.running.is_some(), true);
    }
}

/// A step of a guest or a client that follow the protocol.
#[derive(Clone, Debug)]
enum Step {
    GuestWrites(usize),
    GuestReads(usize),
    ClientWrites(usize),
    ClientReads(usize),
}

/// The most bytes that one step writes or reads.
const STEP_MAX: usize = 100_000;
/// The most steps of a case.
const STEPS_MAX: usize = 60;
/// The most further steps until each side has read all bytes of the other.
const SETTLE_MAX: usize = 20_000;

fn any_step() -> impl Strategy<Value = Step> {
    (0..4u8, prop_oneof![1..100usize, 1..STEP_MAX]).prop_map(|(kind, len)| match kind {
        0 => Step::GuestWrites(len),
        1 => Step::GuestReads(len),
        2 => Step::ClientWrites(len),
        _ => Step::ClientReads(len),
    })
}

/// A connection, and how many bytes each side has written and read.
struct Connection {
    guest: Guest,
    socket: Socket,
    client: UnixStream,
    /// The bytes that each side writes.
    data: Vec<u8>,
    /// Bytes that the guest has received and not read.
    inbox: Vec<u8>,
    guest_wrote: usize,
    guest_read: usize,
    client_wrote: usize,
    client_read: usize,
}

impl Connection {
    fn new(buf_alloc: u32, rx_buffer: u32) -> Self {
        let setup = Setup { rx_size: 32, rx_buffer, ..Setup::default() };
        let mut guest = Guest::with(setup, no_ports);
        let (client, socket) = connect_with_buffer(&mut guest, buf_alloc);
        client.set_nonblocking(true).unwrap();
        Self {
            guest,
            socket,
            client,
            data: pattern(STEP_MAX * (STEPS_MAX + 1)),
            inbox: Vec::new(),
            guest_wrote: 0,
            guest_read: 0,
            client_wrote: 0,
            client_read: 0,
        }
    }

    /// Takes one step, then receives as [`receive`](Self::receive) does.
    fn step(&mut self, step: &Step, patience: Duration) -> Result<(), TestCaseError> {
        match *step {
            Step::GuestWrites(len) => self.guest_writes(len),
            Step::GuestReads(len) => self.guest_reads(len),
            Step::ClientWrites(len) => self.client_writes(len)?,
            Step::ClientReads(len) => self.client_reads(len)?,
        }
        self.receive(patience)
    }

    /// Lets both sides read until all bytes have arrived.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        let reads = [Step::GuestReads(usize::MAX), Step::ClientReads(usize::MAX)];
        for step in reads.iter().cycle().take(SETTLE_MAX) {
            if self.is_settled() {
                return Ok(());
            }
            self.step(step, Duration::from_millis(1))?;
        }
        prop_assert!(self.is_settled(), "stalled");
        Ok(())
    }

    fn is_settled(&self) -> bool {
        self.client_read == self.guest_wrote && self.guest_read == self.client_wrote
    }

    fn guest_writes(&mut self, len: usize) {
        let len = len.min(self.socket.credit());
        let bytes = &self.data[self.guest_wrote..self.guest_wrote + len];
        self.socket.write(&mut self.guest, bytes);
        self.guest_wrote += len;
    }

    fn guest_reads(&mut self, len: usize) {
        let len = len.min(self.inbox.len());
        assert_same(&self.inbox[..len], &self.data[self.guest_read..self.guest_read + len]);
        self.inbox.drain(..len);
        self.guest_read += len;
        self.socket.fwd_cnt += len as u32;
        if len > 0 {
            self.socket.send(&mut self.guest, op::CREDIT_UPDATE);
        }
    }

    fn client_writes(&mut self, len: usize) -> Result<(), TestCaseError> {
        match self.client.write(&self.data[self.client_wrote..self.client_wrote + len]) {
            Ok(len) => self.client_wrote += len,
            Err(e) => prop_assert_eq!(e.kind(), ErrorKind::WouldBlock),
        }
        Ok(())
    }

    fn client_reads(&mut self, len: usize) -> Result<(), TestCaseError> {
        let mut bytes = vec![0; len.min(300_000)];
        match self.client.read(&mut bytes) {
            Ok(len) => {
                prop_assert!(len > 0, "the stream ended");
                assert_same(&bytes[..len], &self.data[self.client_read..self.client_read + len]);
                self.client_read += len;
            }
            Err(e) => prop_assert_eq!(e.kind(), ErrorKind::WouldBlock),
        }
        Ok(())
    }

    /// Receives until the device is silent for `patience`.
    fn receive(&mut self, patience: Duration) -> Result<(), TestCaseError> {
        while let Some(packet) = self.guest.receive_within(patience) {
            self.socket.see(&packet);
            self.inbox.extend(&packet.data);
            let credit = self.socket.buf_alloc as usize;
            prop_assert!(self.inbox.len() <= credit, "more than there was credit for");
            match packet.op() {
                op::CREDIT_REQUEST => self.socket.send(&mut self.guest, op::CREDIT_UPDATE),
                op::RW | op::CREDIT_UPDATE => {}
                other => prop_assert!(false, "{}", other),
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// All bytes arrive in order, in any order of steps.
    #[test]
    fn all_bytes_arrive_in_order(
        steps in prop::collection::vec(any_step(), 0..STEPS_MAX),
        buf_alloc in 1000..300_000u32,
        rx_buffer in 45..9000u32,
    ) {
        let mut connection = Connection::new(buf_alloc, rx_buffer);
        for step in &steps {
            connection.step(step, Duration::ZERO)?;
        }
        connection.settle()?;
    }
}
