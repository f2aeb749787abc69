//! The connection table: dispatches the guest's packets to host streams, and sends bytes of host
//! streams to the guest.
//!
//! ```text
//!   tx queue ──▶ on_packet ──▶ Connection ──▶ HostStream ──▶ client or host port
//!   rx queue ◀── send_next ◀── Connection ◀── HostStream ◀──
//! ```
//!
//! **Bounds.** Each connection holds at most its credit window of guest data, and none of the host
//! side's: that stays in its stream until the guest has both credit and a buffer. What a connection
//! must send to the guest is part of its state, not a queue. Resets alone are queued, as they may answer
//! packets of no connection; while [`MAX_RESETS`] of them wait, no packets are taken from the guest
//! (section 5.10.6.1.2 tells both sides to expect that).

mod table;

use std::collections::VecDeque;
use std::fmt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use super::connection::{Connection, ConnectionId, Outgoing, Phase, Reaction};
use super::deadlines::Deadlines;
use super::packet::{HOST_CID, Header, Malformed, TYPE_STREAM, TxPacket, op};
use super::ports::HostPorts;
use super::rx::RxQueue;
use super::stream::{HostStream, Received};
use super::{MAX_CONNECTIONS, Timeouts, Token};
use crate::{Event, GuestMemory, Interest, LogBudget, Watch};
use table::{Entry, Table};

/// The most resets that wait for buffers. No packets are taken from the guest while there are as many.
const MAX_RESETS: usize = 1024;

/// Bytes of a connection in a turn, before the next connection's.
const BYTE_BUDGET: usize = 64 * 1024;

/// A reset that waits for a buffer.
#[derive(Clone, Copy, Debug)]
struct Reset {
    src_cid: u64,
    id: ConnectionId,
    socket_type: u16,
}

/// The result of [`Mux::send_next`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// Something was sent; there may be more.
    Some,
    /// There is something to send, but no buffer.
    Starved,
    /// There is nothing to send.
    Nothing,
}

/// The connections of a guest.
pub(super) struct Mux {
    guest_cid: u64,
    ports: Arc<dyn HostPorts>,
    table: Table,
    resets: VecDeque<Reset>,
    deadlines: Deadlines,
    timeouts: Timeouts,
    log: LogBudget,
}

impl Mux {
    pub(super) fn new(
        guest_cid: u64,
        ports: Arc<dyn HostPorts>,
        timeouts: Timeouts,
        log: LogBudget,
    ) -> Self {
        Self {
            guest_cid,
            ports,
            table: Table::default(),
            resets: VecDeque::new(),
            deadlines: Deadlines::default(),
            timeouts,
            log,
        }
    }

    /// Logs an action of the guest or a client, within a rate limit.
    pub(super) fn warn(&self, message: fmt::Arguments<'_>) {
        self.log.warn(format_args!("vsock: {message}"));
    }

    /// A token for a stream that is not in the table (yet).
    pub(super) fn new_token(&mut self) -> Token {
        self.table.new_token()
    }

    /// Opens a connection to a port of the guest for `client`, whose stream is watched for reading
    /// with `token`. If the table is full, the client is
    /// disconnected.
    pub(super) fn connect(&mut self, token: Token, client: UnixStream, guest_port: u32) {
        let Some(id) = self.table.new_id(guest_port) else {
            self.warn(format_args!(
                "refused a client's request for port {guest_port}: {MAX_CONNECTIONS} connections are \
                 open"
            ));
            self.table.close(client);
            return;
        };
        let entry =
            Entry::new(Connection::to_guest(id), HostStream::new(client), Some(Interest::Read));
        self.table.insert(token, entry);
        self.deadlines.set(token, Instant::now() + self.timeouts.connect);
        self.settle(token);
    }

    /// Whether there is room for a reset, which may be the answer to any packet of the guest.
    pub(super) fn takes_packets(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// Handles a packet from the guest.
    pub(super) fn on_packet(&mut self, packet: &TxPacket<'_>) {
        let header = &packet.header;
        if !self.is_ours(header) {
            return;
        }
        let id = ConnectionId::of(header);
        if header.op.get() == op::REQUEST {
            self.forget_finished(id);
        }
        let Some(token) = self.table.token(id) else {
            match header.op.get() {
                op::REQUEST => self.accept(header),
                _ => self.refuse(header),
            }
            return;
        };
        let Some(entry) = self.table.get_mut(token) else { return };
        match entry.connection.on_packet(header) {
            Reaction::Nothing => {}
            Reaction::Accepted => {
                entry.host.send_line(&format!("OK {}\n", id.host_port));
                self.deadlines.clear(token);
            }
            Reaction::Payload => {
                let taken = entry.host.deliver(packet.payload());
                entry.forwarded(taken);
            }
            Reaction::Closed => self.table.forget(token),
            Reaction::Violation(what) => {
                self.table.forget(token);
                self.reset(id);
                self.warn(format_args!("the guest sent {what}, its connection is reset: {id:?}"));
            }
        }
        self.settle(token);
    }

    /// Handles a malformed packet.
    pub(super) fn on_malformed(&mut self, malformed: &Malformed) {
        self.warn(format_args!("dropped a packet: {malformed}"));
        let Malformed::Truncated { header, .. } = malformed else { return };
        if !self.is_ours(header) {
            return;
        }
        // The stream is incomplete without the payload.
        match self.table.token(ConnectionId::of(header)) {
            Some(token) => self.abort(token),
            None => self.refuse(header),
        }
    }

    /// Whether the packet belongs to a stream from this guest to this host; refuses it if not.
    fn is_ours(&mut self, header: &Header) -> bool {
        if header.src_cid.get() != self.guest_cid {
            // There is no address to answer.
            return false;
        }
        let ours = header.dst_cid.get() == HOST_CID && header.socket_type.get() == TYPE_STREAM;
        if !ours {
            self.refuse(header);
        }
        ours
    }

    /// Answers a packet of no connection with a reset.
    fn refuse(&mut self, header: &Header) {
        if header.op.get() != op::RST {
            self.resets.push_back(Reset {
                src_cid: header.dst_cid.get(),
                id: ConnectionId::of(header),
                socket_type: header.socket_type.get(),
            });
        }
    }

    /// Queues a reset of a connection.
    fn reset(&mut self, id: ConnectionId) {
        self.resets.push_back(Reset { src_cid: HOST_CID, id, socket_type: TYPE_STREAM });
    }

    /// Handles a request of the guest for a connection to a port of the host.
    fn accept(&mut self, request: &Header) {
        let port = request.dst_port.get();
        if !self.table.has_room() {
            self.refuse(request);
            self.warn(format_args!(
                "refused the guest's request for port {port}: {MAX_CONNECTIONS} connections are open"
            ));
            return;
        }
        match self.ports.connect(port) {
            Ok(stream) => {
                let token = self.table.new_token();
                let entry =
                    Entry::new(Connection::from_guest(request), HostStream::new(stream), None);
                self.table.insert(token, entry);
                self.settle(token);
            }
            Err(e) => {
                tracing::debug!(port, "vsock: refused the guest's request: {e}");
                self.refuse(request);
            }
        }
    }

    /// Frees the ports of a connection that the guest has shut down: the guest may use them again before
    /// the host side has taken all its bytes. The old connection then continues without the guest.
    fn forget_finished(&mut self, id: ConnectionId) {
        let Some(token) = self.table.token(id) else { return };
        if let Some(entry) = self.table.get_mut(token)
            && entry.connection.guest_shutdown().is_full()
        {
            entry.connection.close();
            self.table.forget(token);
            self.settle(token);
        }
    }

    /// Handles an event of a stream in the table.
    pub(super) fn on_event(&mut self, event: Event) {
        let Some(entry) = self.table.get_mut(event.token) else { return };
        if event.readable {
            entry.host.set_readable();
        }
        let taken = if event.hang_up || event.error {
            entry.host.hang_up()
        } else if event.writable {
            entry.host.flush()
        } else {
            0
        };
        entry.forwarded(taken);
        self.settle(event.token);
    }

    /// The next deadline, at which [`expire`](Self::expire) has to be called.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    /// Aborts connections whose deadline has passed.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(token) = self.deadlines.pop_expired(now) {
            self.abort(token);
        }
    }

    /// Closes a connection in any state. Bytes that the guest has sent still reach the host side.
    pub(super) fn abort(&mut self, token: Token) {
        let Some(entry) = self.table.get_mut(token) else { return };
        let id = entry.connection.id();
        let known_to_guest =
            !matches!(entry.connection.phase(), Phase::Requested { sent: false } | Phase::Closed);
        entry.connection.close();
        self.table.forget(token);
        if known_to_guest {
            self.reset(id);
        }
        self.settle(token);
    }

    /// Closes all connections without packets to the guest: a transport reset event tells the guest.
    pub(super) fn close_all(&mut self) {
        self.resets.clear();
        for token in self.table.tokens() {
            self.deadlines.clear(token);
            if let Some(entry) = self.table.remove(token) {
                self.table.close(entry.host.into_stream());
            }
        }
    }

    /// Sends one connection's next packet, or a turn's worth of its data.
    pub(super) fn send_next(&mut self, rx: &mut RxQueue, memory: &GuestMemory) -> Sent {
        if let Some(&Reset { src_cid, id, socket_type }) = self.resets.front() {
            let Some(buffer) = rx.pop_buffer(memory, 0) else { return Sent::Starved };
            let header = Header {
                src_cid: src_cid.into(),
                dst_cid: self.guest_cid.into(),
                src_port: id.host_port.into(),
                dst_port: id.guest_port.into(),
                socket_type: socket_type.into(),
                op: op::RST.into(),
                ..Header::default()
            };
            rx.send(memory, &buffer, &header, 0);
            self.resets.pop_front();
            return Sent::Some;
        }
        let Some((token, turn)) = self.table.next_ready() else { return Sent::Nothing };
        let sent = self.send_of(token, turn, rx, memory);
        self.settle(token);
        sent
    }

    fn send_of(
        &mut self,
        token: Token,
        turn: usize,
        rx: &mut RxQueue,
        memory: &GuestMemory,
    ) -> Sent {
        let Some(entry) = self.table.get_mut(token) else { return Sent::Some };
        match entry.connection.next(entry.host.is_readable()) {
            None => Sent::Some,
            Some(Outgoing::Data(credit)) => {
                let limit = turn.min(usize::try_from(credit).unwrap_or(usize::MAX));
                let (sent, received) = entry.send_data(limit, self.guest_cid, rx, memory);
                match received {
                    Received::End => entry.connection.host_ended_sending(),
                    Received::Broken => self.abort(token),
                    Received::Data(count) => self.table.spend(count),
                    Received::Nothing => {}
                }
                sent
            }
            Some(Outgoing::Control(control)) => {
                let Some(buffer) = rx.pop_buffer(memory, 0) else { return Sent::Starved };
                let mut header = entry.connection.control(control);
                header.dst_cid = self.guest_cid.into();
                rx.send(memory, &buffer, &header, 0);
                Sent::Some
            }
        }
    }

    /// Updates the table after a change of a connection.
    fn settle(&mut self, token: Token) {
        let Some(entry) = self.table.get_mut(token) else { return };
        let Entry { connection, host, .. } = entry;
        if host.is_write_closed() {
            connection.host_ended_receiving();
            if !connection.takes_data() {
                connection.host_ended_sending();
            }
        }
        let guest = connection.guest_shutdown();
        if guest.send && !host.has_backlog() {
            host.end_sending();
        }
        if guest.receive {
            host.end_receiving();
        }
        let id = connection.id();
        let finished = connection.is_finished_by_guest();
        if finished || (connection.phase() == Phase::Closed && !host.has_backlog()) {
            self.deadlines.clear(token);
            if let Some(entry) = self.table.remove(token) {
                self.table.close(entry.host.into_stream());
            }
            if finished {
                self.reset(id);
            }
            return;
        }
        if connection.is_finished_by_host() && !self.deadlines.is_set(token) {
            self.deadlines.set(token, Instant::now() + self.timeouts.close);
        }
        self.table.changed(token);
    }

    /// Registers changed interests of streams with the event loop, and closes streams.
    pub(super) fn apply(&mut self, watch: &mut Watch<'_>) {
        while let Some(token) = self.table.pop_changed() {
            let Some(entry) = self.table.get_mut(token) else { continue };
            let interest = entry.interest();
            let result = match entry.watched {
                Some(watched) if watched == interest => continue,
                Some(_) => watch.modify(entry.host.stream(), token, interest),
                None => watch.add(entry.host.stream(), token, interest),
            };
            match result {
                Ok(()) => entry.watched = Some(interest),
                Err(e) => {
                    let taken = entry.host.hang_up();
                    entry.forwarded(taken);
                    self.abort(token);
                    self.warn(format_args!("cannot watch a stream, its connection is reset: {e}"));
                }
            }
        }
        for stream in self.table.take_closed() {
            // Fails for a stream that was never watched.
            let _ = watch.remove(&stream);
        }
    }
}
