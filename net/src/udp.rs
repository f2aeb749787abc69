//! UDP: a socket of the host for each pair of addresses, and flows of published ports.

use std::collections::{HashMap, VecDeque};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use boxlite_net_policy::Protocol;
use rustix::io::Errno;
use slab::Slab;
use smoltcp::wire::UdpPacket;

use crate::context::{Context, Source};
use crate::gate::Verdict;
use crate::key::FlowKey;
use crate::quota::{Kind, Permit};
use crate::route::Route;
use crate::sockets;
use crate::timers::Alarm;
use crate::wire::{Packet, Unreachable, protocol};

/// Idle timeout of a flow that had an answer, and of one that had none yet (RFC 4787, section 4.3).
const ANSWERED: Duration = Duration::from_secs(180);
const UNANSWERED: Duration = Duration::from_secs(30);
/// Datagrams of one flow in a turn of the loop.
const BUDGET: usize = 32;
/// The largest datagram.
const MAX_DATAGRAM: usize = 65_535;

/// The host's side of a flow.
enum Host {
    /// A flow that the guest opened: a socket of its own, connected to this address.
    Own { socket: OwnedFd, address: SocketAddr },
    /// A peer sent to a published port: answers leave through that port.
    Published { socket: Rc<UdpSocket>, peer: SocketAddr },
}

struct Flow {
    key: FlowKey,
    host: Host,
    readable: bool,
    queued: bool,
    answered: bool,
    last_active: Instant,
    armed: Option<Instant>,
    _permit: Permit,
}

/// The UDP flows of a guest.
pub(crate) struct Udp {
    flows: Slab<Flow>,
    by_key: HashMap<FlowKey, usize>,
    /// Flows of published ports, by the port's socket and the peer that sent to it.
    peers: HashMap<(*const UdpSocket, SocketAddr), usize>,
    ready: VecDeque<usize>,
    buffer: Box<[u8]>,
}

impl Udp {
    pub(crate) fn new() -> Self {
        Self {
            flows: Slab::new(),
            by_key: HashMap::new(),
            peers: HashMap::new(),
            ready: VecDeque::new(),
            buffer: vec![0; MAX_DATAGRAM].into_boxed_slice(),
        }
    }

    /// A datagram of the guest to a destination other than the gateway.
    pub(crate) fn on_packet(&mut self, packet: &Packet<'_>, cx: &mut Context) {
        let Ok(datagram) = UdpPacket::new_checked(packet.payload) else {
            cx.meter.malformed.add(1);
            return;
        };
        let key = FlowKey {
            guest: SocketAddr::new(packet.source, datagram.src_port()),
            remote: SocketAddr::new(packet.destination, datagram.dst_port()),
        };
        let known = self.by_key.get(&key).copied();
        let Some(index) = known.or_else(|| self.open(key, packet.payload, cx)) else { return };
        let Some(flow) = self.flows.get_mut(index) else { return };
        flow.last_active = cx.now;
        let data = datagram.payload();
        let result = match flow.send(data) {
            // The error is about an earlier datagram, or the host's addresses have changed.
            Err(Errno::CONNREFUSED) => {
                flow.unreachable(Unreachable::Port, cx);
                flow.send(data)
            }
            Err(_) => match flow.reopen() {
                Ok(true) => {
                    if let Host::Own { socket, .. } = &flow.host {
                        // If it cannot be watched, answers are lost until the next error reopens it.
                        let _ = cx.watch(socket, Source::Udp(index));
                    }
                    flow.send(data)
                }
                Ok(false) => Ok(()),
                Err(e) => Err(e),
            },
            sent => sent,
        };
        match result {
            Ok(()) => {}
            Err(Errno::AGAIN | Errno::MSGSIZE) => cx.meter.dropped.add(1),
            Err(e) => flow.unreachable(e.into(), cx),
        }
    }

    fn open(&mut self, key: FlowKey, transport: &[u8], cx: &mut Context) -> Option<usize> {
        let fail = |why, cx: &mut Context| {
            let gateway = cx.addresses.gateway_of(key.guest);
            let addresses = (key.guest.ip(), key.remote.ip());
            cx.out.unreachable(why, gateway, addresses, protocol::UDP, transport);
            None
        };
        let (address, host) = match Route::to(&cx.addresses, key.remote) {
            Route::Gateway => return fail(Unreachable::Port, cx),
            // A multicast or broadcast is dropped without an answer.
            Route::Nowhere if !cx.addresses.on_link(key.remote.ip()) => return None,
            Route::Nowhere => return fail(Unreachable::Host, cx),
            Route::Host(address) => (address, true),
            Route::Outside(address) => (address, false),
        };
        if key.remote.port() == 0 || key.guest.port() == 0 {
            return None;
        }
        match cx.ask(Protocol::Udp, key.remote, host) {
            Verdict::Allowed => {}
            Verdict::Denied => return fail(Unreachable::Prohibited, cx),
            Verdict::Unknown => return None,
        }
        if !cx.may_open(Kind::Udp) {
            return None;
        }
        let permit = self.permit(Kind::Udp, cx)?;
        let socket = match sockets::connect_udp(address) {
            Ok(socket) => socket,
            Err(e) if sockets::is_exhausted(e) => {
                cx.warn_exhausted("no socket for datagrams of the guest", e.into());
                cx.meter.dropped.add(1);
                return None;
            }
            Err(e) => return fail(e.into(), cx),
        };
        self.insert(key, Host::Own { socket, address }, permit, cx)
    }

    /// A datagram arrived at a published port, from `peer`, which the guest sees as `remote`, or as
    /// another port of that address if that one is taken.
    pub(crate) fn on_published(
        &mut self,
        socket: &Rc<UdpSocket>,
        peer: SocketAddr,
        remote: SocketAddr,
        guest: SocketAddr,
        data: &[u8],
        cx: &mut Context,
    ) {
        let known = self.peers.get(&(Rc::as_ptr(socket), peer)).copied();
        let index = known.or_else(|| self.admit(socket, peer, FlowKey { guest, remote }, cx));
        let Some(flow) = index.and_then(|index| self.flows.get_mut(index)) else { return };
        flow.last_active = cx.now;
        if !cx.may_send() || !cx.out.udp(flow.key.remote, guest, data) {
            cx.meter.dropped.add(1);
        }
        cx.charge();
    }

    /// Opens a flow for a new peer of a published port.
    fn admit(
        &mut self,
        socket: &Rc<UdpSocket>,
        peer: SocketAddr,
        mut key: FlowKey,
        cx: &mut Context,
    ) -> Option<usize> {
        if !cx.may_open(Kind::UdpPeer) {
            return None;
        }
        let mut ports = sockets::other_ports(peer.port());
        while self.by_key.contains_key(&key) {
            key.remote.set_port(ports.next()?);
        }
        let permit = self.permit(Kind::UdpPeer, cx)?;
        let index =
            self.insert(key, Host::Published { socket: Rc::clone(socket), peer }, permit, cx)?;
        self.peers.insert((Rc::as_ptr(socket), peer), index);
        Some(index)
    }

    /// A permit for one more flow; if there is none, that of the oldest flow of the same kind.
    fn permit(&mut self, kind: Kind, cx: &mut Context) -> Option<Permit> {
        if let Some(permit) = cx.quotas.take(kind) {
            return Some(permit);
        }
        let flows = self.flows.iter().filter(|(_, flow)| flow.kind() == kind);
        let (oldest, _) = flows.max_by_key(|(_, flow)| flow.age(cx.now))?;
        self.remove(oldest, cx);
        cx.quotas.take(kind)
    }

    fn insert(
        &mut self,
        key: FlowKey,
        host: Host,
        permit: Permit,
        cx: &mut Context,
    ) -> Option<usize> {
        let flow = Flow {
            key,
            host,
            readable: false,
            queued: false,
            answered: false,
            last_active: cx.now,
            armed: None,
            _permit: permit,
        };
        let index = self.flows.insert(flow);
        let flow = self.flows.get_mut(index)?;
        if let Host::Own { socket, .. } = &flow.host
            && cx.watch(socket, Source::Udp(index)).is_err()
        {
            self.flows.remove(index);
            cx.meter.dropped.add(1);
            return None;
        }
        cx.timers.arm(&mut flow.armed, cx.now + UNANSWERED, Alarm::Udp(index));
        self.by_key.insert(key, index);
        cx.meter.udp_flows.add(1);
        cx.meter.udp_open.set(self.flows.len() as u64);
        Some(index)
    }

    fn remove(&mut self, index: usize, cx: &mut Context) {
        if let Some(flow) = self.flows.try_remove(index) {
            cx.timers.disarm(flow.armed, Alarm::Udp(index));
            self.by_key.remove(&flow.key);
            if let Host::Published { socket, peer } = &flow.host {
                self.peers.remove(&(Rc::as_ptr(socket), *peer));
            }
        }
        if self.flows.is_empty() && self.flows.capacity() > 1024 {
            self.flows = Slab::new();
            self.by_key = HashMap::new();
            self.peers = HashMap::new();
        }
        cx.meter.udp_open.set(self.flows.len() as u64);
    }

    /// Epoll reports that a flow's socket is readable.
    pub(crate) fn on_socket(&mut self, index: usize, readable: bool) {
        let Some(flow) = self.flows.get_mut(index).filter(|_| readable) else { return };
        flow.readable = true;
        if !flow.queued {
            flow.queued = true;
            self.ready.push_back(index);
        }
    }

    /// Forwards datagrams to the guest. True if there are more that can be sent now.
    pub(crate) fn serve(&mut self, cx: &mut Context) -> bool {
        for _ in 0..self.ready.len() {
            let Some(index) = self.ready.pop_front() else { break };
            let Some(flow) = self.flows.get_mut(index) else { continue };
            flow.queued = false;
            flow.receive(&mut self.buffer, cx);
            if flow.readable {
                flow.queued = true;
                self.ready.push_back(index);
            }
        }
        !self.ready.is_empty() && cx.may_send()
    }

    /// True if flows wait for the link or the rate limit.
    pub(crate) fn has_work(&self) -> bool {
        !self.ready.is_empty()
    }

    /// A flow's alarm, which was set for `at`, goes off.
    pub(crate) fn on_alarm(&mut self, index: usize, at: Instant, cx: &mut Context) {
        let Some(flow) = self.flows.get_mut(index).filter(|flow| flow.armed == Some(at)) else {
            return;
        };
        flow.armed = None;
        let deadline = flow.last_active + flow.lifetime();
        if deadline <= cx.now {
            self.remove(index, cx);
        } else {
            cx.timers.arm(&mut flow.armed, deadline, Alarm::Udp(index));
        }
    }

    /// A published port is closed: its flows end.
    pub(crate) fn close_published(&mut self, closed: &Rc<UdpSocket>, cx: &mut Context) {
        let ours = |flow: &Flow| match &flow.host {
            Host::Published { socket, .. } => Rc::ptr_eq(socket, closed),
            Host::Own { .. } => false,
        };
        let indices: Vec<usize> =
            self.flows.iter().filter(|(_, flow)| ours(flow)).map(|(index, _)| index).collect();
        indices.into_iter().for_each(|index| self.remove(index, cx));
    }
}

impl Flow {
    fn kind(&self) -> Kind {
        match self.host {
            Host::Own { .. } => Kind::Udp,
            Host::Published { .. } => Kind::UdpPeer,
        }
    }

    fn lifetime(&self) -> Duration {
        if self.answered { ANSWERED } else { UNANSWERED }
    }

    /// The idle time as a share of the idle timeout, in thousandths: a flow that had an answer ages more
    /// slowly than one that had none.
    fn age(&self, now: Instant) -> u128 {
        let silence = now.saturating_duration_since(self.last_active);
        silence.as_micros() * 1000 / self.lifetime().as_micros().max(1)
    }

    fn send(&self, data: &[u8]) -> Result<(), Errno> {
        match &self.host {
            Host::Own { socket, .. } => match sockets::send(socket, data)? {
                Some(_) => Ok(()),
                None => Err(Errno::AGAIN),
            },
            Host::Published { socket, peer } => match socket.send_to(data, peer) {
                Ok(_) => Ok(()),
                Err(e) => Err(Errno::from_io_error(&e).unwrap_or(Errno::IO)),
            },
        }
    }

    /// Opens a new socket, since the old one's own address may be gone. False for a flow of a published
    /// port.
    fn reopen(&mut self) -> Result<bool, Errno> {
        let Host::Own { socket, address } = &mut self.host else { return Ok(false) };
        *socket = sockets::connect_udp(*address)?;
        Ok(true)
    }

    fn receive(&mut self, buffer: &mut [u8], cx: &mut Context) {
        let Host::Own { socket, .. } = &self.host else { return };
        for _ in 0..BUDGET {
            if !cx.may_send() {
                return;
            }
            match sockets::receive(socket, buffer) {
                Ok(Some(n)) => {
                    self.last_active = cx.now;
                    self.answered = true;
                    let data = buffer.get(..n).unwrap_or_default();
                    if !cx.out.udp(self.key.remote, self.key.guest, data) {
                        cx.meter.dropped.add(1);
                    }
                    cx.charge();
                }
                Ok(None) => {
                    self.readable = false;
                    return;
                }
                Err(e) => return self.unreachable(e.into(), cx),
            }
        }
    }

    fn unreachable(&self, why: Unreachable, cx: &mut Context) {
        let mut transport = [0; 8];
        transport[..2].copy_from_slice(&self.key.guest.port().to_be_bytes());
        transport[2..4].copy_from_slice(&self.key.remote.port().to_be_bytes());
        transport[5] = 8;
        let addresses = (self.key.guest.ip(), self.key.remote.ip());
        // A closed port is reported by the destination itself.
        let from = if why == Unreachable::Port {
            self.key.remote.ip()
        } else {
            cx.addresses.gateway_of(self.key.guest)
        };
        cx.out.unreachable(why, from, addresses, protocol::UDP, &transport);
    }
}
