//! The state machine of one stream connection (virtio 1.3, section 5.10.6.6). No I/O: the
//! [mux](super::mux) carries out what the connection decides.
//!
//! ```text
//!  from host:   Requested ──RESPONSE──▶ Established ──RST, or a violation──▶ Closed
//!                   └──────────RST, or a violation───────────────────────────▲
//!  from guest:                          Established (answers RESPONSE)
//! ```
//!
//! Each side shuts down its directions by SHUTDOWN, one by one or both at once. A side that has shut
//! down both waits for the other's RST. The guest gets it once the host side has taken all bytes of
//! the guest; the guest has to send its own within a deadline. A closed connection stays until the
//! host side has taken all bytes of the guest.

use super::credit::Credit;
use super::packet::{HOST_CID, Header, TYPE_STREAM, op};

/// The ports of a connection, which identify it: there are only two CIDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ConnectionId {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
}

impl ConnectionId {
    /// The connection that a packet from the guest belongs to.
    pub(super) fn of(header: &Header) -> Self {
        Self { host_port: header.dst_port.get(), guest_port: header.src_port.get() }
    }
}

/// The directions that a side has shut down: the flags of a SHUTDOWN packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shutdown {
    pub(super) receive: bool,
    pub(super) send: bool,
}

impl Shutdown {
    const RECEIVE: u32 = 1;
    const SEND: u32 = 2;

    fn from_flags(flags: u32) -> Self {
        Self { receive: flags & Self::RECEIVE != 0, send: flags & Self::SEND != 0 }
    }

    fn flags(self) -> u32 {
        u32::from(self.receive) * Self::RECEIVE + u32::from(self.send) * Self::SEND
    }

    /// Whether both directions are shut down.
    pub(super) fn is_full(self) -> bool {
        self.receive && self.send
    }

    fn and(self, other: Self) -> Self {
        Self { receive: self.receive || other.receive, send: self.send || other.send }
    }
}

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The host requested the connection, and the guest has not answered.
    Requested {
        /// The REQUEST was sent.
        sent: bool,
    },
    /// Both sides agreed.
    Established {
        /// The RESPONSE was sent, or is not needed because the host requested the connection.
        sent: bool,
    },
    /// The connection no longer exists for the guest.
    Closed,
}

/// The caller's part in handling a packet from the guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    /// Nothing for the caller to do.
    Nothing,
    /// The guest accepted the host's request.
    Accepted,
    /// The payload is for the host side, which reports what it took to
    /// [`forwarded`](Connection::forwarded).
    Payload,
    /// The guest closed or refused the connection.
    Closed,
    /// The guest violated the protocol, for this reason. The connection is closed, and an RST is due.
    Violation(&'static str),
}

/// A packet that can be sent to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outgoing {
    /// A packet without payload.
    Control(Control),
    /// Up to this many bytes of data.
    Data(u32),
}

/// A packet without payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control {
    Request,
    Response,
    Shutdown,
    CreditUpdate,
    CreditRequest,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    id: ConnectionId,
    phase: Phase,
    credit: Credit,
    /// The directions that the guest has shut down.
    guest: Shutdown,
    /// The directions that the host side has shut down.
    host: Shutdown,
    /// The shutdown flags that were sent to the guest.
    sent_shutdown: Shutdown,
    /// The guest requested a credit update.
    update_requested: bool,
    /// A credit request was sent since the guest last had room.
    credit_requested: bool,
}

impl Connection {
    /// A connection that the host side requests from the guest.
    pub(super) fn to_guest(id: ConnectionId) -> Self {
        Self::new(id, Phase::Requested { sent: false })
    }

    /// A connection that the guest requested with `request`, accepted.
    pub(super) fn from_guest(request: &Header) -> Self {
        let mut connection =
            Self::new(ConnectionId::of(request), Phase::Established { sent: false });
        connection.update_credit(request);
        connection
    }

    fn new(id: ConnectionId, phase: Phase) -> Self {
        Self {
            id,
            phase,
            credit: Credit::default(),
            guest: Shutdown::default(),
            host: Shutdown::default(),
            sent_shutdown: Shutdown::default(),
            update_requested: false,
            credit_requested: false,
        }
    }

    /// Its ports.
    pub(super) fn id(&self) -> ConnectionId {
        self.id
    }

    /// The state of the connection.
    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// The directions that the guest has shut down.
    pub(super) fn guest_shutdown(&self) -> Shutdown {
        self.guest
    }

    /// Bytes from the guest that the host side has not taken yet.
    pub(super) fn held(&self) -> u32 {
        self.credit.held()
    }

    /// Handles a packet of this connection from the guest.
    pub(super) fn on_packet(&mut self, header: &Header) -> Reaction {
        let reaction = self.react(header);
        if matches!(reaction, Reaction::Closed | Reaction::Violation(_)) {
            self.close();
        }
        reaction
    }

    fn react(&mut self, header: &Header) -> Reaction {
        use Phase::{Closed, Established, Requested};

        let op = header.op.get();
        if op == op::RST {
            return Reaction::Closed;
        }
        self.update_credit(header);
        match (self.phase, op) {
            (Requested { sent: true }, op::RESPONSE) => {
                self.phase = Established { sent: true };
                Reaction::Accepted
            }
            (Established { .. }, op::RW) if self.guest.send => {
                Reaction::Violation("data after it had shut down sending")
            }
            (Established { .. }, op::RW) if self.credit.receive(header.len.get()) => {
                Reaction::Payload
            }
            (Established { .. }, op::RW) => Reaction::Violation("more data than it had credit for"),
            (Established { .. }, op::CREDIT_UPDATE) => Reaction::Nothing,
            (Established { .. }, op::CREDIT_REQUEST) => {
                self.update_requested = true;
                Reaction::Nothing
            }
            (Established { .. }, op::SHUTDOWN) => {
                self.guest = self.guest.and(Shutdown::from_flags(header.flags.get()));
                Reaction::Nothing
            }
            (Established { .. }, op::REQUEST) => {
                Reaction::Violation("a request for a connection that exists")
            }
            (Established { .. }, op::RESPONSE) => Reaction::Violation("a second response"),
            (Established { .. }, _) => Reaction::Violation("an unknown operation"),
            (Requested { .. }, _) => Reaction::Violation("a packet other than a response"),
            (Closed, _) => Reaction::Violation("a packet of a closed connection"),
        }
    }

    fn update_credit(&mut self, header: &Header) {
        self.credit.update(header.buf_alloc.get(), header.fwd_cnt.get());
        if self.credit.available() > 0 {
            self.credit_requested = false;
        }
    }

    /// The host side took or discarded `count` of the [held](Self::held) bytes.
    pub(super) fn forwarded(&mut self, count: u32) {
        self.credit.forwarded(count);
    }

    /// The host side has sent its last byte.
    pub(super) fn host_ended_sending(&mut self) {
        self.host.send = true;
    }

    /// The host side takes no more bytes.
    pub(super) fn host_ended_receiving(&mut self) {
        self.host.receive = true;
    }

    /// Marks the connection as closed for the guest.
    pub(super) fn close(&mut self) {
        self.phase = Phase::Closed;
    }

    /// Whether the guest takes bytes of the host side, now or later.
    pub(super) fn takes_data(&self) -> bool {
        !self.host.send && !self.guest.receive && self.phase != Phase::Closed
    }

    /// Whether the guest has shut down both directions, and the host side has all its bytes: an RST is
    /// due.
    pub(super) fn is_finished_by_guest(&self) -> bool {
        matches!(self.phase, Phase::Established { .. }) && self.guest.is_full() && self.held() == 0
    }

    /// Whether the host side has shut down both directions, and waits for the guest's RST.
    pub(super) fn is_finished_by_host(&self) -> bool {
        matches!(self.phase, Phase::Established { .. }) && self.host.is_full()
    }

    /// The next packet for the guest, if one is due. `has_data`: the host side may have data.
    pub(super) fn next(&self, has_data: bool) -> Option<Outgoing> {
        use Outgoing::{Control as Send, Data};

        match self.phase {
            Phase::Requested { sent } => (!sent).then_some(Send(Control::Request)),
            Phase::Established { sent: false } => Some(Send(Control::Response)),
            Phase::Established { .. } => {
                let wants_to_send = has_data && self.takes_data();
                match self.credit.available() {
                    credit @ 1.. if wants_to_send => Some(Data(credit)),
                    // After the data: then one packet most often shuts down both directions.
                    _ if self.sent_shutdown != self.host => Some(Send(Control::Shutdown)),
                    0 if wants_to_send && !self.credit_requested => {
                        Some(Send(Control::CreditRequest))
                    }
                    _ if self.update_requested => Some(Send(Control::CreditUpdate)),
                    _ if self.credit.update_is_due() && !self.host.receive => {
                        Some(Send(Control::CreditUpdate))
                    }
                    _ => None,
                }
            }
            Phase::Closed => None,
        }
    }

    /// The header of a control packet that is sent now.
    pub(super) fn control(&mut self, control: Control) -> Header {
        let op = match control {
            Control::Request => {
                self.phase = Phase::Requested { sent: true };
                op::REQUEST
            }
            Control::Response => {
                self.phase = Phase::Established { sent: true };
                op::RESPONSE
            }
            Control::Shutdown => {
                self.sent_shutdown = self.host;
                op::SHUTDOWN
            }
            Control::CreditUpdate => op::CREDIT_UPDATE,
            Control::CreditRequest => {
                self.credit_requested = true;
                op::CREDIT_REQUEST
            }
        };
        let mut header = self.header(op);
        if control == Control::Shutdown {
            header.flags = self.sent_shutdown.flags().into();
        }
        header
    }

    /// The header of a packet of `len` bytes of data, within what [`next`](Self::next) allowed, that
    /// is sent now.
    pub(super) fn data(&mut self, len: u32) -> Header {
        self.credit.sent(len);
        Header { len: len.into(), ..self.header(op::RW) }
    }

    /// A header with the connection's ports and credit; the caller adds the guest's CID.
    fn header(&mut self, op: u16) -> Header {
        // Every packet carries the credit, so it also answers a request for an update.
        self.update_requested = false;
        let (buf_alloc, fwd_cnt) = self.credit.stamp();
        Header {
            src_cid: HOST_CID.into(),
            src_port: self.id.host_port.into(),
            dst_port: self.id.guest_port.into(),
            socket_type: TYPE_STREAM.into(),
            op: op.into(),
            buf_alloc: buf_alloc.into(),
            fwd_cnt: fwd_cnt.into(),
            ..Header::default()
        }
    }
}

#[cfg(test)]
mod tests;
