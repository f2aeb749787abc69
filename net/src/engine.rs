//! The loop: frames and events in, everything else follows.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use boxlite_net_policy::PortForward;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll};
use slab::Slab;
use smoltcp::wire::{DHCP_SERVER_PORT, UdpPacket};

use crate::context::{Context, Source};
use crate::counters::Meter;
use crate::dns;
use crate::gate::Gate;
use crate::limit::Bucket;
use crate::link::{Link, MAX_FRAME, Received};
use crate::listener::Listener;
use crate::local;
use crate::network::Command;
use crate::options::NetworkOptions;
use crate::own::OwnAddresses;
use crate::ping::{self, Ping};
use crate::pool::{Budget, Pool};
use crate::quota::Quotas;
use crate::sys;
use crate::tcp;
use crate::timers::{Alarm, Timers};
use crate::udp::Udp;
use crate::wire::{Egress, Frame, Network, Packet, Reassembly, protocol};

/// Frames taken from the guest before the others have a turn.
const TURN: usize = 64;
/// Connections accepted, and datagrams taken, from a port before the others have a turn.
const FORWARD_TURN: usize = 256;
/// How often memory is freed, files are looked at, and sleep is noticed.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// How often the router is announced.
const ADVERTISE: Duration = Duration::from_secs(600);
/// A clock that jumped less was read between two others.
const SLEPT: Duration = Duration::from_secs(1);
/// The port of DNS.
const DNS: u16 = 53;

/// A port of the host that leads to the guest.
struct Forward {
    bound: PortForward,
    socket: ForwardSocket,
    /// There may be more; it is not announced again.
    ready: bool,
}

enum ForwardSocket {
    Tcp(TcpListener),
    Udp(Rc<UdpSocket>),
}

/// Everything that the network's thread owns.
pub(crate) struct Engine {
    poll: Poll,
    cx: Context,
    tcp: tcp::Table,
    udp: Udp,
    ping: Ping,
    dns: dns::Resolver,
    forwards: Slab<Forward>,
    reassembly: Reassembly,
    from_guest: Bucket,
    /// The link may have frames.
    link_ready: bool,
    frame: Box<[u8]>,
    commands: Receiver<Command>,
    advertised: Instant,
    /// When a rate limit lets somebody go on.
    limited: Option<Instant>,
    asleep: Duration,
}

impl Engine {
    pub(crate) fn new(
        options: NetworkOptions,
        poll: Poll,
        meter: Arc<Meter>,
        resolver: dns::Config,
        commands: Receiver<Command>,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let out = Egress::new(&options.addresses, options.mtu, Arc::clone(&meter));
        let cx = Context {
            out,
            addresses: options.addresses,
            own: OwnAddresses::new(options.own_addresses_open, options.own_addresses_awaited),
            gate: Gate::new(options.policy, Arc::clone(&meter), options.denials),
            timers: Timers::default(),
            pool: Pool::default(),
            budget: Budget::default(),
            to_guest: Bucket::new(options.limits.to_guest, now),
            meter,
            now,
            registry: poll.registry().try_clone()?,
            quotas: Quotas::new(options.max_descriptors, now),
            complained: None,
            dns_streams: Vec::new(),
        };
        Ok(Self {
            poll,
            cx,
            tcp: tcp::Table::default(),
            udp: Udp::new(),
            ping: Ping::new(),
            dns: dns::Resolver::new(resolver),
            forwards: Slab::new(),
            reassembly: Reassembly::default(),
            from_guest: Bucket::new(options.limits.from_guest, now),
            link_ready: false,
            frame: vec![0; MAX_FRAME].into_boxed_slice(),
            commands,
            advertised: now,
            limited: None,
            asleep: sys::time_asleep(),
        })
    }

    /// Works until it is told to stop.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        self.cx.timers.set(self.cx.now + HOUSEKEEPING, Alarm::Housekeeping);
        let mut more = false;
        loop {
            let timeout = if more { Some(Duration::ZERO) } else { self.timeout() };
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            }
            self.cx.now = Instant::now();
            if !self.hear(&events) {
                return Ok(());
            }
            more = self.turn();
        }
    }

    /// Takes note of what has happened. False to stop.
    fn hear(&mut self, events: &Events) -> bool {
        for event in events {
            match Source::of(event.token()) {
                Source::Wake => {
                    if !self.obey() {
                        return false;
                    }
                }
                Source::Link => self.wake_link(),
                Source::Tcp(index) => self.tcp.on_socket(index, event, &mut self.cx),
                Source::Udp(index) => {
                    self.udp.on_socket(index, event.is_readable() || event.is_error());
                }
                Source::Forward(index) => {
                    if let Some(forward) = self.forwards.get_mut(index) {
                        forward.ready = true;
                    }
                }
                Source::Ping(index) => self.ping.on_socket(index, &mut self.cx),
                Source::Dns(index) => self.dns.on_socket(index, &mut self.cx),
                Source::DnsStream(index) => self.dns.on_stream(index, &mut self.cx),
            }
        }
        true
    }

    /// One turn for everybody. True if there is more to do at once.
    fn turn(&mut self) -> bool {
        let frames = self.take_frames();
        let forwards = self.take_forwards();
        self.dns.take_streams(&mut self.cx);
        while let Some((at, alarm)) = self.cx.timers.pop(self.cx.now) {
            match alarm {
                Alarm::Tcp(index) => self.tcp.on_alarm(index, at, &mut self.cx),
                Alarm::Udp(index) => self.udp.on_alarm(index, at, &mut self.cx),
                Alarm::Ping(index) => self.ping.on_alarm(index, at, &mut self.cx),
                Alarm::Dns(index) => self.dns.on_alarm(index, &mut self.cx),
                Alarm::Limit => self.limited = None,
                Alarm::Housekeeping => self.housekeep(),
            }
        }
        let tcp = self.tcp.serve(&mut self.cx);
        let udp = self.udp.serve(&mut self.cx);
        self.cx.out.flush();
        self.wait_for_limits();
        frames || forwards || tcp || udp
    }

    fn timeout(&self) -> Option<Duration> {
        let next = self.cx.timers.next()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Sets an alarm for when a limit lets those go on that wait for it.
    fn wait_for_limits(&mut self) {
        let now = self.cx.now;
        let to_guest = (self.tcp.has_work() || self.udp.has_work())
            .then(|| self.cx.to_guest.wait(now))
            .flatten();
        let from_guest = self.link_ready.then(|| self.from_guest.wait(now)).flatten();
        if let Some(at) = [to_guest, from_guest].into_iter().flatten().min() {
            self.cx.timers.arm(&mut self.limited, at, Alarm::Limit);
        }
    }

    /// Carries out what other threads want. False to stop.
    fn obey(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Attach(link) => self.attach(link),
                Command::Detach(reply) => {
                    let _ = reply.send(self.detach());
                }
                Command::Forward(bound, listener) => self.add_forward(bound, listener),
                Command::Unforward(bound, reply) => {
                    let _ = reply.send(self.remove_forward(bound));
                }
                Command::Own(addresses) => {
                    self.cx.addresses.own = addresses;
                    self.cx.own.arrive();
                }
                Command::Stop => return false,
            }
        }
        true
    }

    fn attach(&mut self, link: Box<dyn Link>) {
        drop(self.detach());
        let fd = link.fd().as_raw_fd();
        let watched =
            self.cx.registry.register(&mut SourceFd(&fd), Source::Link.token(), Interest::READABLE);
        self.cx.out.attach(link);
        if let Err(e) = watched {
            self.cx.out.fail(&e);
        }
        self.link_ready = true;
    }

    fn detach(&mut self) -> Option<Box<dyn Link>> {
        let link = self.cx.out.detach()?;
        let fd = link.fd().as_raw_fd();
        // It was watched, or the link had failed from the start.
        let _ = self.cx.registry.deregister(&mut SourceFd(&fd));
        self.link_ready = false;
        Some(link)
    }

    fn wake_link(&mut self) {
        self.cx.out.woken();
        if let Some(link) = self.cx.out.link() {
            link.woken();
            self.link_ready = true;
        }
    }

    /// Takes frames from the guest. True if there may be more.
    fn take_frames(&mut self) -> bool {
        for _ in 0..TURN {
            if !self.link_ready || self.from_guest.wait(self.cx.now).is_some() {
                return false;
            }
            let Some(link) = self.cx.out.link() else {
                self.link_ready = false;
                return false;
            };
            match link.receive(&mut self.frame) {
                Ok(Some(received)) => {
                    self.from_guest.spend(received.len);
                    self.take_frame(received);
                }
                Ok(None) => {
                    self.link_ready = false;
                    return false;
                }
                Err(e) => {
                    self.cx.out.fail(&e);
                    self.link_ready = false;
                    return false;
                }
            }
        }
        true
    }

    fn take_frame(&mut self, received: Received) {
        let frame = std::mem::take(&mut self.frame);
        let bytes = frame.get(..received.len).unwrap_or_default();
        self.cx.meter.frames_from_guest.add(1);
        self.cx.meter.bytes_from_guest.add(bytes.len() as u64);
        if self.on_frame(bytes, received.checksum_valid).is_none() {
            self.cx.meter.malformed.add(1);
        }
        self.frame = frame;
    }

    /// None if it is malformed.
    fn on_frame(&mut self, bytes: &[u8], checksum_valid: bool) -> Option<()> {
        let frame = Frame::parse(bytes)?;
        if frame.destination != self.cx.addresses.gateway_mac() && !frame.destination.is_multicast()
        {
            return Some(());
        }
        if frame.source.is_unicast() {
            self.cx.out.guest_mac = frame.source;
        }
        match frame.network {
            Network::Arp(arp) => local::answer_arp(&arp, &mut self.cx),
            Network::Packet(packet) => {
                if !checksum_valid && !packet.checksum_is_valid() {
                    return None;
                }
                self.on_packet(&packet)?;
            }
            Network::Fragment(fragment) => {
                let mut reassembly = std::mem::take(&mut self.reassembly);
                let whole = reassembly.add(&fragment, self.cx.now);
                // Only a whole packet's checksum can be right, whoever checked it before.
                let result = match whole {
                    Some(packet) if packet.checksum_is_valid() => self.on_packet(&packet),
                    Some(_) => None,
                    None => Some(()),
                };
                self.reassembly = reassembly;
                result?;
            }
            Network::Other => {}
        }
        Some(())
    }

    fn on_packet(&mut self, packet: &Packet<'_>) -> Option<()> {
        let unknown = match packet.source {
            // It has no address yet: it wants one, or asks whether one is free.
            IpAddr::V4(v4) => v4.is_unspecified() && packet.protocol == protocol::UDP,
            IpAddr::V6(v6) => v6.is_unspecified() && packet.protocol == protocol::ICMPV6,
        };
        if !unknown && !self.cx.addresses.may_be_guest(packet.source) {
            return None;
        }
        match packet.protocol {
            protocol::TCP => self.tcp.on_packet(packet, &mut self.cx),
            protocol::UDP => self.on_udp(packet, unknown)?,
            protocol::ICMP if packet.source.is_ipv4() && ping::is_request(packet) => {
                self.ping.on_request(packet, &mut self.cx);
            }
            protocol::ICMPV6 if packet.source.is_ipv6() => {
                if ping::is_request(packet) && !unknown {
                    self.ping.on_request(packet, &mut self.cx);
                } else {
                    local::answer_ndp(packet, &self.dns.search(), &mut self.cx);
                }
            }
            // Nothing else has a way out; nobody has to know.
            _ => {}
        }
        Some(())
    }

    fn on_udp(&mut self, packet: &Packet<'_>, unknown: bool) -> Option<()> {
        let datagram = UdpPacket::new_checked(packet.payload).ok()?;
        let to_gateway = self.cx.addresses.is_gateway(packet.destination);
        let broadcast = packet.destination == IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
        match datagram.dst_port() {
            DHCP_SERVER_PORT if to_gateway || broadcast => {
                local::answer_dhcp(datagram.payload(), &self.dns.search(), &mut self.cx);
            }
            _ if unknown => return None,
            DNS if to_gateway => {
                let guest = SocketAddr::new(packet.source, datagram.src_port());
                let resolver = SocketAddr::new(packet.destination, DNS);
                self.dns.on_datagram(guest, resolver, datagram.payload(), &mut self.cx);
            }
            _ => self.udp.on_packet(packet, &mut self.cx),
        }
        Some(())
    }

    pub(crate) fn add_forward(&mut self, bound: PortForward, listener: Listener) {
        let socket = match listener {
            Listener::Tcp(socket) => ForwardSocket::Tcp(socket),
            Listener::Udp(socket) => ForwardSocket::Udp(Rc::new(socket)),
        };
        let index = self.forwards.insert(Forward { bound, socket, ready: true });
        let Some(forward) = self.forwards.get(index) else { return };
        let watched = match &forward.socket {
            ForwardSocket::Tcp(socket) => self.cx.watch(socket, Source::Forward(index)),
            ForwardSocket::Udp(socket) => self.cx.watch(&**socket, Source::Forward(index)),
        };
        if let Err(e) = watched {
            tracing::error!("network: port forward {bound} does not work: {e}");
        }
    }

    fn remove_forward(&mut self, bound: PortForward) -> bool {
        let index = self.forwards.iter().find(|(_, f)| f.bound == bound).map(|(index, _)| index);
        let Some(forward) = index.map(|index| self.forwards.remove(index)) else { return false };
        if let ForwardSocket::Udp(socket) = &forward.socket {
            self.udp.close_forward(socket, &mut self.cx);
        }
        true
    }

    /// Lets in who came to ports of the host. True if there is more.
    fn take_forwards(&mut self) -> bool {
        let mut more = false;
        for (_, forward) in &mut self.forwards {
            // Without a guest they wait where they are.
            if !forward.ready || self.cx.out.any_link().is_none() {
                continue;
            }
            let port = forward.bound.guest;
            forward.ready = match &forward.socket {
                ForwardSocket::Tcp(socket) => accept(socket, port, &mut self.tcp, &mut self.cx),
                ForwardSocket::Udp(socket) => {
                    receive(socket, port, &mut self.udp, &mut self.frame, &mut self.cx)
                }
            };
            more |= forward.ready && self.cx.may_send();
        }
        more
    }

    fn housekeep(&mut self) {
        let now = self.cx.now;
        self.cx.timers.set(now + HOUSEKEEPING, Alarm::Housekeeping);
        let asleep = sys::time_asleep();
        let slept = asleep.saturating_sub(self.asleep) > SLEPT;
        self.asleep = asleep;
        if slept {
            tracing::info!("network: the host slept; names are asked for anew");
        }
        self.dns.housekeep(slept, &mut self.cx);
        self.tcp.housekeep(now);
        self.cx.pool.shrink();
        self.cx.gate.housekeep();
        // Those that could not be let in, for want of file descriptors, are not announced again.
        self.forwards.iter_mut().for_each(|(_, forward)| forward.ready = true);
        if now.saturating_duration_since(self.advertised) >= ADVERTISE {
            self.advertised = now;
            local::advertise(&self.dns.search(), &mut self.cx);
        }
    }
}

/// The address under which the guest sees a peer over IPv4: its own, where answers to that come back
/// here.
fn seen_as(peer: SocketAddr, cx: &Context) -> SocketAddr {
    let a = &cx.addresses;
    let host = |v4: Ipv4Addr| v4.is_loopback() || v4.is_unspecified() || v4 == a.loopback;
    let ip = match peer.ip().to_canonical() {
        IpAddr::V4(v4) if !host(v4) && !a.on_link(v4.into()) => v4,
        // The host itself, or somebody with an address of the other kind.
        _ => a.host,
    };
    SocketAddr::new(ip.into(), peer.port())
}

/// The addresses of a connection to the guest's `port`: the peer as the guest sees it, and the guest.
/// A peer with an IPv6 address of the world comes over IPv6; a guest that serves IPv4 only is asked
/// once more, by the address that stands for the host.
fn ends(peer: SocketAddr, port: u16, cx: &Context) -> (SocketAddr, SocketAddr) {
    let a = &cx.addresses;
    let ip = peer.ip().to_canonical();
    let local = ip.is_loopback() || ip.is_unspecified() || ip == IpAddr::V6(a.loopback6);
    if ip.is_ipv6() && !local && !a.on_link(ip) {
        return (SocketAddr::new(ip, peer.port()), SocketAddr::new(a.guest6.into(), port));
    }
    (seen_as(peer, cx), SocketAddr::new(a.guest.into(), port))
}

/// Accepts connections. True if there may be more.
fn accept(listener: &TcpListener, port: u16, tcp: &mut tcp::Table, cx: &mut Context) -> bool {
    for _ in 0..FORWARD_TURN {
        match listener.accept() {
            Ok((stream, peer)) => {
                if stream.set_nonblocking(true).is_err() {
                    continue;
                }
                let (remote, guest) = ends(peer, port, cx);
                tcp.open_from_host(OwnedFd::from(stream), peer, remote, guest, cx);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                ) => {}
            Err(e) => {
                // Out of file descriptors, most likely; there is another look soon.
                cx.complain("cannot accept a connection", e);
                return false;
            }
        }
    }
    true
}

/// Takes datagrams. True if there may be more.
fn receive(
    socket: &Rc<UdpSocket>,
    port: u16,
    udp: &mut Udp,
    buffer: &mut [u8],
    cx: &mut Context,
) -> bool {
    let guest = SocketAddr::new(cx.addresses.guest.into(), port);
    for _ in 0..FORWARD_TURN {
        if !cx.may_send() {
            return true;
        }
        match socket.recv_from(buffer) {
            Ok((n, peer)) => {
                let remote = seen_as(peer, cx);
                let data = buffer.get(..n).unwrap_or_default();
                udp.on_forward(socket, peer, remote, guest, data, cx);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
            // A peer that got an answer of the guest had closed its socket.
            Err(_) => {}
        }
    }
    true
}

#[cfg(test)]
pub(crate) mod tests;
