use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::virtio::vsock::credit::WINDOW;

const ID: ConnectionId = ConnectionId { host_port: 1 << 30, guest_port: 1024 };
const ROOM: u32 = 64 * 1024;

/// A packet from a guest that has `ROOM` bytes of room and has read nothing.
fn packet(op: u16) -> Header {
    Header {
        src_port: ID.guest_port.into(),
        dst_port: ID.host_port.into(),
        socket_type: TYPE_STREAM.into(),
        op: op.into(),
        buf_alloc: ROOM.into(),
        ..Header::default()
    }
}

fn data(len: u32) -> Header {
    Header { len: len.into(), ..packet(op::RW) }
}

fn shutdown(flags: u32) -> Header {
    Header { flags: flags.into(), ..packet(op::SHUTDOWN) }
}

/// Sends the next packet, which must be this control packet.
fn send_control(connection: &mut Connection, expected: Control) -> Header {
    assert_eq!(connection.next(false), Some(Outgoing::Control(expected)));
    connection.control(expected)
}

fn established() -> Connection {
    let mut connection = Connection::from_guest(&packet(op::REQUEST));
    send_control(&mut connection, Control::Response);
    connection
}

#[test]
fn the_host_requests_and_the_guest_accepts() {
    let mut connection = Connection::to_guest(ID);
    let request = send_control(&mut connection, Control::Request);
    assert_eq!(request.op.get(), op::REQUEST);
    assert_eq!(request.src_cid.get(), HOST_CID);
    assert_eq!((request.src_port.get(), request.dst_port.get()), (ID.host_port, ID.guest_port));
    assert_eq!((request.buf_alloc.get(), request.fwd_cnt.get()), (WINDOW, 0));
    // Data waits for the response.
    assert_eq!(connection.next(true), None);
    assert_eq!(connection.on_packet(&packet(op::RESPONSE)), Reaction::Accepted);
    assert_eq!(connection.next(true), Some(Outgoing::Data(ROOM)));
}

#[test]
fn the_guest_refuses() {
    let mut connection = Connection::to_guest(ID);
    send_control(&mut connection, Control::Request);
    assert_eq!(connection.on_packet(&packet(op::RST)), Reaction::Closed);
    assert_eq!(connection.phase(), Phase::Closed);
    assert_eq!(connection.next(true), None);
}

#[test]
fn a_response_before_the_request_is_a_violation() {
    let mut connection = Connection::to_guest(ID);
    assert!(matches!(connection.on_packet(&packet(op::RESPONSE)), Reaction::Violation(_)));
    assert_eq!(connection.phase(), Phase::Closed);
}

#[test]
fn a_forbidden_packet_closes_the_connection() {
    for bad in [packet(op::REQUEST), packet(op::RESPONSE), packet(0), packet(8), packet(u16::MAX)] {
        let mut connection = established();
        assert!(matches!(connection.on_packet(&bad), Reaction::Violation(_)), "{bad:?}");
        assert_eq!(connection.phase(), Phase::Closed);
        assert!(matches!(connection.on_packet(&data(1)), Reaction::Violation(_)));
    }
}

#[test]
fn a_credit_update_is_sent_before_credit_runs_out() {
    let mut connection = established();
    assert_eq!(connection.on_packet(&data(WINDOW)), Reaction::Payload);
    connection.forwarded(WINDOW / 2 - 1);
    assert_eq!(connection.next(false), None);
    connection.forwarded(1);
    let update = send_control(&mut connection, Control::CreditUpdate);
    assert_eq!((update.buf_alloc.get(), update.fwd_cnt.get()), (WINDOW, WINDOW / 2));
    assert_eq!(connection.next(false), None);
}

#[test]
fn any_packet_updates_credit() {
    let mut connection = established();
    assert_eq!(connection.on_packet(&data(WINDOW)), Reaction::Payload);
    connection.forwarded(WINDOW);
    assert_eq!(connection.on_packet(&packet(op::CREDIT_REQUEST)), Reaction::Nothing);
    assert_eq!(connection.next(true), Some(Outgoing::Data(ROOM)));
    assert_eq!(connection.data(1).fwd_cnt.get(), WINDOW);
    assert_eq!(connection.next(false), None);
}

#[test]
fn a_credit_request_is_answered_even_without_new_credit() {
    let mut connection = established();
    assert_eq!(connection.on_packet(&packet(op::CREDIT_REQUEST)), Reaction::Nothing);
    send_control(&mut connection, Control::CreditUpdate);
    assert_eq!(connection.next(false), None);
}

#[test]
fn a_byte_more_than_the_window_is_a_violation() {
    let mut connection = established();
    assert_eq!(connection.on_packet(&data(WINDOW)), Reaction::Payload);
    assert_eq!(connection.on_packet(&data(0)), Reaction::Payload);
    assert!(matches!(connection.on_packet(&data(1)), Reaction::Violation(_)));
    assert_eq!(connection.held(), WINDOW);
    assert!(matches!(established().on_packet(&data(u32::MAX)), Reaction::Violation(_)));
}

#[test]
fn without_credit_one_credit_request_is_sent() {
    let mut connection = established();
    connection.data(ROOM);
    assert_eq!(connection.next(true), Some(Outgoing::Control(Control::CreditRequest)));
    connection.control(Control::CreditRequest);
    assert_eq!(connection.next(true), None);
    // An answer without room causes no further request.
    connection.on_packet(&packet(op::CREDIT_UPDATE));
    assert_eq!(connection.next(true), None);
    let room = Header { fwd_cnt: 10.into(), ..packet(op::CREDIT_UPDATE) };
    connection.on_packet(&room);
    assert_eq!(connection.next(true), Some(Outgoing::Data(10)));
    connection.data(10);
    assert_eq!(connection.next(true), Some(Outgoing::Control(Control::CreditRequest)));
}

#[test]
fn wrong_fwd_cnt_gives_no_credit() {
    let mut connection = established();
    connection.data(1000);
    let update = |fwd_cnt: u32, buf_alloc: u32| Header {
        fwd_cnt: fwd_cnt.into(),
        buf_alloc: buf_alloc.into(),
        ..packet(op::CREDIT_UPDATE)
    };
    // More read than was ever sent.
    connection.on_packet(&update(1001, ROOM));
    assert_eq!(connection.next(true), Some(Outgoing::Data(ROOM - 1000)));
    connection.on_packet(&update(u32::MAX, ROOM));
    assert_eq!(connection.next(true), Some(Outgoing::Data(ROOM - 1000)));
    // Stale.
    connection.on_packet(&update(600, ROOM));
    connection.on_packet(&update(500, ROOM));
    assert_eq!(connection.next(true), Some(Outgoing::Data(ROOM - 400)));
    // A buffer that becomes smaller than its content.
    connection.on_packet(&update(600, 100));
    assert!(!matches!(connection.next(true), Some(Outgoing::Data(_))));
    connection.on_packet(&update(600, u32::MAX));
    assert_eq!(connection.next(true), Some(Outgoing::Data(u32::MAX - 400)));
}

#[test]
fn the_counters_wrap() {
    let mut connection = established();
    let mut sent = 0u32;
    for _ in 0..3 {
        let room = Header {
            buf_alloc: u32::MAX.into(),
            fwd_cnt: sent.into(),
            ..packet(op::CREDIT_UPDATE)
        };
        connection.on_packet(&room);
        assert_eq!(connection.next(true), Some(Outgoing::Data(u32::MAX)));
        connection.data(1 << 31);
        sent = sent.wrapping_add(1 << 31);
    }
    for _ in 0..u64::from(u32::MAX) / u64::from(WINDOW) + 3 {
        assert_eq!(connection.on_packet(&data(WINDOW)), Reaction::Payload);
        connection.forwarded(WINDOW);
        send_control(&mut connection, Control::CreditUpdate);
    }
    assert_eq!(connection.held(), 0);
}

#[test]
fn the_host_shuts_down_one_direction_and_then_the_other() {
    let mut connection = established();
    connection.host_ended_sending();
    assert_eq!(send_control(&mut connection, Control::Shutdown).flags.get(), 2);
    assert_eq!(connection.next(true), None);
    assert_eq!(connection.on_packet(&data(5)), Reaction::Payload);
    assert!(!connection.is_finished_by_host());
    connection.host_ended_receiving();
    assert_eq!(send_control(&mut connection, Control::Shutdown).flags.get(), 3);
    assert!(connection.is_finished_by_host());
    assert_eq!(connection.next(true), None);
    assert_eq!(connection.on_packet(&packet(op::RST)), Reaction::Closed);
}

#[test]
fn the_guest_shuts_down_one_direction_and_then_the_other() {
    let mut connection = established();
    assert_eq!(connection.on_packet(&data(5)), Reaction::Payload);
    assert_eq!(connection.on_packet(&shutdown(2)), Reaction::Nothing);
    assert_eq!(connection.next(true), Some(Outgoing::Data(ROOM)));
    assert_eq!(connection.on_packet(&shutdown(1)), Reaction::Nothing);
    assert_eq!(connection.guest_shutdown(), Shutdown { receive: true, send: true });
    assert_eq!(connection.next(true), None);
    // Its data comes first.
    assert!(!connection.is_finished_by_guest());
    connection.forwarded(5);
    assert!(connection.is_finished_by_guest());
    assert!(matches!(connection.on_packet(&data(1)), Reaction::Violation(_)));
}

/// A step of a connection with a guest that follows the protocol.
#[derive(Clone, Debug)]
enum Step {
    /// The guest's application writes this many bytes.
    GuestWrites(u32),
    /// The guest's application reads up to this many bytes.
    GuestReads(u32),
    /// The guest requests a credit update.
    GuestRequestsCredit,
    /// The client writes this many bytes.
    HostWrites(u32),
    /// The client reads up to this many bytes.
    HostReads(u32),
    /// The device sends up to this many packets, with up to this many bytes of data each.
    Send(u8, u32),
    /// The device receives all packets of the guest.
    Receive,
}

fn step() -> impl Strategy<Value = Step> {
    let count = || prop_oneof![1..100u32, 1..4 * WINDOW];
    prop_oneof![
        count().prop_map(Step::GuestWrites),
        count().prop_map(Step::GuestReads),
        Just(Step::GuestRequestsCredit),
        count().prop_map(Step::HostWrites),
        count().prop_map(Step::HostReads),
        (1..8u8, 1..100_000u32).prop_map(|(packets, len)| Step::Send(packets, len)),
        Just(Step::Receive),
    ]
}

/// A guest, a client, and the connection between them. Bytes are only counted.
struct World {
    connection: Connection,
    /// The guest's packets in its tx queue.
    tx: VecDeque<Header>,
    guest_room: u32,
    /// Bytes written by the guest's application, sent by the guest, and read by the client.
    guest: [u64; 3],
    /// The last `fwd_cnt` that the guest received.
    known: u32,
    /// Bytes written by the client, sent to the guest, and read by the guest's application.
    host: [u64; 3],
}

impl World {
    fn new(guest_room: u32) -> Self {
        let request = Header { buf_alloc: guest_room.into(), ..packet(op::REQUEST) };
        let mut connection = Connection::from_guest(&request);
        send_control(&mut connection, Control::Response);
        let (tx, guest, host) = Default::default();
        Self { connection, tx, guest_room, guest, known: 0, host }
    }

    fn guest_sends(&mut self, header: Header) {
        self.tx.push_back(Header {
            buf_alloc: self.guest_room.into(),
            fwd_cnt: (self.host[2] as u32).into(),
            ..header
        });
    }

    /// Sends data as a Linux guest does: as much as there is credit for, in packets of 64 KiB.
    fn guest_pushes(&mut self) {
        loop {
            let credit = WINDOW - (self.guest[1] as u32).wrapping_sub(self.known);
            let len = (self.guest[0] - self.guest[1]).min(credit.min(65536).into());
            if len == 0 {
                break;
            }
            self.guest[1] += len;
            self.guest_sends(data(len as u32));
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::GuestWrites(count) => self.guest[0] += u64::from(count),
            Step::GuestReads(count) => {
                let count = u64::from(count).min(self.host[1] - self.host[2]);
                self.host[2] += count;
                if count > 0 {
                    self.guest_sends(packet(op::CREDIT_UPDATE));
                }
            }
            Step::GuestRequestsCredit => self.guest_sends(packet(op::CREDIT_REQUEST)),
            Step::HostWrites(count) => self.host[0] += u64::from(count),
            Step::HostReads(count) => {
                let count = count.min(self.connection.held());
                self.connection.forwarded(count);
                self.guest[2] += u64::from(count);
            }
            Step::Send(packets, max) => {
                for _ in 0..packets {
                    self.send(max);
                }
            }
            Step::Receive => {
                while let Some(header) = self.tx.pop_front() {
                    let reaction = self.connection.on_packet(&header);
                    assert!(matches!(reaction, Reaction::Nothing | Reaction::Payload));
                }
            }
        }
        self.guest_pushes();
        assert!(self.connection.held() <= WINDOW);
        assert!(self.host[1] - self.host[2] <= u64::from(self.guest_room));
    }

    fn send(&mut self, max: u32) -> bool {
        let waiting = self.host[0] - self.host[1];
        let header = match self.connection.next(waiting > 0) {
            None => return false,
            Some(Outgoing::Control(control)) => self.connection.control(control),
            Some(Outgoing::Data(credit)) => {
                assert!(credit > 0);
                let len = u64::from(credit.min(max)).min(waiting);
                self.host[1] += len;
                self.connection.data(len as u32)
            }
        };
        self.known = header.fwd_cnt.get();
        if header.op.get() == op::CREDIT_REQUEST {
            self.guest_sends(packet(op::CREDIT_UPDATE));
        }
        true
    }
}

proptest! {
    /// Neither side exceeds its credit and, after any steps, all bytes arrive once both sides read.
    #[test]
    fn bytes_flow_within_credit_and_never_stall(
        guest_room in prop_oneof![Just(0u32), 1000..5000u32, 1..1_000_000u32],
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let mut world = World::new(guest_room);
        for step in &steps {
            world.step(step);
        }
        if guest_room == 0 {
            prop_assert_eq!(world.host[1], 0);
            world.host[0] = 0;
        }
        let work = world.guest[0] + world.host[0];
        let mut rounds = 0;
        while world.guest[2] < world.guest[0] || world.host[2] < world.host[0] {
            let before = (world.guest, world.host);
            for step in
                [Step::Receive, Step::HostReads(WINDOW), Step::Send(4, WINDOW), Step::GuestReads(u32::MAX)]
            {
                world.step(&step);
            }
            rounds += 1;
            prop_assert!(rounds <= work + 10);
            prop_assert!((world.guest, world.host) != before || rounds < 3, "stalled");
        }
    }

    /// Any packets of a guest leave the connection within its bounds.
    #[test]
    fn any_packets_keep_the_bounds(
        packets in prop::collection::vec(
            (any::<bool>(), 0..10u16, any::<u32>(), 0..2 * WINDOW, any::<u32>(), any::<u32>()),
            0..100,
        ),
        takes in prop::collection::vec(0..WINDOW, 100),
        to_guest in any::<bool>(),
    ) {
        let mut connection =
            if to_guest { Connection::to_guest(ID) } else { Connection::from_guest(&packet(1)) };
        for ((send, op, flags, len, buf_alloc, fwd_cnt), take) in packets.into_iter().zip(takes) {
            let header = Header {
                flags: flags.into(),
                len: len.into(),
                buf_alloc: buf_alloc.into(),
                fwd_cnt: fwd_cnt.into(),
                ..packet(op)
            };
            let held = connection.held();
            let reaction = connection.on_packet(&header);
            let grown = if reaction == Reaction::Payload { len } else { 0 };
            prop_assert_eq!(connection.held(), held + grown);
            prop_assert!(connection.held() <= WINDOW);
            connection.forwarded(take.min(connection.held()));
            if send {
                match connection.next(true) {
                    Some(Outgoing::Data(credit)) => {
                        prop_assert!((1..=buf_alloc).contains(&credit));
                        connection.data(credit.min(1000));
                    }
                    Some(Outgoing::Control(control)) => {
                        connection.control(control);
                    }
                    None => {}
                }
            }
        }
    }
}
