//! The loop: hands each frame, event and command to the module that it is for.
//!
//! A turn of the loop gives each source of work a budget, so that none of them starves the others.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use boxlite_net_policy::PublishedPort;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll};
use smoltcp::wire::{DHCP_SERVER_PORT, UdpPacket};

use crate::command::EngineCommand;
use crate::context::{Context, Source};
use crate::counters::Meter;
use crate::dns;
use crate::gate::Gate;
use crate::limit::Bucket;
use crate::link::{Link, MAX_FRAME, Received};
use crate::local;
use crate::options::NetworkOptions;
use crate::own::OwnAddresses;
use crate::ping::{self, Ping};
use crate::pool::{Budget, Pool};
use crate::ports::{Listener, Ports};
use crate::quota::Quotas;
use crate::sys;
use crate::tcp;
use crate::timers::{Alarm, Timers};
use crate::udp::Udp;
use crate::wire::{Egress, Frame, Network, Packet, Reassembly, protocol};

/// Frames received from the guest in a turn.
const BUDGET: usize = 64;
/// Interval of housekeeping: memory is freed, resolv.conf is checked, a suspend of the host is noticed.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// Interval of router advertisements.
const ADVERTISE: Duration = Duration::from_secs(600);
/// The least time that counts as a suspend: the two clocks that show it are not read at once.
const SLEPT: Duration = Duration::from_secs(1);
/// The port of DNS.
const DNS: u16 = 53;

/// All state of the network's thread.
pub(crate) struct Engine {
    poll: Poll,
    cx: Context,
    tcp: tcp::Table,
    udp: Udp,
    ping: Ping,
    dns: dns::Resolver,
    ports: Ports,
    reassembly: Reassembly,
    from_guest: Bucket,
    /// The link may have frames: epoll, edge-triggered, does not report it again.
    link_ready: bool,
    frame: Box<[u8]>,
    commands: Receiver<EngineCommand>,
    advertised: Instant,
    /// The alarm for when a rate limit lets flows go on.
    limited: Option<Instant>,
    asleep: Duration,
}

impl Engine {
    pub(crate) fn new(
        options: NetworkOptions,
        poll: Poll,
        meter: Arc<Meter>,
        resolver: dns::Config,
        commands: Receiver<EngineCommand>,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let out = Egress::new(&options.addresses, options.mtu, Arc::clone(&meter));
        let cx = Context {
            out,
            addresses: options.addresses,
            ipv6_heard: false,
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
            warned: None,
            dns_streams: Vec::new(),
        };
        Ok(Self {
            poll,
            cx,
            tcp: tcp::Table::default(),
            udp: Udp::new(),
            ping: Ping::new(),
            dns: dns::Resolver::new(resolver),
            ports: Ports::default(),
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

    /// Runs until a command stops it.
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
            if !self.on_events(&events) {
                return Ok(());
            }
            more = self.turn();
        }
    }

    /// Hands out events. False to stop.
    fn on_events(&mut self, events: &Events) -> bool {
        for event in events {
            match Source::of(event.token()) {
                Source::Wake => {
                    if !self.on_commands() {
                        return false;
                    }
                }
                Source::Link => self.wake_link(),
                Source::Tcp(index) => self.tcp.on_socket(index, event, &mut self.cx),
                Source::Udp(index) => {
                    self.udp.on_socket(index, event.is_readable() || event.is_error());
                }
                Source::Port(index) => self.ports.on_socket(index),
                Source::Ping(index) => self.ping.on_socket(index, &mut self.cx),
                Source::Dns(index) => self.dns.on_socket(index, &mut self.cx),
                Source::DnsStream(index) => self.dns.on_stream(index, &mut self.cx),
            }
        }
        true
    }

    /// One turn of the loop. True if there is more to do at once.
    fn turn(&mut self) -> bool {
        let frames = self.take_frames();
        let ports = self.ports.serve(&mut self.tcp, &mut self.udp, &mut self.frame, &mut self.cx);
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
        frames || ports || tcp || udp
    }

    fn timeout(&self) -> Option<Duration> {
        let next = self.cx.timers.next()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Sets an alarm for when a rate limit lets flows go on.
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

    /// Carries out the commands of other threads. False to stop.
    fn on_commands(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                EngineCommand::Attach(link) => self.attach(link),
                EngineCommand::Detach(reply) => {
                    let _ = reply.send(self.detach());
                }
                EngineCommand::Publish(port, listener) => self.publish(port, listener),
                EngineCommand::Unpublish(port, reply) => {
                    let _ = reply.send(self.ports.remove(port, &mut self.udp, &mut self.cx));
                }
                EngineCommand::Own(addresses) => {
                    self.cx.addresses.own = addresses;
                    self.cx.own.set_known();
                }
                EngineCommand::Stop => return false,
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
        self.cx.ipv6_heard = false;
        self.link_ready = true;
    }

    fn detach(&mut self) -> Option<Box<dyn Link>> {
        let link = self.cx.out.detach()?;
        let fd = link.fd().as_raw_fd();
        // Fails only if the link could not be watched in the first place.
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

    /// Receives frames from the guest. True if there may be more.
    fn take_frames(&mut self) -> bool {
        for _ in 0..BUDGET {
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

    /// None if the frame is malformed.
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
                // A checksum covers the whole packet, so that of a fragment means nothing.
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
            // The guest has no address yet: it asks for one, or whether one is in use.
            IpAddr::V4(v4) => v4.is_unspecified() && packet.protocol == protocol::UDP,
            IpAddr::V6(v6) => v6.is_unspecified() && packet.protocol == protocol::ICMPV6,
        };
        if !unknown && !self.cx.addresses.may_be_guest(packet.source) {
            return None;
        }
        self.cx.ipv6_heard |= packet.source == self.cx.addresses.guest6;
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
            // No other protocol leaves the link; it is dropped without an answer.
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

    pub(crate) fn publish(&mut self, port: PublishedPort, listener: Listener) {
        self.ports.add(port, listener, &self.cx);
    }

    fn housekeep(&mut self) {
        let now = self.cx.now;
        self.cx.timers.set(now + HOUSEKEEPING, Alarm::Housekeeping);
        let asleep = sys::time_asleep();
        let slept = asleep.saturating_sub(self.asleep) > SLEPT;
        self.asleep = asleep;
        if slept {
            tracing::info!("network: the host was suspended; open DNS queries are sent again");
        }
        self.dns.housekeep(slept, &mut self.cx);
        self.tcp.housekeep(now);
        self.cx.pool.shrink();
        self.cx.gate.housekeep();
        self.ports.housekeep();
        if now.saturating_duration_since(self.advertised) >= ADVERTISE {
            self.advertised = now;
            local::advertise(&self.dns.search(), &mut self.cx);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
