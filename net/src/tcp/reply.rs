//! Segments and ICMP errors that belong to no flow.

use crate::context::Context;
use crate::key::FlowKey;
use crate::wire::egress::{TcpHeader, TcpOptions};
use crate::wire::{Segment, Seq, Unreachable, protocol};

/// Resets the connection of a segment that belongs to no flow (RFC 9293, section 3.10.7.1).
pub(super) fn refuse(key: FlowKey, segment: &Segment<'_>, cx: &mut Context) {
    match segment.ack {
        Some(ack) => reply(key, ack, None, true, cx),
        None => reply(key, Seq(0), Some(segment.seq + segment.len() as usize), true, cx),
    }
}

/// Sends a segment without data.
pub(super) fn reply(key: FlowKey, seq: Seq, ack: Option<Seq>, rst: bool, cx: &mut Context) {
    let header = TcpHeader {
        source: key.remote,
        destination: key.guest,
        seq,
        ack,
        syn: false,
        fin: false,
        rst,
        push: false,
        window: 0,
        options: TcpOptions::None,
        mss: usize::MAX,
    };
    if !cx.out.tcp(&header, &[]) {
        cx.meter.dropped.add(1);
    }
}

/// Reports by ICMP that the guest's SYN with the number `seq` cannot be delivered.
pub(super) fn unreachable(key: FlowKey, seq: Seq, why: Unreachable, cx: &mut Context) {
    let gateway = cx.addresses.gateway_of(key.guest);
    let mut transport = [0; 20];
    transport[..2].copy_from_slice(&key.guest.port().to_be_bytes());
    transport[2..4].copy_from_slice(&key.remote.port().to_be_bytes());
    transport[4..8].copy_from_slice(&seq.0.to_be_bytes());
    transport[12] = 5 << 4;
    transport[13] = 2;
    let addresses = (key.guest.ip(), key.remote.ip());
    cx.out.unreachable(why, gateway, addresses, protocol::TCP, &transport);
}
