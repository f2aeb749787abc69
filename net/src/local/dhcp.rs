//! DHCP (RFC 2131): offers the one address of the guest.

use std::net::{Ipv4Addr, SocketAddr};

use smoltcp::wire::{
    DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr,
    EthernetAddress,
};

use crate::context::Context;

/// Lease time in seconds. The address never changes; this only sets how often the guest renews it.
const LEASE: u32 = 86_400;
const OPTION_MTU: u8 = 26;
const OPTION_SEARCH: u8 = 119;
/// The most bytes of an option, whose length is one byte.
const MAX_OPTION: usize = 255;

/// Answers a message of a client.
pub(crate) fn answer(message: &[u8], search: &[String], cx: &mut Context) {
    let Ok(packet) = DhcpPacket::new_checked(message) else { return };
    let Ok(request) = DhcpRepr::parse(&packet) else { return };
    let a = &cx.addresses;
    let (gateway, guest) = (a.gateway, a.guest);
    let for_another = request.server_identifier.is_some_and(|server| server != gateway);
    let kind = match request.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request if for_another => return,
        DhcpMessageType::Request => {
            let wanted = request.requested_ip.unwrap_or(request.client_ip);
            if wanted == guest { DhcpMessageType::Ack } else { DhcpMessageType::Nak }
        }
        DhcpMessageType::Inform => DhcpMessageType::Ack,
        _ => return,
    };
    let inform = request.message_type == DhcpMessageType::Inform;
    let leases = kind != DhcpMessageType::Nak && !inform;
    let tells = kind != DhcpMessageType::Nak;
    let mtu = cx.out.mtu().to_be_bytes();
    let domains = crate::dns::wire_names(search, MAX_OPTION);
    let mut options = vec![DhcpOption { kind: OPTION_MTU, data: &mtu }];
    if !domains.is_empty() {
        options.push(DhcpOption { kind: OPTION_SEARCH, data: &domains });
    }
    let reply = DhcpRepr {
        message_type: kind,
        transaction_id: request.transaction_id,
        secs: 0,
        client_hardware_address: request.client_hardware_address,
        client_ip: if tells { request.client_ip } else { Ipv4Addr::UNSPECIFIED },
        your_ip: if leases { guest } else { Ipv4Addr::UNSPECIFIED },
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: tells.then_some(gateway),
        subnet_mask: tells.then(|| a.subnet.netmask()),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: request.broadcast,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(gateway),
        parameter_request_list: None,
        dns_servers: tells.then(|| std::iter::once(gateway).collect()),
        max_size: None,
        lease_duration: leases.then_some(LEASE),
        renew_duration: None,
        rebind_duration: None,
        additional_options: if tells { &options } else { &[] },
    };
    let mut buffer = vec![0; reply.buffer_len()];
    if reply.emit(&mut DhcpPacket::new_unchecked(&mut buffer[..])).is_err() {
        return;
    }
    // A client without an address receives broadcasts only.
    let has_address = request.client_ip == guest && tells;
    let to = if has_address { guest } else { Ipv4Addr::BROADCAST };
    let client = SocketAddr::new(to.into(), DHCP_CLIENT_PORT);
    let server = SocketAddr::new(gateway.into(), DHCP_SERVER_PORT);
    if request.client_hardware_address != EthernetAddress([0; 6]) {
        cx.out.guest_mac = request.client_hardware_address;
    }
    cx.out.udp(server, client, &buffer);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::tests::guest::Rig;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 64, ..Default::default() })]

        /// Whatever its options, each message is answered at most once, with the one address of the guest.
        #[test]
        fn any_options_are_read(
            kind in 0..10_u8,
            options in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..20)), 0..12),
            cut in 0..400_usize,
        ) {
            let mut message = vec![1, 1, 6, 0, 9, 9, 9, 9];
            message.resize(28, 0);
            message.extend([2, 0x62, 0x6f, 0x78, 0, 2]);
            message.resize(236, 0);
            message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, kind]);
            for (option, data) in options {
                message.extend([option, data.len() as u8]);
                message.extend(data);
            }
            message.push(255);
            message.truncate(message.len().max(cut) - cut / 8);
            let mut rig = Rig::new();
            rig.send_datagram(68, (Ipv4Addr::BROADCAST, 67), &message);
            rig.settle();
            let frames: Vec<_> = std::iter::from_fn(|| rig.guest.receive()).collect();
            prop_assert!(frames.len() <= 1);
            for (frame, _) in frames {
                let given = &frame[42 + 16..42 + 20];
                prop_assert!(given == [192, 168, 127, 2] || given == [0; 4]);
            }
        }
    }
}
