//! Frames of the guest, parsed.

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::wire::{
    ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, Ipv4Packet,
    Ipv6FragmentHeader, Ipv6Packet,
};

use super::{checksum, protocol};

/// The most extension headers of a packet.
const MAX_EXTENSIONS: usize = 8;

/// An Ethernet frame.
pub(crate) struct Frame<'a> {
    pub(crate) source: EthernetAddress,
    pub(crate) destination: EthernetAddress,
    pub(crate) network: Network<'a>,
}

/// The contents of a frame.
pub(crate) enum Network<'a> {
    Arp(ArpRepr),
    Packet(Packet<'a>),
    Fragment(Fragment<'a>),
    /// Another protocol, which is ignored.
    Other,
}

/// An IP packet; its payload begins with the transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet<'a> {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) payload: &'a [u8],
}

/// A part of an IP packet.
pub(crate) struct Fragment<'a> {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) ident: u32,
    /// Its offset in the packet, in bytes.
    pub(crate) offset: usize,
    pub(crate) more: bool,
    pub(crate) payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// None if the frame is malformed. Transport checksums are not verified.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let frame = EthernetFrame::new_checked(bytes).ok()?;
        let network = match frame.ethertype() {
            EthernetProtocol::Arp => {
                let packet = ArpPacket::new_checked(frame.payload()).ok()?;
                Network::Arp(ArpRepr::parse(&packet).ok()?)
            }
            EthernetProtocol::Ipv4 => ipv4(frame.payload())?,
            EthernetProtocol::Ipv6 => ipv6(frame.payload())?,
            EthernetProtocol::Unknown(_) => Network::Other,
        };
        Some(Self { source: frame.src_addr(), destination: frame.dst_addr(), network })
    }
}

impl Packet<'_> {
    /// True if the transport checksum is correct, or the protocol has none.
    pub(crate) fn checksum_is_valid(&self) -> bool {
        match self.protocol {
            // RFC 768: zero means no checksum. IPv6 does not allow that.
            protocol::UDP if self.source.is_ipv4() && self.payload.get(6..8) == Some(&[0, 0]) => {
                true
            }
            protocol::TCP | protocol::UDP | protocol::ICMPV6 => {
                checksum::is_valid(self.source, self.destination, self.protocol, self.payload)
            }
            protocol::ICMP => smoltcp::wire::checksum::data(self.payload) == !0,
            _ => true,
        }
    }
}

fn ipv4(bytes: &[u8]) -> Option<Network<'_>> {
    let packet = Ipv4Packet::new_checked(bytes).ok()?;
    if packet.version() != 4 || packet.header_len() < 20 || !packet.verify_checksum() {
        return None;
    }
    let source = packet.src_addr().into();
    let destination = packet.dst_addr().into();
    let protocol = packet.next_header().into();
    let payload = packet.payload();
    if packet.more_frags() || packet.frag_offset() != 0 {
        return Some(Network::Fragment(Fragment {
            source,
            destination,
            protocol,
            ident: packet.ident().into(),
            offset: packet.frag_offset().into(),
            more: packet.more_frags(),
            payload,
        }));
    }
    Some(Network::Packet(Packet { source, destination, protocol, payload }))
}

fn ipv6(bytes: &[u8]) -> Option<Network<'_>> {
    let packet = Ipv6Packet::new_checked(bytes).ok()?;
    if packet.version() != 6 {
        return None;
    }
    let (source, destination) = (packet.src_addr(), packet.dst_addr());
    extensions(source, destination, packet.next_header().into(), packet.payload())
}

/// Skips extension headers (RFC 8200, section 4) up to the transport header.
fn extensions(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    first: u8,
    payload: &[u8],
) -> Option<Network<'_>> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION: u8 = 60;
    let (mut protocol, mut payload) = (first, payload);
    for _ in 0..MAX_EXTENSIONS {
        match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION => {
                let [next, len, ..] = *payload else { return None };
                payload = payload.get((usize::from(len) + 1) * 8..)?;
                protocol = next;
            }
            FRAGMENT => {
                let next = *payload.first()?;
                let header = Ipv6FragmentHeader::new_checked(payload.get(2..)?).ok()?;
                let rest = payload.get(8..)?;
                let offset = usize::from(header.frag_offset()) * 8;
                if offset == 0 && !header.more_frags() {
                    // An atomic fragment (RFC 6946) is a whole packet.
                    (protocol, payload) = (next, rest);
                    continue;
                }
                return Some(Network::Fragment(Fragment {
                    source: source.into(),
                    destination: destination.into(),
                    protocol: next,
                    ident: header.ident(),
                    offset,
                    more: header.more_frags(),
                    payload: rest,
                }));
            }
            _ => {
                let (source, destination) = (source.into(), destination.into());
                return Some(Network::Packet(Packet { source, destination, protocol, payload }));
            }
        }
    }
    None
}
