//! Frames for the guest: headers are built in front of payloads, which are not copied.

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustix::io::Errno;
use smoltcp::wire::{
    ETHERNET_HEADER_LEN, EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4Message,
    Icmpv6Message, Ipv4Packet, Ipv6Packet, TcpPacket, UDP_HEADER_LEN, UdpPacket,
};

use super::seq::Seq;
use super::{checksum, protocol};
use crate::addresses::Addresses;
use crate::counters::Meter;
use crate::link::{Link, Offload, OffloadFeatures, PartialChecksum, Segmentation, Sent};

const HOP_LIMIT: u8 = 64;
/// Ethernet, IPv6, and TCP with all options.
const MAX_HEADERS: usize = ETHERNET_HEADER_LEN + 40 + 60;
/// The most pieces of payload in a frame.
pub(crate) const MAX_PIECES: usize = 20;
/// Offsets of the checksums in the headers of TCP and UDP.
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;

/// A TCP segment for the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TcpHeader {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) seq: Seq,
    pub(crate) ack: Option<Seq>,
    pub(crate) syn: bool,
    pub(crate) fin: bool,
    pub(crate) rst: bool,
    pub(crate) push: bool,
    /// The field of the header, already scaled.
    pub(crate) window: u16,
    pub(crate) options: TcpOptions,
    /// The largest payload of one segment.
    pub(crate) mss: usize,
}

/// TCP options for the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TcpOptions {
    None,
    Syn { mss: u16, window_scale: Option<u8>, sack_permitted: bool },
    Sack([Option<(Seq, Seq)>; 3]),
}

/// The reason why a packet of the guest cannot be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreachable {
    Network,
    Host,
    Port,
    /// The policy denies it.
    Prohibited,
}

impl From<Errno> for Unreachable {
    /// The meaning of a socket's error for the guest.
    fn from(error: Errno) -> Self {
        match error {
            Errno::CONNREFUSED => Self::Port,
            Errno::ACCESS | Errno::PERM => Self::Prohibited,
            Errno::HOSTUNREACH | Errno::HOSTDOWN => Self::Host,
            _ => Self::Network,
        }
    }
}

/// The most broken links that are logged.
const MAX_LOGGED: u32 = 16;

/// The way of all frames to the guest.
pub(crate) struct Egress {
    link: Option<Box<dyn Link>>,
    features: OffloadFeatures,
    /// The link has no room.
    full: bool,
    /// The link is broken and is not used any more.
    failed: bool,
    /// The number of links that broke.
    failures: u32,
    gateway_mac: EthernetAddress,
    pub(crate) guest_mac: EthernetAddress,
    mtu: usize,
    ident: u16,
    /// Bytes sent since the last [`Egress::take_sent`].
    sent: usize,
    meter: Arc<Meter>,
}

impl Egress {
    pub(crate) fn new(addresses: &Addresses, mtu: u16, meter: Arc<Meter>) -> Self {
        Self {
            link: None,
            features: OffloadFeatures::default(),
            full: false,
            failed: false,
            failures: 0,
            gateway_mac: addresses.gateway_mac(),
            guest_mac: EthernetAddress(addresses.guest_mac),
            mtu: mtu.into(),
            ident: 0,
            sent: 0,
            meter,
        }
    }

    pub(crate) fn attach(&mut self, link: Box<dyn Link>) {
        self.features = link.features();
        self.link = Some(link);
        self.full = false;
        self.failed = false;
    }

    pub(crate) fn detach(&mut self) -> Option<Box<dyn Link>> {
        self.link.take()
    }

    /// The link, if it works.
    pub(crate) fn link(&mut self) -> Option<&mut Box<dyn Link>> {
        self.link.as_mut().filter(|_| !self.failed)
    }

    /// The link, even if it is broken.
    pub(crate) fn any_link(&self) -> Option<&dyn Link> {
        self.link.as_deref()
    }

    pub(crate) fn fail(&mut self, error: &std::io::Error) {
        self.failed = true;
        // A guest can break its link and attach another as often as it likes.
        match self.failures {
            ..MAX_LOGGED => tracing::error!("network: the link to the guest is broken: {error}"),
            MAX_LOGGED => tracing::error!("network: more broken links are not logged"),
            _ => {}
        }
        self.failures = self.failures.saturating_add(1);
    }

    /// The link may have room again.
    pub(crate) fn woken(&mut self) {
        self.full = false;
    }

    /// True if the link accepts frames now.
    pub(crate) fn is_open(&self) -> bool {
        !self.full && !self.failed && self.link.is_some()
    }

    pub(crate) fn flush(&mut self) {
        if let Some(link) = self.link()
            && let Err(e) = link.flush()
        {
            self.fail(&e);
        }
    }

    /// Bytes sent since the last call.
    pub(crate) fn take_sent(&mut self) -> usize {
        std::mem::take(&mut self.sent)
    }

    pub(crate) fn mtu(&self) -> u16 {
        u16::try_from(self.mtu).unwrap_or(u16::MAX)
    }

    /// The MSS of the link: the value of the MSS option.
    pub(crate) fn mss(&self, address: IpAddr) -> u16 {
        let headers = if address.is_ipv4() { 40 } else { 60 };
        u16::try_from(self.mtu - headers).unwrap_or(u16::MAX)
    }

    /// The largest payload of one call of [`Egress::tcp`], for segments of `mss` bytes.
    pub(crate) fn burst(&self, address: IpAddr, mss: usize) -> usize {
        let offload = if address.is_ipv4() { self.features.tso4 } else { self.features.tso6 };
        let most = 65_535 - 60 - usize::from(address.is_ipv6()) * 40;
        if offload && self.features.checksum && mss > 0 && mss < most {
            most / mss * mss
        } else {
            mss
        }
    }

    /// Sends a TCP segment. False if the link has no room.
    pub(crate) fn tcp(&mut self, header: &TcpHeader, payload: &[IoSlice<'_>]) -> bool {
        let len: usize = payload.iter().map(|piece| piece.len()).sum();
        let mut options = [0; 40];
        let options_len = header.options.emit(&mut options);
        let tcp_len = 20 + options_len;
        let mut buffer = [0; MAX_HEADERS];
        let (source, destination) = (header.source.ip(), header.destination.ip());
        let ip = self.headers(&mut buffer, source, destination, protocol::TCP, tcp_len + len);
        let mut packet = TcpPacket::new_unchecked(&mut buffer[ip..ip + tcp_len]);
        packet.set_src_port(header.source.port());
        packet.set_dst_port(header.destination.port());
        packet.set_seq_number(header.seq.to_wire());
        packet.set_ack_number(header.ack.unwrap_or(Seq(0)).to_wire());
        packet.clear_flags();
        packet.set_header_len(u8::try_from(tcp_len).unwrap_or(60));
        packet.set_ack(header.ack.is_some());
        packet.set_syn(header.syn);
        packet.set_fin(header.fin);
        packet.set_rst(header.rst);
        packet.set_psh(header.push);
        packet.set_window_len(header.window);
        packet.options_mut().copy_from_slice(&options[..options_len]);
        let segmentation = (len > header.mss).then(|| Segmentation {
            v6: source.is_ipv6(),
            header_len: u16::try_from(ip + tcp_len).unwrap_or(u16::MAX),
            segment_size: u16::try_from(header.mss).unwrap_or(u16::MAX),
        });
        let pseudo = checksum::pseudo_header(
            source,
            destination,
            protocol::TCP,
            u32::try_from(tcp_len + len).unwrap_or(u32::MAX),
        );
        let offload = self.checksum(&mut buffer[..ip + tcp_len], ip, TCP_CHECKSUM, pseudo, payload);
        self.send(&buffer[..ip + tcp_len], payload, Offload { segmentation, ..offload })
    }

    /// Sends a UDP datagram, in fragments if it exceeds the MTU. False if the link has no room.
    pub(crate) fn udp(&mut self, source: SocketAddr, destination: SocketAddr, data: &[u8]) -> bool {
        let len = UDP_HEADER_LEN + data.len();
        let Ok(udp_len) = u16::try_from(len) else { return true };
        let mut udp = [0; UDP_HEADER_LEN];
        let mut packet = UdpPacket::new_unchecked(&mut udp[..]);
        packet.set_src_port(source.port());
        packet.set_dst_port(destination.port());
        packet.set_len(udp_len);
        let pseudo =
            checksum::pseudo_header(source.ip(), destination.ip(), protocol::UDP, udp_len.into());
        let payload = [IoSlice::new(data)];
        let ip_header = if source.is_ipv4() { 20 } else { 40 };
        if ip_header + len > self.mtu {
            let pieces = [IoSlice::new(&udp), IoSlice::new(data)];
            let sum = !checksum::sum(pseudo, &pieces);
            udp[6..8].copy_from_slice(&(if sum == 0 { !0 } else { sum }).to_be_bytes());
            let whole = [&udp[..], data].concat();
            return self.fragments(source.ip(), destination.ip(), protocol::UDP, &whole);
        }
        let mut buffer = [0; MAX_HEADERS];
        let ip = self.headers(&mut buffer, source.ip(), destination.ip(), protocol::UDP, len);
        let end = ip + UDP_HEADER_LEN;
        buffer[ip..end].copy_from_slice(&udp);
        let offload = self.checksum(&mut buffer[..end], ip, UDP_CHECKSUM, pseudo, &payload);
        self.send(&buffer[..end], &payload, offload)
    }

    /// Fills in the checksum of an ICMP message and sends it. False if the link has no room.
    pub(crate) fn icmp(&mut self, source: IpAddr, destination: IpAddr, message: &mut [u8]) -> bool {
        let Some(field) = message.get_mut(2..4) else { return true };
        field.fill(0);
        let len = u32::try_from(message.len()).unwrap_or(u32::MAX);
        let (kind, start) = if source.is_ipv4() {
            (protocol::ICMP, 0)
        } else {
            let kind = protocol::ICMPV6;
            (kind, checksum::pseudo_header(source, destination, kind, len))
        };
        let sum = !checksum::sum(start, &[IoSlice::new(message)]);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let header = if source.is_ipv4() { 20 } else { 40 };
        if header + message.len() > self.mtu {
            return self.fragments(source, destination, kind, message);
        }
        let mut buffer = [0; MAX_HEADERS];
        let ip = self.headers(&mut buffer, source, destination, kind, message.len());
        if kind == protocol::ICMPV6 {
            // NDP requires that no router was on the way (RFC 4861, section 7.1).
            Ipv6Packet::new_unchecked(&mut buffer[ETHERNET_HEADER_LEN..ip]).set_hop_limit(255);
        }
        self.send(&buffer[..ip], &[IoSlice::new(message)], Offload::default())
    }

    /// Reports from `gateway` that a packet of the guest cannot be delivered. `transport` is the start of
    /// that packet's transport header, including the ports.
    pub(crate) fn unreachable(
        &mut self,
        why: Unreachable,
        gateway: IpAddr,
        (source, destination): (IpAddr, IpAddr),
        protocol: u8,
        transport: &[u8],
    ) {
        let transport = &transport[..transport.len().min(64)];
        let mut original = [0; MAX_HEADERS];
        let start = ETHERNET_HEADER_LEN;
        let ip = self.headers(&mut original, source, destination, protocol, transport.len());
        let (kind, code): (u8, u8) = match (source, why) {
            (IpAddr::V4(_), Unreachable::Network) => (Icmpv4Message::DstUnreachable.into(), 0),
            (IpAddr::V4(_), Unreachable::Host) => (Icmpv4Message::DstUnreachable.into(), 1),
            (IpAddr::V4(_), Unreachable::Port) => (Icmpv4Message::DstUnreachable.into(), 3),
            (IpAddr::V4(_), Unreachable::Prohibited) => (Icmpv4Message::DstUnreachable.into(), 13),
            (IpAddr::V6(_), Unreachable::Network) => (Icmpv6Message::DstUnreachable.into(), 0),
            (IpAddr::V6(_), Unreachable::Host) => (Icmpv6Message::DstUnreachable.into(), 3),
            (IpAddr::V6(_), Unreachable::Port) => (Icmpv6Message::DstUnreachable.into(), 4),
            (IpAddr::V6(_), Unreachable::Prohibited) => (Icmpv6Message::DstUnreachable.into(), 1),
        };
        let mut message =
            [&[kind, code, 0, 0, 0, 0, 0, 0], &original[start..ip], transport].concat();
        self.icmp(gateway, source, &mut message);
    }

    /// Sends an Ethernet payload of another protocol.
    pub(crate) fn ethernet(&mut self, kind: EthernetProtocol, payload: &[u8]) -> bool {
        let mut buffer = [0; ETHERNET_HEADER_LEN];
        self.ethernet_header(&mut buffer, kind);
        self.send(&buffer, &[IoSlice::new(payload)], Offload::default())
    }

    fn ethernet_header(&self, buffer: &mut [u8], kind: EthernetProtocol) {
        let mut frame = EthernetFrame::new_unchecked(buffer);
        frame.set_src_addr(self.gateway_mac);
        frame.set_dst_addr(self.guest_mac);
        frame.set_ethertype(kind);
    }

    /// Writes the Ethernet and IP headers. Returns the offset of the transport header.
    fn headers(
        &mut self,
        buffer: &mut [u8; MAX_HEADERS],
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        len: usize,
    ) -> usize {
        let (ethernet, rest) = buffer.split_at_mut(ETHERNET_HEADER_LEN);
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                self.ethernet_header(ethernet, EthernetProtocol::Ipv4);
                self.ident = self.ident.wrapping_add(1);
                let mut packet = Ipv4Packet::new_unchecked(&mut rest[..20]);
                packet.set_version(4);
                packet.set_header_len(20);
                packet.set_total_len(u16::try_from(20 + len).unwrap_or(u16::MAX));
                packet.set_ident(self.ident);
                packet.clear_flags();
                packet.set_dont_frag(protocol == protocol::TCP);
                packet.set_frag_offset(0);
                packet.set_hop_limit(HOP_LIMIT);
                packet.set_next_header(protocol.into());
                packet.set_src_addr(source);
                packet.set_dst_addr(destination);
                packet.fill_checksum();
                ETHERNET_HEADER_LEN + 20
            }
            (source, destination) => {
                self.ethernet_header(ethernet, EthernetProtocol::Ipv6);
                let mut packet = Ipv6Packet::new_unchecked(&mut rest[..40]);
                packet.set_version(6);
                packet.set_traffic_class(0);
                packet.set_flow_label(0);
                packet.set_payload_len(u16::try_from(len).unwrap_or(u16::MAX));
                packet.set_next_header(protocol.into());
                packet.set_hop_limit(HOP_LIMIT);
                packet.set_src_addr(v6(source));
                packet.set_dst_addr(v6(destination));
                ETHERNET_HEADER_LEN + 40
            }
        }
    }

    /// Fills in the transport checksum at `start + field`: partial if the guest accepts that.
    fn checksum(
        &self,
        headers: &mut [u8],
        start: usize,
        field: u16,
        pseudo: u16,
        payload: &[IoSlice<'_>],
    ) -> Offload {
        let at = start + usize::from(field);
        if self.features.checksum {
            headers[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
            let start = u16::try_from(start).unwrap_or(u16::MAX);
            let checksum = Some(PartialChecksum { start, offset: field });
            return Offload { checksum, segmentation: None };
        }
        headers[at..at + 2].fill(0);
        let sum = checksum::sum(pseudo, &[IoSlice::new(&headers[start..])]);
        // A transport header has an even length.
        let sum = !checksum::sum(sum, payload);
        // RFC 768: zero would mean no checksum.
        let sum = if sum == 0 && field == UDP_CHECKSUM { !0 } else { sum };
        headers[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        Offload::default()
    }

    /// Sends a packet that exceeds the MTU.
    fn fragments(&mut self, source: IpAddr, destination: IpAddr, kind: u8, packet: &[u8]) -> bool {
        const FRAGMENT: u8 = 44;
        let headers = if source.is_ipv4() { 20 } else { 48 };
        let size = (self.mtu - headers) / 8 * 8;
        let ident = self.ident.wrapping_add(1);
        let count = packet.len().div_ceil(size);
        for (index, part) in packet.chunks(size).enumerate() {
            let more = index + 1 < count;
            // In units of eight bytes: below 2^13, since a packet has less than 2^16 bytes.
            let offset = u16::try_from(index * size / 8).unwrap_or(0);
            let mut buffer = [0; MAX_HEADERS];
            let end = if source.is_ipv4() {
                let ip = self.headers(&mut buffer, source, destination, kind, part.len());
                let mut header = Ipv4Packet::new_unchecked(&mut buffer[ETHERNET_HEADER_LEN..ip]);
                header.set_ident(ident);
                header.set_more_frags(more);
                header.set_frag_offset(offset * 8);
                header.fill_checksum();
                ip
            } else {
                let ip = self.headers(&mut buffer, source, destination, FRAGMENT, 8 + part.len());
                let field = (offset << 3 | u16::from(more)).to_be_bytes();
                let [a, b] = ident.to_be_bytes();
                buffer[ip..ip + 8].copy_from_slice(&[kind, 0, field[0], field[1], 0, 0, a, b]);
                ip + 8
            };
            if !self.send(&buffer[..end], &[IoSlice::new(part)], Offload::default()) {
                return false;
            }
        }
        self.ident = ident;
        true
    }

    fn send(&mut self, headers: &[u8], payload: &[IoSlice<'_>], offload: Offload) -> bool {
        if self.full {
            return false;
        }
        let mut pieces = [IoSlice::new(&[]); MAX_PIECES + 1];
        let count = payload.len() + 1;
        pieces[0] = IoSlice::new(headers);
        pieces[1..count].copy_from_slice(payload);
        let Some(link) = self.link.as_mut().filter(|_| !self.failed) else { return false };
        match link.send(&pieces[..count], offload) {
            Ok(Sent::Sent) => {
                let len: usize = pieces[..count].iter().map(|piece| piece.len()).sum();
                self.sent += len;
                self.meter.frames_to_guest.add(1);
                self.meter.bytes_to_guest.add(len as u64);
                true
            }
            Ok(Sent::Full) => {
                self.full = true;
                false
            }
            Err(e) => {
                self.fail(&e);
                false
            }
        }
    }
}

/// For packets whose addresses are not both IPv4: then both are IPv6.
fn v6(address: IpAddr) -> std::net::Ipv6Addr {
    match address {
        IpAddr::V6(v6) => v6,
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
    }
}

impl TcpOptions {
    /// Writes the options, padded to whole words. Returns their length: at most 28.
    fn emit(&self, buffer: &mut [u8; 40]) -> usize {
        const NOP: u8 = 1;
        let mut len = 0;
        let mut put = |bytes: &[u8]| {
            buffer[len..len + bytes.len()].copy_from_slice(bytes);
            len += bytes.len();
        };
        match *self {
            Self::None => {}
            Self::Syn { mss, window_scale, sack_permitted } => {
                let [a, b] = mss.to_be_bytes();
                put(&[2, 4, a, b]);
                if let Some(scale) = window_scale {
                    put(&[NOP, 3, 3, scale]);
                }
                if sack_permitted {
                    put(&[NOP, NOP, 4, 2]);
                }
            }
            Self::Sack(ranges) => {
                let count = ranges.iter().flatten().count();
                if count > 0 {
                    put(&[NOP, NOP, 5, 2 + 8 * count as u8]);
                    for (from, to) in ranges.iter().flatten() {
                        put(&from.0.to_be_bytes());
                        put(&to.0.to_be_bytes());
                    }
                }
            }
        }
        len
    }
}
