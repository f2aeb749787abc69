//! All TCP flows: finds the flow of a segment, event or alarm; opens and closes flows.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

use boxlite_net_policy::Protocol;
use rustix::io::Errno;
use slab::Slab;

use super::flow::{Disposition, Flow};
use super::reply::{refuse, reply, unreachable};
use super::time_wait::TimeWait;
use crate::context::{Context, Source};
use crate::gate::Verdict;
use crate::key::FlowKey;
use crate::quota::{Kind, Permit};
use crate::route::Route;
use crate::sockets::{self, Connect};
use crate::sys;
use crate::timers::Alarm;
use crate::wire::{Packet, Segment, Seq, Unreachable};

/// The port of DNS.
const DNS: u16 = 53;
/// Places for each flow to the resolver: the flow and the resolver's end have one each, and the ends of a
/// flow that was reset keep theirs until they are looked at.
const DNS_PLACES: usize = 4;

/// The TCP flows of a guest.
#[derive(Default)]
pub(crate) struct Table {
    flows: Slab<Flow>,
    by_key: HashMap<FlowKey, usize>,
    /// Flows that have work.
    ready: VecDeque<usize>,
    /// Flows to the resolver.
    dns: Vec<usize>,
    time_wait: TimeWait,
    numbers: Numbers,
}

/// Initial sequence numbers that others cannot guess (RFC 6528).
#[derive(Default)]
struct Numbers {
    secret: RandomState,
    count: u32,
}

impl Numbers {
    fn next(&mut self, key: &FlowKey) -> Seq {
        // The numbers of a connection start beyond those of the last one with the same addresses.
        self.count = self.count.wrapping_add(64_000);
        Seq((self.secret.hash_one(key) as u32).wrapping_add(self.count))
    }
}

impl Table {
    /// A TCP segment of the guest.
    pub(crate) fn on_packet(&mut self, packet: &Packet<'_>, cx: &mut Context) {
        let Some(segment) = Segment::parse(packet.payload) else {
            cx.meter.malformed.add(1);
            return;
        };
        let key = FlowKey {
            guest: SocketAddr::new(packet.source, segment.source_port),
            remote: SocketAddr::new(packet.destination, segment.destination_port),
        };
        if let Some(&index) = self.by_key.get(&key) {
            let Some(flow) = self.flows.get_mut(index) else { return };
            let disposition = flow.on_segment(&segment, cx);
            return self.settle(index, disposition, cx);
        }
        if let Some((ours, guests)) = self.time_wait.get(&key, cx.now) {
            if !segment.syn {
                if !segment.rst && segment.len() > 0 {
                    reply(key, ours, Some(guests), false, cx);
                }
                return;
            }
            self.time_wait.remove(&key);
        }
        if segment.syn && segment.ack.is_none() && !segment.rst {
            self.open(key, &segment, cx);
        } else if !segment.rst {
            refuse(key, &segment, cx);
        }
    }

    /// The guest opens a connection.
    fn open(&mut self, key: FlowKey, segment: &Segment<'_>, cx: &mut Context) {
        let route = Route::to(&cx.addresses, key.remote);
        let (destination, host) = match route {
            Route::Gateway if key.remote.port() == DNS => return self.open_dns(key, segment, cx),
            Route::Gateway => return refuse(key, segment, cx),
            Route::Nowhere => return unreachable(key, segment.seq, Unreachable::Host, cx),
            Route::Host(address) => (address, true),
            Route::Outside(address) => (address, false),
        };
        match cx.ask(Protocol::Tcp, key.remote, host) {
            Verdict::Allowed => {}
            Verdict::Denied => {
                return unreachable(key, segment.seq, Unreachable::Prohibited, cx);
            }
            Verdict::Unknown => return,
        }
        if !cx.may_open(Kind::Tcp) {
            return;
        }
        let Some(permit) = cx.quotas.take(Kind::Tcp) else {
            cx.meter.dropped.add(1);
            return refuse(key, segment, cx);
        };
        match sockets::connect_tcp(destination) {
            Ok((socket, state)) => {
                let iss = self.numbers.next(&key);
                let socket = (socket, permit);
                let flow = Flow::from_guest(key, destination, socket, segment, iss, cx);
                let index = self.insert(flow, cx);
                self.begin(index, state, cx);
            }
            Err(e) => {
                if sockets::is_exhausted(e) {
                    cx.warn_exhausted("no socket for a connection of the guest", e.into());
                }
                match e {
                    Errno::NETUNREACH | Errno::ADDRNOTAVAIL | Errno::INVAL | Errno::AFNOSUPPORT => {
                        unreachable(key, segment.seq, Unreachable::Network, cx);
                    }
                    Errno::HOSTUNREACH => unreachable(key, segment.seq, Unreachable::Host, cx),
                    Errno::ACCESS | Errno::PERM => {
                        unreachable(key, segment.seq, Unreachable::Prohibited, cx);
                    }
                    _ => refuse(key, segment, cx),
                }
            }
        }
    }

    /// The guest opens a connection to the resolver at the gateway.
    fn open_dns(&mut self, key: FlowKey, segment: &Segment<'_>, cx: &mut Context) {
        if !cx.may_open(Kind::DnsStream) {
            return;
        }
        if self.dns.len() >= cx.quotas.most(Kind::DnsStream) / DNS_PLACES {
            self.reset_idle_dns(cx);
        }
        let permits = (cx.quotas.take(Kind::DnsStream), cx.quotas.take(Kind::DnsStream));
        let (Some(ours), Some(theirs)) = permits else {
            cx.meter.dropped.add(1);
            return refuse(key, segment, cx);
        };
        let (socket, resolver) = match sockets::stream_pair() {
            Ok(pair) => pair,
            Err(e) => {
                cx.warn_exhausted("no sockets for DNS over TCP", e.into());
                return refuse(key, segment, cx);
            }
        };
        cx.dns_streams.push((resolver, theirs));
        let iss = self.numbers.next(&key);
        let flow = Flow::from_guest(key, key.remote, (socket, ours), segment, iss, cx);
        let index = self.insert(flow, cx);
        self.dns.push(index);
        self.begin(index, Connect::Done, cx);
    }

    /// Resets the stream to the resolver that was idle for longest, so that programs that never close
    /// theirs do not lock out others.
    fn reset_idle_dns(&mut self, cx: &mut Context) {
        let last_active = |index: &usize| self.flows.get(*index).map(|flow| flow.last_active);
        if let Some(index) = self.dns.iter().copied().min_by_key(last_active) {
            self.finish(index, Disposition::ResetByHost, cx);
        }
    }

    /// Watches a new flow. A connection over the loopback is established at once.
    fn begin(&mut self, index: usize, state: Connect, cx: &mut Context) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        if cx.watch(&flow.socket, Source::Tcp(index)).is_err() {
            return self.settle(index, Disposition::Failed(Errno::NOMEM), cx);
        }
        let disposition = match state {
            Connect::Done => {
                flow.accept(cx);
                Disposition::Keep
            }
            Connect::Pending => flow.connected(cx),
        };
        self.settle(index, disposition, cx);
    }

    /// A connection to a published port: connects to the guest from `remote`, or from another port of
    /// that address if that one is in use. False if that is not possible.
    pub(crate) fn open_from_host(
        &mut self,
        socket: OwnedFd,
        peer: SocketAddr,
        remote: SocketAddr,
        guest: SocketAddr,
        cx: &mut Context,
    ) -> bool {
        match cx.quotas.take(Kind::Tcp) {
            Some(permit) => self.connect_to_guest((socket, permit), peer, remote, guest, cx),
            None => {
                cx.meter.dropped.add(1);
                false
            }
        }
    }

    fn connect_to_guest(
        &mut self,
        (socket, permit): (OwnedFd, Permit),
        peer: SocketAddr,
        mut remote: SocketAddr,
        guest: SocketAddr,
        cx: &mut Context,
    ) -> bool {
        let taken = |remote| self.by_key.contains_key(&FlowKey { guest, remote });
        let mut ports = sockets::other_ports(peer.port());
        while taken(remote)
            && let Some(port) = ports.next()
        {
            remote.set_port(port);
        }
        let key = FlowKey { guest, remote };
        let prepared = sys::prepare(&socket).and_then(|()| sockets::tune(&socket));
        if self.by_key.contains_key(&key) || prepared.is_err() {
            return false;
        }
        self.time_wait.remove(&key);
        let iss = self.numbers.next(&key);
        let flow = Flow::from_host(key, peer, (socket, permit), iss, cx);
        let index = self.insert(flow, cx);
        let Some(flow) = self.flows.get(index) else { return false };
        let disposition = match cx.watch(&flow.socket, Source::Tcp(index)) {
            Ok(()) => Disposition::Keep,
            Err(_) => Disposition::ResetByGuest,
        };
        self.settle(index, disposition, cx);
        true
    }

    /// The guest refused a connection over IPv6: connects again over IPv4, from the address that stands
    /// for the host, since the peer has no IPv4 address.
    fn retry_over_ipv4(&mut self, flow: Flow, cx: &mut Context) {
        let FlowKey { guest, remote } = flow.key;
        let remote = SocketAddr::new(cx.addresses.host.into(), remote.port());
        let guest = SocketAddr::new(cx.addresses.guest.into(), guest.port());
        let (socket, permit, peer) = flow.into_socket(cx);
        self.connect_to_guest((socket, permit), peer, remote, guest, cx);
    }

    fn insert(&mut self, flow: Flow, cx: &Context) -> usize {
        cx.meter.tcp_flows.add(1);
        let key = flow.key;
        let index = self.flows.insert(flow);
        self.by_key.insert(key, index);
        cx.meter.tcp_open.set(self.flows.len() as u64);
        index
    }

    /// Epoll reports an event of a flow's socket.
    pub(crate) fn on_socket(&mut self, index: usize, event: &mio::event::Event, cx: &mut Context) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        flow.on_socket(event.is_readable(), event.is_writable(), event.is_read_closed());
        let disposition = if event.is_error() { flow.on_error() } else { Disposition::Keep };
        self.settle(index, disposition, cx);
    }

    /// A flow's alarm, which was set for `at`, goes off.
    pub(crate) fn on_alarm(&mut self, index: usize, at: Instant, cx: &mut Context) {
        let Some(flow) = self.flows.get_mut(index).filter(|flow| flow.armed == Some(at)) else {
            return;
        };
        flow.armed = None;
        let disposition =
            if flow.deadline() <= cx.now { flow.on_deadline(cx) } else { Disposition::Keep };
        self.settle(index, disposition, cx);
    }

    /// Serves every flow that has work. True if some have more work that can be done at once.
    pub(crate) fn serve(&mut self, cx: &mut Context) -> bool {
        for _ in 0..self.ready.len() {
            let Some(index) = self.ready.pop_front() else { break };
            let Some(flow) = self.flows.get_mut(index) else { continue };
            flow.queued = false;
            let (disposition, more) = flow.serve(cx);
            if more && disposition == Disposition::Keep {
                flow.queued = true;
                self.ready.push_back(index);
                self.arm(index, cx);
            } else {
                self.finish(index, disposition, cx);
            }
        }
        !self.ready.is_empty() && cx.may_send()
    }

    /// True if flows wait for the link or the rate limit.
    pub(crate) fn has_work(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Removes connections whose TIME-WAIT is over.
    pub(crate) fn housekeep(&mut self, now: Instant) {
        self.time_wait.expire(now);
        if self.flows.is_empty() && self.flows.capacity() > 1024 {
            self.flows = Slab::new();
            self.by_key = HashMap::new();
            self.ready = VecDeque::new();
        }
    }

    /// Acts on the disposition of a flow after an event: the flow is served in this turn, or closed.
    fn settle(&mut self, index: usize, disposition: Disposition, cx: &mut Context) {
        if disposition != Disposition::Keep {
            return self.finish(index, disposition, cx);
        }
        if let Some(flow) = self.flows.get_mut(index)
            && !flow.queued
        {
            flow.queued = true;
            self.ready.push_back(index);
        }
    }

    fn finish(&mut self, index: usize, disposition: Disposition, cx: &mut Context) {
        if disposition == Disposition::Keep {
            return self.arm(index, cx);
        }
        let Some(mut flow) = self.flows.try_remove(index) else { return };
        let key = flow.key;
        self.by_key.remove(&key);
        self.dns.retain(|dns| *dns != index);
        cx.timers.disarm(flow.armed, Alarm::Tcp(index));
        cx.meter.tcp_open.set(self.flows.len() as u64);
        match disposition {
            Disposition::Failed(error) => flow.fail(error, cx),
            Disposition::ResetByHost => flow.reset_guest(cx),
            Disposition::Refused if key.guest.is_ipv6() => return self.retry_over_ipv4(flow, cx),
            Disposition::Keep
            | Disposition::Closed
            | Disposition::ResetByGuest
            | Disposition::Refused => {}
        }
        let reset = matches!(disposition, Disposition::ResetByGuest | Disposition::Refused);
        let (ours, guests) = flow.close(reset, cx);
        if disposition == Disposition::Closed {
            self.time_wait.insert(key, ours, guests, cx.now);
        }
    }

    fn arm(&mut self, index: usize, cx: &mut Context) {
        if let Some(flow) = self.flows.get_mut(index) {
            let deadline = flow.deadline();
            cx.timers.arm(&mut flow.armed, deadline, Alarm::Tcp(index));
        }
    }
}
