//! ICMP echo to the outside, over the host's unprivileged ICMP sockets (icmp(7),
//! `net.ipv4.ping_group_range`). If the host forbids those, requests to destinations that the policy
//! allows are answered here.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use boxlite_net_policy::Protocol;
use rustix::io::Errno;
use slab::Slab;

use crate::context::{Context, Source};
use crate::gate::Verdict;
use crate::quota::{Kind, Permit};
use crate::route::Route;
use crate::sockets;
use crate::timers::Alarm;
use crate::wire::{Packet, Unreachable, protocol};

const IDLE: Duration = Duration::from_secs(30);
/// Bytes of an echo header: type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;

/// Source, destination and identifier.
type Key = (IpAddr, IpAddr, [u8; 2]);

struct Flow {
    key: Key,
    socket: OwnedFd,
    _permit: Permit,
    last_active: Instant,
    armed: Option<Instant>,
}

/// The ICMP echo flows of a guest.
pub(crate) struct Ping {
    flows: Slab<Flow>,
    by_key: HashMap<Key, usize>,
    buffer: Box<[u8]>,
}

/// The types of echo request and reply, by IP version.
fn kinds(address: IpAddr) -> (u8, u8) {
    if address.is_ipv4() { (8, 0) } else { (128, 129) }
}

/// Answers an echo request.
pub(crate) fn answer(packet: &Packet<'_>, cx: &mut Context) {
    let (_, reply) = kinds(packet.source);
    let mut message = packet.payload.to_vec();
    if let [kind, code, ..] = &mut message[..] {
        (*kind, *code) = (reply, 0);
    }
    if !cx.out.icmp(packet.destination, packet.source, &mut message) {
        cx.meter.dropped.add(1);
    }
}

/// True for an echo request.
pub(crate) fn is_request(packet: &Packet<'_>) -> bool {
    let (request, _) = kinds(packet.source);
    packet.payload.len() >= HEADER && packet.payload.starts_with(&[request, 0])
}

impl Ping {
    pub(crate) fn new() -> Self {
        Self {
            flows: Slab::new(),
            by_key: HashMap::new(),
            buffer: vec![0; 65_535].into_boxed_slice(),
        }
    }

    /// An echo request of the guest.
    pub(crate) fn on_request(&mut self, packet: &Packet<'_>, cx: &mut Context) {
        let &[_, _, _, _, a, b, ..] = packet.payload else { return };
        let destination = SocketAddr::new(packet.destination, 0);
        let (address, host) = match Route::to(&cx.addresses, destination) {
            Route::Gateway => return answer(packet, cx),
            Route::Nowhere => return self.fail(packet, Unreachable::Host, cx),
            Route::Host(address) => (address, true),
            Route::Outside(address) => (address, false),
        };
        // The host always answers: that it is there is no secret.
        if host {
            return answer(packet, cx);
        }
        match cx.ask(Protocol::Icmp, destination, host) {
            Verdict::Allowed => {}
            Verdict::Denied => return self.fail(packet, Unreachable::Prohibited, cx),
            Verdict::Unknown => return,
        }
        let key = (packet.source, packet.destination, [a, b]);
        let index = match self.by_key.get(&key).copied() {
            Some(index) => index,
            None => match self.open(key, address, cx) {
                Ok(Some(index)) => index,
                Ok(None) => return,
                // The host forbids ICMP sockets, or has none.
                Err(Errno::ACCESS | Errno::PERM | Errno::PROTONOSUPPORT | Errno::INVAL) => {
                    return answer(packet, cx);
                }
                Err(e) => return self.fail(packet, e.into(), cx),
            },
        };
        let Some(flow) = self.flows.get_mut(index) else { return };
        flow.last_active = cx.now;
        match sockets::send(&flow.socket, packet.payload) {
            Ok(Some(_)) => {}
            Ok(None) => cx.meter.dropped.add(1),
            Err(e) => {
                // The next request opens a new socket: the host's addresses may have changed.
                self.remove(index, cx);
                self.fail(packet, e.into(), cx);
            }
        }
    }

    fn fail(&self, packet: &Packet<'_>, why: Unreachable, cx: &mut Context) {
        let (gateway, kind): (IpAddr, u8) = match packet.source {
            IpAddr::V4(_) => (cx.addresses.gateway.into(), protocol::ICMP),
            IpAddr::V6(_) => (cx.addresses.gateway6.into(), protocol::ICMPV6),
        };
        let addresses = (packet.source, packet.destination);
        cx.out.unreachable(why, gateway, addresses, kind, packet.payload);
    }

    /// Opens a flow; none if a quota is used up.
    fn open(
        &mut self,
        key: Key,
        address: SocketAddr,
        cx: &mut Context,
    ) -> Result<Option<usize>, Errno> {
        if !cx.may_open(Kind::Ping) {
            return Ok(None);
        }
        let Some(permit) = cx.quotas.take(Kind::Ping) else {
            cx.meter.dropped.add(1);
            return Ok(None);
        };
        let socket = sockets::connect_ping(address)?;
        Ok(Some(self.insert(key, socket, permit, cx)))
    }

    fn insert(&mut self, key: Key, socket: OwnedFd, permit: Permit, cx: &mut Context) -> usize {
        let flow = Flow { key, socket, _permit: permit, last_active: cx.now, armed: None };
        let index = self.flows.insert(flow);
        self.by_key.insert(key, index);
        if let Some(flow) = self.flows.get_mut(index) {
            if let Err(e) = cx.watch(&flow.socket, Source::Ping(index)) {
                cx.warn_exhausted("cannot watch the socket of a ping", e);
            }
            cx.timers.arm(&mut flow.armed, cx.now + IDLE, Alarm::Ping(index));
        }
        index
    }

    fn remove(&mut self, index: usize, cx: &mut Context) {
        if let Some(flow) = self.flows.try_remove(index) {
            cx.timers.disarm(flow.armed, Alarm::Ping(index));
            self.by_key.remove(&flow.key);
        }
    }

    /// Epoll reports that a flow's socket is readable.
    pub(crate) fn on_socket(&mut self, index: usize, cx: &mut Context) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        let (guest, remote, ident) = flow.key;
        let (_, reply) = kinds(guest);
        loop {
            match sockets::receive(&flow.socket, &mut self.buffer) {
                Ok(Some(n)) => {
                    flow.last_active = cx.now;
                    let Some(message) = self.buffer.get_mut(..n) else { return };
                    // The kernel replaces the identifier by the socket's.
                    if let [kind, _, _, _, a, b, ..] = message
                        && *kind == reply
                    {
                        [*a, *b] = ident;
                        if !cx.out.icmp(remote, guest, message) {
                            cx.meter.dropped.add(1);
                        }
                    }
                }
                Ok(None) => return,
                Err(e) => {
                    let request = [kinds(guest).0, 0, 0, 0, ident[0], ident[1], 0, 0];
                    let kind = if guest.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
                    let packet = Packet {
                        source: guest,
                        destination: remote,
                        protocol: kind,
                        payload: &request,
                    };
                    return self.fail(&packet, e.into(), cx);
                }
            }
        }
    }

    /// A flow's alarm, which was set for `at`, goes off.
    pub(crate) fn on_alarm(&mut self, index: usize, at: Instant, cx: &mut Context) {
        let Some(flow) = self.flows.get_mut(index).filter(|flow| flow.armed == Some(at)) else {
            return;
        };
        flow.armed = None;
        let deadline = flow.last_active + IDLE;
        if deadline <= cx.now {
            self.remove(index, cx);
        } else {
            cx.timers.arm(&mut flow.armed, deadline, Alarm::Ping(index));
        }
    }
}
