//! One flow: its reactions to the guest's segments, the host's socket and the clock.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::inbound::{Arrival, Inbound, SCALE};
use super::outbound::{Ack, Due, Outbound};
use super::reply::unreachable;
use crate::context::Context;
use crate::key::FlowKey;
use crate::quota::Permit;
use crate::sockets::{self, Connect};
use crate::wire::egress::{TcpHeader, TcpOptions};
use crate::wire::segment::{Options, Segment};
use crate::wire::{Seq, Unreachable};

/// TCP keepalive towards the guest.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(600);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_COUNT: u8 = 5;
/// Timeout of the host's connection attempt. The kernel gives up earlier.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(180);
/// Retransmissions of a SYN, and of a SYN-ACK.
const SYN_RETRIES: u8 = 6;
/// How often a SYN over IPv6 is sent again to a guest that has IPv6, before IPv4 is tried: 7 s.
const SYN_RETRIES_IPV6: u8 = 2;
/// Segments of one flow in a turn of the loop.
const BUDGET: usize = 16;

/// The state of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The host connects; the guest's SYN is answered when the connection is established.
    Connecting,
    /// A SYN-ACK was sent to the guest.
    SynReceived,
    /// A SYN was sent to the guest.
    SynSent,
    Open,
}

/// What to do with a flow after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disposition {
    Keep,
    /// Both sides have closed it.
    Closed,
    /// The guest has reset it, or does not know it any more; reset the host's side.
    ResetByGuest,
    /// The host's side is gone; reset the guest's side.
    ResetByHost,
    /// The guest does not serve the port, or not over this IP version.
    Refused,
    /// The host could not connect.
    Failed(Errno),
}

/// A guest's connection and the host's socket.
pub(super) struct Flow {
    pub(super) key: FlowKey,
    /// The address that the host connects to; for a published port, the peer's address.
    host: SocketAddr,
    pub(super) socket: OwnedFd,
    permit: Permit,
    state: State,
    inbound: Inbound,
    outbound: Outbound,
    /// The guest accepts selective acknowledgements.
    sack: bool,
    readable: bool,
    writable: bool,
    hung_up: bool,
    /// An acknowledgement is to be sent, alone or with data.
    ack_due: bool,
    /// The flow is in the queue of flows that have work.
    pub(super) queued: bool,
    /// The time of its alarm.
    pub(super) armed: Option<Instant>,
    /// The time of the last segment of the guest.
    pub(super) last_active: Instant,
    probes: u8,
    /// The SYN was answered by an acknowledgement of another connection.
    rejected: bool,
}

impl Flow {
    /// A flow that the guest opened by `segment`, while the host connects.
    pub(super) fn from_guest(
        key: FlowKey,
        host: SocketAddr,
        socket: (OwnedFd, Permit),
        segment: &Segment<'_>,
        iss: Seq,
        cx: &Context,
    ) -> Self {
        let scale = if segment.options.window_scale.is_some() { SCALE } else { 0 };
        let mut flow = Self::new(key, host, socket, State::Connecting, iss, cx.now);
        flow.inbound = Inbound::new(segment.seq + 1, scale);
        flow.take_options(&segment.options, cx);
        flow.outbound.update_window(segment.seq, iss, segment.window, true);
        flow
    }

    /// A flow of a published port.
    pub(super) fn from_host(
        key: FlowKey,
        host: SocketAddr,
        socket: (OwnedFd, Permit),
        iss: Seq,
        cx: &mut Context,
    ) -> Self {
        let mut flow = Self::new(key, host, socket, State::SynSent, iss, cx.now);
        flow.send_syn(cx);
        flow
    }

    fn new(
        key: FlowKey,
        host: SocketAddr,
        socket: (OwnedFd, Permit),
        state: State,
        iss: Seq,
        now: Instant,
    ) -> Self {
        let (socket, permit) = socket;
        Self {
            key,
            host,
            socket,
            permit,
            state,
            inbound: Inbound::new(Seq(0), 0),
            outbound: Outbound::new(iss),
            sack: false,
            readable: true,
            writable: true,
            hung_up: false,
            ack_due: false,
            queued: false,
            armed: None,
            last_active: now,
            probes: 0,
            rejected: false,
        }
    }

    fn take_options(&mut self, options: &Options, cx: &Context) {
        self.outbound.negotiate(options, cx.out.mss(self.key.guest.ip()));
        self.sack = options.sack_permitted;
    }

    /// Looks at the host's connection attempt.
    pub(super) fn connected(&mut self, cx: &mut Context) -> Disposition {
        if self.state != State::Connecting {
            return Disposition::Keep;
        }
        match sockets::connect(&self.socket, self.host) {
            Ok(Connect::Pending) => Disposition::Keep,
            Ok(Connect::Done) => {
                self.accept(cx);
                Disposition::Keep
            }
            Err(e) => Disposition::Failed(e),
        }
    }

    /// Accepts the guest's connection: the host's is established.
    pub(super) fn accept(&mut self, cx: &mut Context) {
        self.state = State::SynReceived;
        self.last_active = cx.now;
        self.send_syn(cx);
    }

    /// Epoll reports that the socket is ready.
    pub(super) fn on_socket(&mut self, readable: bool, writable: bool, hung_up: bool) {
        self.readable |= readable || hung_up;
        self.writable |= writable;
        self.hung_up |= hung_up;
    }

    /// The socket has an error.
    pub(super) fn on_error(&mut self) -> Disposition {
        if self.state == State::Connecting {
            return Disposition::Keep;
        }
        match sockets::error(&self.socket) {
            Some(_) => Disposition::ResetByHost,
            None => Disposition::Keep,
        }
    }

    /// A segment of the guest arrived.
    pub(super) fn on_segment(&mut self, segment: &Segment<'_>, cx: &mut Context) -> Disposition {
        self.last_active = cx.now;
        self.probes = 0;
        match self.state {
            // A reset of the SYN; below, the SYN again or nonsense.
            State::Connecting if segment.rst && segment.seq == self.inbound.next => {
                Disposition::ResetByGuest
            }
            State::Connecting => Disposition::Keep,
            State::SynSent => self.on_answer(segment, cx),
            State::SynReceived | State::Open => self.on_open_segment(segment, cx),
        }
    }

    /// The guest's answer to a SYN.
    fn on_answer(&mut self, segment: &Segment<'_>, cx: &mut Context) -> Disposition {
        let Some(ack) = segment.ack else { return Disposition::Keep };
        if ack != self.outbound.una + 1 {
            self.reject_ack(segment, ack, cx);
            return Disposition::Keep;
        }
        if segment.rst {
            return Disposition::Refused;
        }
        if !segment.syn {
            return Disposition::Keep;
        }
        let scale = if segment.options.window_scale.is_some() { SCALE } else { 0 };
        self.inbound = Inbound::new(segment.seq + 1, scale);
        self.take_options(&segment.options, cx);
        self.outbound.syn_acked(ack, cx.now);
        self.outbound.update_window(segment.seq, ack, segment.window, true);
        self.state = State::Open;
        self.ack_due = true;
        Disposition::Keep
    }

    /// The guest acknowledges what was never sent: it has another connection with the same addresses, most
    /// likely in TIME-WAIT, and answers the SYN with the numbers of that one. A reset with those numbers
    /// closes it (RFC 9293, section 3.10.7.3), so that the SYN can be sent again.
    fn reject_ack(&mut self, segment: &Segment<'_>, ack: Seq, cx: &mut Context) {
        if segment.rst {
            return;
        }
        let header = TcpHeader { rst: true, ack: None, window: 0, ..self.header(ack, cx) };
        cx.out.tcp(&TcpHeader { options: TcpOptions::None, ..header }, &[]);
        // At once, but only once; then by the retransmission timeout.
        if self.state == State::SynSent && !std::mem::replace(&mut self.rejected, true) {
            self.send_syn(cx);
        }
    }

    /// A segment in an established state: RFC 9293, section 3.10.7.4, and RFC 5961 against forged segments.
    fn on_open_segment(&mut self, segment: &Segment<'_>, cx: &mut Context) -> Disposition {
        if segment.rst {
            if segment.seq == self.inbound.next {
                return Disposition::ResetByGuest;
            }
            self.ack_due |= self.inbound.may_begin(segment.seq);
            return Disposition::Keep;
        }
        if segment.syn {
            // The guest's SYN again: the SYN-ACK was lost. Or a new SYN that reuses the addresses: the
            // acknowledgement makes the guest reset the old connection.
            if self.state == State::SynReceived {
                self.send_syn(cx);
            } else {
                self.send_ack(cx);
            }
            return Disposition::Keep;
        }
        let Some(ack) = segment.ack else { return Disposition::Keep };
        if self.state == State::SynReceived {
            if !self.outbound.syn_acked(ack, cx.now) {
                self.reject_ack(segment, ack, cx);
                return Disposition::Keep;
            }
            self.state = State::Open;
        }
        if self.on_ack(segment, ack, cx) == Ack::Invalid {
            self.send_ack(cx);
            return Disposition::Keep;
        }
        let arrival =
            self.inbound.accept(segment, &self.socket, &mut self.writable, &mut cx.budget);
        match arrival {
            Ok(Arrival::Empty) => {}
            Ok(Arrival::InOrder) => self.ack_due = true,
            Ok(Arrival::Unexpected) => {
                cx.meter.out_of_order.add(1);
                // Each one counts: three duplicates report a loss to the guest.
                self.send_ack(cx);
            }
            Err(_) => return Disposition::ResetByHost,
        }
        Disposition::Keep
    }

    fn on_ack(&mut self, segment: &Segment<'_>, ack: Seq, cx: &mut Context) -> Ack {
        let before = self.outbound.una;
        let mut verdict = self.outbound.on_ack(ack, &segment.options, cx.now, &mut cx.pool);
        if verdict == Ack::Invalid {
            return verdict;
        }
        let moved = self.outbound.update_window(segment.seq, ack, segment.window, false);
        if ack == before && segment.len() == 0 && !moved {
            verdict = self.outbound.duplicate_ack();
        }
        if verdict == Ack::Loss {
            let burst = cx.out.burst(self.key.guest.ip(), self.outbound.mss);
            let due = self.outbound.missing(burst);
            self.send(due, cx);
        }
        verdict
    }

    /// Moves data in both directions. The second value is true if there is more to do.
    pub(super) fn serve(&mut self, cx: &mut Context) -> (Disposition, bool) {
        if self.state == State::Connecting {
            return (self.connected(cx), false);
        }
        if self.state != State::Open {
            return (Disposition::Keep, false);
        }
        if self.inbound.flush(&self.socket, &mut self.writable, &mut cx.budget).is_err() {
            return (Disposition::ResetByHost, false);
        }
        let Ok(more) = self.pump(cx) else { return (Disposition::ResetByHost, false) };
        if self.ack_due || self.inbound.has_news(self.outbound.mss) {
            self.send_ack(cx);
        }
        if self.outbound.fin_acked && self.inbound.fin_forwarded {
            return (Disposition::Closed, false);
        }
        (Disposition::Keep, more || self.ack_due)
    }

    /// Moves data from the host to the guest. True if there is more.
    fn pump(&mut self, cx: &mut Context) -> Result<bool, Errno> {
        let burst = cx.out.burst(self.key.guest.ip(), self.outbound.mss);
        for _ in 0..BUDGET {
            if !cx.may_send() {
                return Ok(true);
            }
            let (readable, hung_up) = (&mut self.readable, self.hung_up);
            self.outbound.fill(&self.socket, readable, hung_up, burst, &mut cx.pool)?;
            let Some(due) = self.outbound.due(burst) else {
                // The window is closed, or there is no memory: only the timeout can go on.
                if self.outbound.has_more(self.readable) && self.outbound.expires.is_none() {
                    self.outbound.wait(cx.now);
                }
                return Ok(false);
            };
            if !self.send(due, cx) {
                return Ok(true);
            }
        }
        Ok(true)
    }

    fn send(&mut self, mut due: Due, cx: &mut Context) -> bool {
        let header = self.header(due.seq, cx);
        let (pieces, count, len) = self.outbound.pieces(due);
        if len < due.len {
            // The data is in more pieces than a frame can have.
            (due.len, due.fin) = (len, false);
        }
        let header = TcpHeader { fin: due.fin, push: due.push, ..header };
        if !cx.out.tcp(&header, pieces.get(..count).unwrap_or_default()) {
            return false;
        }
        cx.charge();
        self.ack_due = false;
        if self.outbound.sent(due, cx.now) {
            cx.meter.retransmits.add(1);
        }
        true
    }

    fn header(&mut self, seq: Seq, cx: &Context) -> TcpHeader {
        let options = match self.inbound.gaps().filter(|_| self.sack) {
            Some(ranges) => TcpOptions::Sack(ranges),
            None => TcpOptions::None,
        };
        TcpHeader {
            source: self.key.remote,
            destination: self.key.guest,
            seq,
            ack: Some(self.inbound.next),
            syn: false,
            fin: false,
            rst: false,
            push: false,
            window: self.inbound.advertise(true, &cx.budget),
            options,
            mss: self.outbound.mss,
        }
    }

    fn send_ack(&mut self, cx: &mut Context) {
        let header = self.header(self.outbound.next, cx);
        self.ack_due = !cx.out.tcp(&header, &[]);
    }

    /// Sends a SYN, or a SYN-ACK.
    fn send_syn(&mut self, cx: &mut Context) {
        let answer = self.state == State::SynReceived;
        let mss = cx.out.mss(self.key.guest.ip());
        let window_scale =
            if answer { Some(self.inbound.scale).filter(|scale| *scale > 0) } else { Some(SCALE) };
        let sack_permitted = !answer || self.sack;
        let header = TcpHeader {
            syn: true,
            ack: answer.then_some(self.inbound.next),
            window: self.inbound.advertise(false, &cx.budget),
            options: TcpOptions::Syn { mss, window_scale, sack_permitted },
            ..self.header(self.outbound.una, cx)
        };
        // If the link has no room for it, the retransmission timeout sends it.
        cx.out.tcp(&header, &[]);
        self.outbound.syn_sent(cx.now);
    }

    /// The next deadline of this flow.
    pub(super) fn deadline(&self) -> Instant {
        let idle = match (self.state, self.probes) {
            (State::Connecting, _) => CONNECT_TIMEOUT,
            (_, 0) => KEEPALIVE_IDLE,
            (_, n) => KEEPALIVE_IDLE + KEEPALIVE_INTERVAL * u32::from(n),
        };
        let idle = self.last_active + idle;
        self.outbound.expires.map_or(idle, |expires| expires.min(idle))
    }

    /// The deadline has passed.
    pub(super) fn on_deadline(&mut self, cx: &mut Context) -> Disposition {
        if self.outbound.expires.is_some_and(|expires| expires <= cx.now) {
            self.outbound.expires = None;
            return self.on_timeout(cx);
        }
        if self.state == State::Connecting {
            return Disposition::Failed(Errno::TIMEDOUT);
        }
        if self.probes == KEEPALIVE_COUNT {
            return Disposition::ResetByGuest;
        }
        self.probes += 1;
        self.probe(cx);
        Disposition::Keep
    }

    fn on_timeout(&mut self, cx: &mut Context) -> Disposition {
        match self.state {
            State::Connecting => Disposition::Keep,
            State::SynReceived | State::SynSent => {
                if self.state == State::SynSent && self.key.guest.is_ipv6() {
                    // A guest without IPv6 never answers; one that has it may be slow, or a frame was lost.
                    let retries = if cx.ipv6_heard { SYN_RETRIES_IPV6 } else { 0 };
                    if self.outbound.retries() >= retries {
                        return Disposition::Refused;
                    }
                }
                if self.outbound.retries() == SYN_RETRIES || !self.outbound.timeout() {
                    return Disposition::ResetByGuest;
                }
                self.send_syn(cx);
                Disposition::Keep
            }
            State::Open if self.outbound.is_closed() => {
                // A guest may keep its window closed as long as it answers probes (RFC 9293, section
                // 3.8.6.1).
                if !self.outbound.timeout() {
                    return Disposition::ResetByGuest;
                }
                self.probe(cx);
                self.outbound.wait(cx.now);
                Disposition::Keep
            }
            // Memory had run out.
            State::Open if self.outbound.is_idle() => Disposition::Keep,
            State::Open => {
                if !self.outbound.timeout() {
                    return Disposition::ResetByGuest;
                }
                // The flow is served next, and sends again from the first unacknowledged byte.
                self.outbound.wait(cx.now);
                Disposition::Keep
            }
        }
    }

    /// Sends a segment that the guest must answer: an old sequence number, no data.
    fn probe(&mut self, cx: &mut Context) {
        let header = self.header(self.outbound.una - 1, cx);
        cx.out.tcp(&header, &[]);
    }

    /// Resets the guest's side. The flow is removed next.
    pub(super) fn reset_guest(&mut self, cx: &mut Context) {
        let header = match self.state {
            State::Connecting => {
                TcpHeader { rst: true, ack: Some(self.inbound.next), ..self.header(Seq(0), cx) }
            }
            State::SynSent => {
                TcpHeader { rst: true, ack: None, ..self.header(self.outbound.next, cx) }
            }
            _ => TcpHeader { rst: true, ..self.header(self.outbound.next, cx) },
        };
        let header = TcpHeader { options: TcpOptions::None, window: 0, ..header };
        if !cx.out.tcp(&header, &[]) {
            cx.meter.dropped.add(1);
        }
    }

    /// Reports a failed connection attempt to the guest. The flow is removed next.
    pub(super) fn fail(&mut self, error: Errno, cx: &mut Context) {
        let why = match error {
            Errno::NETUNREACH
            | Errno::NETDOWN
            | Errno::ADDRNOTAVAIL
            | Errno::INVAL
            | Errno::AFNOSUPPORT => Unreachable::Network,
            Errno::HOSTUNREACH | Errno::HOSTDOWN | Errno::TIMEDOUT => Unreachable::Host,
            Errno::ACCESS | Errno::PERM => Unreachable::Prohibited,
            _ => return self.reset_guest(cx),
        };
        unreachable(self.key, self.inbound.next - 1, why, cx);
    }

    /// Frees all but the socket; also returns the peer's address.
    pub(super) fn into_socket(mut self, cx: &mut Context) -> (OwnedFd, Permit, SocketAddr) {
        self.inbound.clear(&mut cx.budget);
        self.outbound.clear(&mut cx.pool);
        cx.unwatch(&self.socket);
        (self.socket, self.permit, self.host)
    }

    /// Closes the flow; `reset` resets the host's side. Returns the next sequence numbers: that of the
    /// network, and that of the guest.
    pub(super) fn close(mut self, reset: bool, cx: &mut Context) -> (Seq, Seq) {
        self.inbound.clear(&mut cx.budget);
        self.outbound.clear(&mut cx.pool);
        if reset {
            sockets::reset(self.socket);
        }
        (self.outbound.next, self.inbound.next)
    }
}
