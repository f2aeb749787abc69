//! The guest: an engine without a thread, and the frames on its link.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use boxlite_net_policy::{Policy, Rule};
use mio::{Events, Poll};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv6Packet, Icmpv6Repr, IpAddress,
    IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, TcpControl, TcpPacket, TcpRepr,
    TcpSeqNumber, UdpPacket, UdpRepr,
};

use crate::counters::{Counters, Meter};
use crate::dns;
use crate::engine::Engine;
use crate::link::{OffloadFeatures, memory};
use crate::options::NetworkOptions;
use crate::ports::{self, Listener};

/// The source of the guest's connections.
pub(crate) const PORT: u16 = 40_000;
/// The guest's first sequence number: it wraps around soon.
pub(crate) const ISS: u32 = u32::MAX - 20;

/// Timeout for immediate effects, generous for a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// An engine, the guest's end of its link, and a server on the host's loopback.
pub(crate) struct Rig {
    pub(crate) engine: Engine,
    pub(crate) guest: memory::MemoryGuest,
    pub(crate) now: Instant,
    pub(crate) listener: TcpListener,
    events: Events,
    meter: Arc<Meter>,
}

/// A TCP segment for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Got {
    /// The source.
    pub(crate) ip: IpAddress,
    pub(crate) port: u16,
    pub(crate) control: TcpControl,
    pub(crate) seq: u32,
    pub(crate) ack: Option<u32>,
    pub(crate) window: u16,
    pub(crate) sack: Option<(u32, u32)>,
    pub(crate) payload: Vec<u8>,
}

impl Rig {
    /// A guest that reaches only the test's own server.
    pub(crate) fn new() -> Self {
        Self::with(&[], NetworkOptions::default())
    }

    /// The same with more rules.
    pub(crate) fn with(allowed: &[&str], options: NetworkOptions) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut rules = vec![Rule::allow(&format!("tcp:host:{port}")).unwrap()];
        rules.extend(allowed.iter().map(|rule| Rule::allow(rule).unwrap()));
        rules.push(Rule::deny("any").unwrap());
        let options = NetworkOptions { policy: Policy::from_rules(rules), ..options };
        let poll = Poll::new().unwrap();
        let meter = Arc::new(Meter::default());
        let conf = dns::Config::new("/nonexistent".into(), Arc::default(), Instant::now());
        let (_, commands) = channel();
        let mut engine = Engine::new(options, poll, Arc::clone(&meter), conf, commands).unwrap();
        let features = OffloadFeatures { checksum: true, ..OffloadFeatures::default() };
        let (link, guest) = memory::pair(features).unwrap();
        engine.attach(Box::new(link));
        let now = Instant::now();
        Self { engine, guest, now, listener, events: Events::with_capacity(64), meter }
    }

    /// Runs the engine until it has nothing to do at this time.
    pub(crate) fn settle(&mut self) {
        for _ in 0..100 {
            let timeout = Some(Duration::from_millis(1));
            self.engine.poll.poll(&mut self.events, timeout).unwrap();
            self.engine.cx.now = self.now;
            let quiet = self.events.is_empty();
            let events = std::mem::replace(&mut self.events, Events::with_capacity(64));
            assert!(self.engine.on_events(&events));
            self.events = events;
            if !self.engine.turn() && quiet {
                return;
            }
        }
        panic!("the engine is never done");
    }

    /// Sets the clock, and runs the engine.
    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.settle();
    }

    pub(crate) fn counters(&self) -> Counters {
        self.meter.read()
    }

    /// The server's address, as the guest sees it.
    pub(crate) fn server(&self) -> SocketAddr {
        let host = self.engine.cx.addresses.host;
        SocketAddr::new(host.into(), self.listener.local_addr().unwrap().port())
    }

    /// Sends a segment of the guest; `SYN` and options are the connection's own.
    pub(crate) fn send(&mut self, segment: TcpRepr<'_>) {
        self.send_raw(segment);
        self.settle();
    }

    pub(crate) fn send_raw(&mut self, segment: TcpRepr<'_>) {
        let host = self.engine.cx.addresses.host;
        self.send_raw_to(host, segment);
    }

    /// Sends a segment to another address than the server's.
    pub(crate) fn send_raw_to(&mut self, to: Ipv4Addr, segment: TcpRepr<'_>) {
        let (from, to) = (self.engine.cx.addresses.guest, IpAddress::from(to));
        let mut bytes = vec![0; segment.buffer_len()];
        let caps = ChecksumCapabilities::default();
        segment.emit(&mut TcpPacket::new_unchecked(&mut bytes[..]), &from.into(), &to, &caps);
        let IpAddress::Ipv4(to) = to else { unreachable!() };
        self.send_packet(from, to, IpProtocol::Tcp, &bytes);
    }

    /// Sends a datagram of the guest.
    pub(crate) fn send_datagram(&mut self, from: u16, to: (Ipv4Addr, u16), payload: &[u8]) {
        let guest = self.engine.cx.addresses.guest;
        let datagram = UdpRepr { src_port: from, dst_port: to.1 };
        let mut bytes = vec![0; 8 + payload.len()];
        let (source, destination) = (IpAddress::from(guest), IpAddress::from(to.0));
        let mut packet = UdpPacket::new_unchecked(&mut bytes[..]);
        let caps = ChecksumCapabilities::default();
        let fill = |room: &mut [u8]| room.copy_from_slice(payload);
        datagram.emit(&mut packet, &source, &destination, payload.len(), fill, &caps);
        self.send_packet(guest, to.0, IpProtocol::Udp, &bytes);
    }

    /// Sends a packet whose transport header is in `payload`.
    pub(crate) fn send_packet(
        &mut self,
        from: Ipv4Addr,
        to: Ipv4Addr,
        protocol: IpProtocol,
        payload: &[u8],
    ) {
        let ip = Ipv4Repr {
            src_addr: from,
            dst_addr: to,
            next_header: protocol,
            payload_len: payload.len(),
            hop_limit: 64,
        };
        let mut packet = vec![0; 20 + payload.len()];
        let caps = ChecksumCapabilities::default();
        ip.emit(&mut Ipv4Packet::new_unchecked(&mut packet[..]), &caps);
        packet[20..].copy_from_slice(payload);
        self.send_frame(EthernetProtocol::Ipv4, &packet);
    }

    /// Pings the gateway over IPv6.
    pub(crate) fn ping6(&mut self) {
        let (from, to) = (self.engine.cx.addresses.guest6, self.engine.cx.addresses.gateway6);
        let caps = ChecksumCapabilities::default();
        let request = Icmpv6Repr::EchoRequest { ident: 1, seq_no: 1, data: &[] };
        let ip = Ipv6Repr {
            src_addr: from,
            dst_addr: to,
            next_header: IpProtocol::Icmpv6,
            payload_len: request.buffer_len(),
            hop_limit: 64,
        };
        let mut packet = vec![0; 40 + request.buffer_len()];
        ip.emit(&mut Ipv6Packet::new_unchecked(&mut packet[..]));
        request.emit(&from, &to, &mut Icmpv6Packet::new_unchecked(&mut packet[40..]), &caps);
        self.send_frame(EthernetProtocol::Ipv6, &packet);
        self.settle();
    }

    fn send_frame(&mut self, protocol: EthernetProtocol, packet: &[u8]) {
        let addresses = &self.engine.cx.addresses;
        let mut frame = vec![0; 14 + packet.len()];
        let mut ethernet = EthernetFrame::new_unchecked(&mut frame[..]);
        ethernet.set_src_addr(EthernetAddress(addresses.guest_mac));
        ethernet.set_dst_addr(EthernetAddress(addresses.gateway_mac));
        ethernet.set_ethertype(protocol);
        frame[14..].copy_from_slice(packet);
        assert!(self.guest.send(frame));
    }

    /// An empty segment with an acknowledgement, `sent` and `received` bytes into the streams.
    pub(crate) fn segment(&self, sent: usize, ack: u32) -> TcpRepr<'static> {
        TcpRepr {
            src_port: PORT,
            dst_port: self.server().port(),
            control: TcpControl::None,
            seq_number: TcpSeqNumber(ISS.wrapping_add(1 + sent as u32).cast_signed()),
            ack_number: Some(TcpSeqNumber(ack.cast_signed())),
            window_len: 0xffff,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        }
    }

    /// The guest's SYN.
    pub(crate) fn syn(&self) -> TcpRepr<'static> {
        TcpRepr {
            control: TcpControl::Syn,
            seq_number: TcpSeqNumber(ISS.cast_signed()),
            ack_number: None,
            max_seg_size: Some(1000),
            window_scale: Some(0),
            sack_permitted: true,
            ..self.segment(0, 0)
        }
    }

    /// The segments that the guest received since the last call.
    pub(crate) fn received(&mut self) -> Vec<Got> {
        let frames = std::iter::from_fn(|| self.guest.receive());
        frames.filter_map(|(frame, _)| parse(&frame)).collect()
    }

    /// The port that the next datagram for the guest comes from.
    pub(crate) fn datagram(&mut self) -> u16 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let frame = self.guest.receive();
            // Ethernet and IPv4 without options.
            if let Some((frame, _)) = frame.filter(|(frame, _)| frame.get(23) == Some(&17)) {
                return u16::from_be_bytes([frame[34], frame[35]]);
            }
            assert!(Instant::now() < deadline, "no datagram comes");
            self.settle();
        }
    }

    /// The only segment that the guest receives. A busy kernel is slow even on its loopback.
    pub(crate) fn one(&mut self) -> Got {
        let mut all = self.wait_for(|all| !all.is_empty());
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    /// Segments with `len` bytes of data.
    pub(crate) fn data(&mut self, len: usize) -> Vec<Got> {
        self.wait_for(|all| all.iter().map(|segment| segment.payload.len()).sum::<usize>() >= len)
    }

    pub(crate) fn wait_for(&mut self, done: impl Fn(&[Got]) -> bool) -> Vec<Got> {
        let deadline = Instant::now() + PATIENCE;
        let mut all = self.received();
        while !done(&all) && Instant::now() < deadline {
            self.settle();
            all.extend(self.received());
        }
        all
    }

    /// A published port of the guest's port 80.
    pub(crate) fn publish(&mut self, port: &str) -> SocketAddr {
        let (port, listener) = Listener::bind(port.parse().unwrap()).unwrap();
        self.engine.publish(port, listener);
        port.host
    }

    /// Publishes the guest's port 80, and connects to it as if from `peer`.
    pub(crate) fn connect_as(&mut self, peer: SocketAddr) -> TcpStream {
        let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        let (server, _) = self.listener.accept().unwrap();
        let cx = &mut self.engine.cx;
        let (remote, guest) = ports::ends(peer, 80, cx);
        assert!(self.engine.tcp.open_from_host(server.into(), peer, remote, guest, cx));
        self.settle();
        client
    }

    /// Opens a connection: our number of the first byte, and the server's end.
    pub(crate) fn connect(&mut self) -> (u32, TcpStream) {
        self.send(self.syn());
        let answer = self.one();
        assert_eq!((answer.control, answer.ack), (TcpControl::Syn, Some(ISS.wrapping_add(1))));
        let first = answer.seq.wrapping_add(1);
        self.send(self.segment(0, first));
        assert_eq!(self.received(), []);
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        (first, stream)
    }
}

/// The contents of a stream, once it has `len` bytes or the timeout has passed.
pub(crate) fn read(mut stream: &TcpStream, len: usize) -> Vec<u8> {
    let deadline = Instant::now() + PATIENCE;
    let mut bytes = Vec::new();
    let mut buffer = [0; 65_536];
    loop {
        match stream.read(&mut buffer) {
            Ok(n @ 1..) => bytes.extend(&buffer[..n]),
            _ if bytes.len() >= len || Instant::now() >= deadline => return bytes,
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn parse(frame: &[u8]) -> Option<Got> {
    let ethernet = EthernetFrame::new_checked(frame).unwrap();
    let (from, to, protocol, payload): (IpAddress, IpAddress, _, _) = match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let ip = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
            assert!(ip.verify_checksum());
            (ip.src_addr().into(), ip.dst_addr().into(), ip.next_header(), ip.payload())
        }
        EthernetProtocol::Ipv6 => {
            let ip = Ipv6Packet::new_checked(ethernet.payload()).unwrap();
            (ip.src_addr().into(), ip.dst_addr().into(), ip.next_header(), ip.payload())
        }
        _ => return None,
    };
    if protocol != IpProtocol::Tcp {
        return None;
    }
    let packet = TcpPacket::new_checked(payload).unwrap();
    // Its checksum is left to the guest.
    let caps = ChecksumCapabilities::ignored();
    let repr = TcpRepr::parse(&packet, &from, &to, &caps).unwrap();
    Some(Got {
        ip: from,
        port: repr.src_port,
        control: repr.control,
        seq: repr.seq_number.0.cast_unsigned(),
        ack: repr.ack_number.map(|ack| ack.0.cast_unsigned()),
        window: repr.window_len,
        sack: repr.sack_ranges[0],
        payload: repr.payload.to_vec(),
    })
}
