//! IPv6 neighbours and router advertisements (RFC 4861).

use std::net::{IpAddr, Ipv6Addr};

use crate::addresses::Addresses;
use crate::context::Context;
use crate::wire::Packet;

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
/// All nodes on the link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Lifetime of router and resolver in seconds, longer than the interval of advertisements.
const ROUTER_LIFETIME: u16 = 9000;
/// Lifetime of the prefix in seconds.
const PREFIX_LIFETIME: u32 = 86_400;
/// The most bytes of search domains; more are left out. The option has at most 255 times eight bytes.
const MAX_DOMAINS: usize = 1024;

/// Answers a solicitation of the guest; other messages are ignored.
pub(crate) fn answer(packet: &Packet<'_>, search: &[String], cx: &mut Context) {
    let IpAddr::V6(source) = packet.source else { return };
    match packet.payload {
        [ROUTER_SOLICITATION, 0, ..] => {
            let destination = if source.is_unspecified() { ALL_NODES } else { source };
            send(destination, search, cx);
        }
        [NEIGHBOR_SOLICITATION, 0, _, _, _, _, _, _, rest @ ..] => {
            let Some(target) = rest.first_chunk::<16>() else { return };
            let target = Ipv6Addr::from(*target);
            let a = &cx.addresses;
            let ours = [a.gateway6, a.host6, Addresses::GATEWAY_LINK_LOCAL];
            if ours.contains(&target) {
                advertise_neighbor(target, source, cx);
            }
        }
        _ => {}
    }
}

/// Advertises the router to all nodes.
pub(crate) fn advertise(search: &[String], cx: &mut Context) {
    send(ALL_NODES, search, cx);
}

fn advertise_neighbor(target: Ipv6Addr, source: Ipv6Addr, cx: &mut Context) {
    // A node without an address checks for duplicates (RFC 4862, section 5.4).
    let solicited = !source.is_unspecified();
    let destination = if solicited { source } else { ALL_NODES };
    // Router, solicited, override.
    let flags = 0x80 | if solicited { 0x40 } else { 0 } | 0x20;
    let mut message = vec![NEIGHBOR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
    message.extend(target.octets());
    message.extend([2, 1]);
    message.extend(cx.addresses.gateway_mac);
    cx.out.icmp(target.into(), destination.into(), &mut message);
}

fn send(destination: Ipv6Addr, search: &[String], cx: &mut Context) {
    let a = &cx.addresses;
    let mut message = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, 64, 0];
    message.extend(ROUTER_LIFETIME.to_be_bytes());
    message.extend([0; 8]);
    // Source link-layer address.
    message.extend([1, 1]);
    message.extend(a.gateway_mac);
    // MTU.
    message.extend([5, 1, 0, 0]);
    message.extend(u32::from(cx.out.mtu()).to_be_bytes());
    // Prefix: on-link, autonomous.
    message.extend([3, 4, a.subnet6.prefix_len(), 0xc0]);
    message.extend(PREFIX_LIFETIME.to_be_bytes());
    message.extend(PREFIX_LIFETIME.to_be_bytes());
    message.extend([0; 4]);
    message.extend(a.subnet6.network().octets());
    // Resolver and search domains (RFC 8106).
    message.extend([25, 3, 0, 0]);
    message.extend(u32::from(ROUTER_LIFETIME).to_be_bytes());
    message.extend(a.gateway6.octets());
    let mut domains = crate::dns::wire_names(search, MAX_DOMAINS);
    if !domains.is_empty() {
        domains.resize(domains.len().next_multiple_of(8), 0);
        message.extend([31, u8::try_from(1 + domains.len() / 8).unwrap_or(u8::MAX), 0, 0]);
        message.extend(u32::from(ROUTER_LIFETIME).to_be_bytes());
        message.extend(domains);
    }
    let source = Addresses::GATEWAY_LINK_LOCAL;
    cx.out.icmp(source.into(), destination.into(), &mut message);
}
