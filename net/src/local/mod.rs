//! Protocols of the link that the gateway answers: ARP, NDP and router advertisements, DHCP.

mod dhcp;
mod ndp;

pub(crate) use dhcp::answer as answer_dhcp;
pub(crate) use ndp::{advertise, answer as answer_ndp};

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetProtocol};

use crate::context::Context;

/// Answers for the gateway and for the address that stands for the host (RFC 826).
pub(crate) fn answer_arp(arp: &ArpRepr, cx: &mut Context) {
    let &ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    } = arp
    else {
        return;
    };
    if target_protocol_addr != cx.addresses.gateway && target_protocol_addr != cx.addresses.host {
        return;
    }
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: cx.addresses.gateway_mac(),
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    let mut buffer = [0; 28];
    reply.emit(&mut ArpPacket::new_unchecked(&mut buffer[..]));
    cx.out.ethernet(EthernetProtocol::Arp, &buffer);
}
