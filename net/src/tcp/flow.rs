//! One flow: what the guest's segments, the host's socket and the clock do to it.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::inbound::{Arrival, Inbound, SCALE};
use super::outbound::{Ack, Due, Outbound};
use super::reply::unreachable;
use crate::context::Context;
use crate::key::FlowKey;
use crate::quota::Place;
use crate::sockets::{self, Connect};
use crate::wire::egress::{TcpHeader, TcpOptions};
use crate::wire::segment::{Options, Segment};
use crate::wire::{Seq, Unreachable};

/// A flow that is silent for so long is asked whether the guest still knows it.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(600);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_COUNT: u8 = 5;
/// How long the host may try to connect: the kernel gives up earlier.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(180);
/// How often the guest is asked to accept, or to acknowledge that it was.
const SYN_RETRIES: u8 = 6;
/// Segments of one flow in a turn; then others have theirs.
const TURN: usize = 16;

/// Where a flow stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The host connects; the guest's SYN waits for that.
    Connecting,
    /// The guest was told that the connection stands.
    SynReceived,
    /// The guest was asked to accept.
    SynSent,
    Open,
}

/// What becomes of a flow after something happened to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Lives,
    /// Both sides ended it.
    Ended,
    /// The guest does not know it any more; the host's side has to be reset.
    ResetByGuest,
    /// The host's side is gone; the guest has to be told.
    ResetByHost,
    /// The guest serves no such port, or not by this IP version.
    Refused,
    /// The host could not connect.
    Failed(Errno),
}

/// A guest's connection and the host's socket.
pub(super) struct Flow {
    pub(super) key: FlowKey,
    /// Where the host connects to; for a flow from the host, where it came from.
    host: SocketAddr,
    pub(super) socket: OwnedFd,
    place: Place,
    state: State,
    inbound: Inbound,
    outbound: Outbound,
    /// The guest takes selective acknowledgements.
    sack: bool,
    readable: bool,
    writable: bool,
    hung_up: bool,
    /// The guest has to hear something, if only an acknowledgement.
    ack_due: bool,
    /// It is among those that have work.
    pub(super) queued: bool,
    /// When its alarm goes off.
    pub(super) armed: Option<Instant>,
    /// When something last happened.
    pub(super) heard: Instant,
    probes: u8,
    /// An acknowledgement of another connection answered the SYN.
    rejected: bool,
}

impl Flow {
    /// A flow that the guest opened by `segment`, whose host's side is on its way.
    pub(super) fn from_guest(
        key: FlowKey,
        host: SocketAddr,
        socket: (OwnedFd, Place),
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

    /// A flow that came to a port of the host.
    pub(super) fn from_host(
        key: FlowKey,
        host: SocketAddr,
        socket: (OwnedFd, Place),
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
        socket: (OwnedFd, Place),
        state: State,
        iss: Seq,
        now: Instant,
    ) -> Self {
        let (socket, place) = socket;
        Self {
            key,
            host,
            socket,
            place,
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
            heard: now,
            probes: 0,
            rejected: false,
        }
    }

    fn take_options(&mut self, options: &Options, cx: &Context) {
        self.outbound.negotiate(options, cx.out.mss(self.key.guest.ip()));
        self.sack = options.sack_permitted;
    }

    /// The host's connection stands, or does not, or not yet.
    pub(super) fn connected(&mut self, cx: &mut Context) -> Fate {
        if self.state != State::Connecting {
            return Fate::Lives;
        }
        match sockets::connect(&self.socket, self.host) {
            Ok(Connect::Pending) => Fate::Lives,
            Ok(Connect::Done) => {
                self.accept(cx);
                Fate::Lives
            }
            Err(e) => Fate::Failed(e),
        }
    }

    /// Tells the guest that its connection stands.
    pub(super) fn accept(&mut self, cx: &mut Context) {
        self.state = State::SynReceived;
        self.heard = cx.now;
        self.send_syn(cx);
    }

    /// Epoll says that something can be done with the socket.
    pub(super) fn on_socket(&mut self, readable: bool, writable: bool, hung_up: bool) {
        self.readable |= readable || hung_up;
        self.writable |= writable;
        self.hung_up |= hung_up;
    }

    /// The socket failed: what is in flight will not be followed by more.
    pub(super) fn on_error(&mut self) -> Fate {
        if self.state == State::Connecting {
            return Fate::Lives;
        }
        match sockets::error(&self.socket) {
            Some(_) => Fate::ResetByHost,
            None => Fate::Lives,
        }
    }

    /// A segment of the guest arrived.
    pub(super) fn on_segment(&mut self, segment: &Segment<'_>, cx: &mut Context) -> Fate {
        self.heard = cx.now;
        self.probes = 0;
        match self.state {
            // The SYN, again; or nonsense.
            State::Connecting if segment.rst && segment.seq == self.inbound.next => {
                Fate::ResetByGuest
            }
            State::Connecting => Fate::Lives,
            State::SynSent => self.on_answer(segment, cx),
            State::SynReceived | State::Open => self.on_open_segment(segment, cx),
        }
    }

    /// The guest's answer to our SYN.
    fn on_answer(&mut self, segment: &Segment<'_>, cx: &mut Context) -> Fate {
        let Some(ack) = segment.ack else { return Fate::Lives };
        if ack != self.outbound.una + 1 {
            self.reject_ack(segment, ack, cx);
            return Fate::Lives;
        }
        if segment.rst {
            return Fate::Refused;
        }
        if !segment.syn {
            return Fate::Lives;
        }
        let scale = if segment.options.window_scale.is_some() { SCALE } else { 0 };
        self.inbound = Inbound::new(segment.seq + 1, scale);
        self.take_options(&segment.options, cx);
        self.outbound.syn_acked(ack, cx.now);
        self.outbound.update_window(segment.seq, ack, segment.window, true);
        self.state = State::Open;
        self.ack_due = true;
        Fate::Lives
    }

    /// The guest acknowledges what was never sent: it knows another connection with the same
    /// addresses, most likely one in TIME-WAIT, and answers our SYN with that one's numbers. A reset
    /// with those ends that one (RFC 9293, section 3.10.7.3), so that the SYN can be sent again.
    fn reject_ack(&mut self, segment: &Segment<'_>, ack: Seq, cx: &mut Context) {
        if segment.rst {
            return;
        }
        let header = TcpHeader { rst: true, ack: None, window: 0, ..self.header(ack, cx) };
        cx.out.tcp(&TcpHeader { options: TcpOptions::None, ..header }, &[]);
        // At once, but once: a guest that stays at it is asked again by the clock.
        if self.state == State::SynSent && !std::mem::replace(&mut self.rejected, true) {
            self.send_syn(cx);
        }
    }

    /// RFC 9293, section 3.10.7.4, and RFC 5961 for what comes from who knows where.
    fn on_open_segment(&mut self, segment: &Segment<'_>, cx: &mut Context) -> Fate {
        if segment.rst {
            if segment.seq == self.inbound.next {
                return Fate::ResetByGuest;
            }
            self.ack_due |= self.inbound.may_begin(segment.seq);
            return Fate::Lives;
        }
        if segment.syn {
            // The guest's SYN again: our answer was lost. Or a new one that reuses the addresses:
            // the acknowledgement makes the guest reset what is left here.
            if self.state == State::SynReceived {
                self.send_syn(cx);
            } else {
                self.send_ack(cx);
            }
            return Fate::Lives;
        }
        let Some(ack) = segment.ack else { return Fate::Lives };
        if self.state == State::SynReceived {
            if !self.outbound.syn_acked(ack, cx.now) {
                self.reject_ack(segment, ack, cx);
                return Fate::Lives;
            }
            self.state = State::Open;
        }
        if self.on_ack(segment, ack, cx) == Ack::Invalid {
            self.send_ack(cx);
            return Fate::Lives;
        }
        let arrival =
            self.inbound.accept(segment, &self.socket, &mut self.writable, &mut cx.budget);
        match arrival {
            Ok(Arrival::Empty) => {}
            Ok(Arrival::InOrder) => self.ack_due = true,
            Ok(Arrival::Unexpected) => {
                cx.meter.out_of_order.add(1);
                // Each counts: three of them tell the guest of a loss.
                self.send_ack(cx);
            }
            Err(_) => return Fate::ResetByHost,
        }
        Fate::Lives
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

    /// Moves what can be moved, in both directions. True in the second place if there is more.
    pub(super) fn serve(&mut self, cx: &mut Context) -> (Fate, bool) {
        if self.state == State::Connecting {
            return (self.connected(cx), false);
        }
        if self.state != State::Open {
            return (Fate::Lives, false);
        }
        if self.inbound.flush(&self.socket, &mut self.writable, &mut cx.budget).is_err() {
            return (Fate::ResetByHost, false);
        }
        let Ok(more) = self.pump(cx) else { return (Fate::ResetByHost, false) };
        if self.ack_due || self.inbound.has_news(self.outbound.mss) {
            self.send_ack(cx);
        }
        if self.outbound.fin_acked && self.inbound.end_passed {
            return (Fate::Ended, false);
        }
        (Fate::Lives, more || self.ack_due)
    }

    /// From the host to the guest. True if there is more.
    fn pump(&mut self, cx: &mut Context) -> Result<bool, Errno> {
        let burst = cx.out.burst(self.key.guest.ip(), self.outbound.mss);
        for _ in 0..TURN {
            if !cx.may_send() {
                return Ok(true);
            }
            let (readable, hung_up) = (&mut self.readable, self.hung_up);
            self.outbound.fill(&self.socket, readable, hung_up, burst, &mut cx.pool)?;
            let Some(due) = self.outbound.due(burst) else {
                // The window is shut, or there is no memory: nothing will happen but by the clock.
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
            // In more pieces than a frame has.
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

    /// SYN, or SYN and ACK.
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
        // Where there is no room for it, it is sent when nothing was heard for a while.
        cx.out.tcp(&header, &[]);
        self.outbound.syn_sent(cx.now);
    }

    /// When it is next due, whatever for.
    pub(super) fn deadline(&self) -> Instant {
        let idle = match (self.state, self.probes) {
            (State::Connecting, _) => CONNECT_TIMEOUT,
            (_, 0) => KEEPALIVE_IDLE,
            (_, n) => KEEPALIVE_IDLE + KEEPALIVE_INTERVAL * u32::from(n),
        };
        let idle = self.heard + idle;
        self.outbound.expires.map_or(idle, |expires| expires.min(idle))
    }

    /// The deadline has passed.
    pub(super) fn on_deadline(&mut self, cx: &mut Context) -> Fate {
        if self.outbound.expires.is_some_and(|expires| expires <= cx.now) {
            self.outbound.expires = None;
            return self.on_timeout(cx);
        }
        if self.state == State::Connecting {
            return Fate::Failed(Errno::TIMEDOUT);
        }
        if self.probes == KEEPALIVE_COUNT {
            return Fate::ResetByGuest;
        }
        self.probes += 1;
        self.probe(cx);
        Fate::Lives
    }

    fn on_timeout(&mut self, cx: &mut Context) -> Fate {
        match self.state {
            State::Connecting => Fate::Lives,
            // It has no IPv6, perhaps.
            State::SynSent if self.key.guest.is_ipv6() => Fate::Refused,
            State::SynReceived | State::SynSent => {
                if self.outbound.retries() == SYN_RETRIES || !self.outbound.timeout() {
                    return Fate::ResetByGuest;
                }
                self.send_syn(cx);
                Fate::Lives
            }
            State::Open if self.outbound.is_shut() => {
                // A guest may keep its window shut as long as it answers (RFC 9293, section
                // 3.8.6.1), which it is heard by.
                if !self.outbound.timeout() {
                    return Fate::ResetByGuest;
                }
                self.probe(cx);
                self.outbound.wait(cx.now);
                Fate::Lives
            }
            // There was no memory.
            State::Open if self.outbound.is_idle() => Fate::Lives,
            State::Open => {
                if !self.outbound.timeout() {
                    return Fate::ResetByGuest;
                }
                // The flow is served next, and begins again at the first byte.
                self.outbound.wait(cx.now);
                Fate::Lives
            }
        }
    }

    /// A segment that the guest must answer: it has nothing that is new.
    fn probe(&mut self, cx: &mut Context) {
        let header = self.header(self.outbound.una - 1, cx);
        cx.out.tcp(&header, &[]);
    }

    /// Tells the guest that it is over. It is removed next.
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

    /// Tells the guest why it could not be connected. It is removed next.
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

    /// Frees all but the socket, and says where that came from.
    pub(super) fn into_socket(mut self, cx: &mut Context) -> (OwnedFd, Place, SocketAddr) {
        self.inbound.clear(&mut cx.budget);
        self.outbound.clear(&mut cx.pool);
        cx.unwatch(&self.socket);
        (self.socket, self.place, self.host)
    }

    /// Frees what it holds; `reset` says how the host's side ends. Returns our next sequence number
    /// and the guest's.
    pub(super) fn close(mut self, reset: bool, cx: &mut Context) -> (Seq, Seq) {
        self.inbound.clear(&mut cx.budget);
        self.outbound.clear(&mut cx.pool);
        if reset {
            sockets::reset(self.socket);
        }
        (self.outbound.next, self.inbound.next)
    }
}
