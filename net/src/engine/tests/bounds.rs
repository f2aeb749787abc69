//! The host's resources that a guest can use.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use smoltcp::wire::{TcpControl, TcpRepr};

use super::guest::{ISS, Rig};
use crate::options::NetworkOptions;
use crate::quota::Kind;

/// The guest opens a stream to the resolver at the gateway from `port`.
fn ask_over_tcp(rig: &mut Rig, port: u16) {
    let gateway = rig.engine.cx.addresses.gateway;
    let syn = TcpRepr { src_port: port, dst_port: 53, ..rig.syn() };
    rig.send_raw_to(gateway, syn);
}

#[test]
fn dns_over_tcp_holds_few_descriptors_and_stays_available() {
    let mut rig = Rig::new();
    for round in 0..20_u16 {
        for n in 0..100 {
            ask_over_tcp(&mut rig, 10_000 + round * 100 + n);
        }
        rig.pass(Duration::from_millis(100));
        let quotas = &rig.engine.cx.quotas;
        assert!(quotas.held(Kind::DnsStream) <= quotas.most(Kind::DnsStream));
        assert!(rig.counters().tcp_open <= 64, "{} flows", rig.counters().tcp_open);
        while rig.guest.receive().is_some() {}
    }
    assert!(rig.counters().tcp_flows <= 256 + 200 * 2, "{} flows so far", rig.counters().tcp_flows);
    // Idle streams do not block new ones.
    rig.pass(Duration::from_secs(1));
    rig.received();
    ask_over_tcp(&mut rig, 50_000);
    rig.settle();
    let answers = rig.received();
    let answer = answers.iter().find(|answer| answer.control == TcpControl::Syn);
    assert_eq!(answer.unwrap().ack, Some(ISS.wrapping_add(1)));
}

#[test]
fn datagrams_to_everywhere_hold_few_descriptors() {
    let options = NetworkOptions { max_descriptors: 256, ..Default::default() };
    let mut rig = Rig::with(&["udp:host"], options);
    let host = rig.engine.cx.addresses.host;
    for n in 0..6000_u16 {
        rig.send_datagram(PORT_OF_FLOOD, (host, 1000 + n), b"x");
        if n % 64 == 0 {
            rig.settle();
            while rig.guest.receive().is_some() {}
        }
    }
    rig.settle();
    let counters = rig.counters();
    assert!(counters.udp_open <= 64, "{} flows", counters.udp_open);
    assert_eq!(counters.udp_flows, 4096, "the burst");
    rig.pass(Duration::from_millis(100));
    for n in 0..1000 {
        rig.send_datagram(PORT_OF_FLOOD, (host, 10_000 + n), b"x");
    }
    rig.settle();
    assert_eq!(rig.counters().udp_flows, 4196, "and a tenth of a second later");
}

#[test]
fn bytes_out_of_order_are_charged_to_the_pool() {
    let mut rig = Rig::new();
    let (first, _server) = rig.connect();
    for n in 0..256 {
        rig.send_raw(TcpRepr { payload: b"x", ..rig.segment(2 + 2 * n, first) });
    }
    rig.settle();
    let used = rig.engine.cx.budget.used();
    assert!(used >= 256 * 96, "{used} bytes for 256 pieces of one byte");
    rig.send(TcpRepr { control: TcpControl::Rst, ..rig.segment(0, first) });
    assert_eq!((rig.engine.cx.budget.used(), rig.counters().tcp_open), (0, 0));
}

#[test]
fn two_peers_that_look_the_same_get_their_own_answers() {
    let mut rig = Rig::new();
    let port = rig.publish("0:80/udp");
    let one = UdpSocket::bind("127.0.0.1:0").unwrap();
    let two = UdpSocket::bind(("127.0.0.2", one.local_addr().unwrap().port())).unwrap();
    let mut seen = Vec::new();
    for client in [&one, &two, &one, &two] {
        client.send_to(b"question", port).unwrap();
        seen.push(rig.datagram());
    }
    assert_eq!((seen[0], seen[1]), (seen[2], seen[3]));
    assert_ne!(seen[0], seen[1]);
    let host = rig.engine.cx.addresses.host;
    for (client, seen) in [(&one, seen[0]), (&two, seen[1])] {
        rig.send_datagram(80, (host, seen), &seen.to_be_bytes());
        rig.settle();
        client.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let mut answer = [0; 2];
        client.recv(&mut answer).unwrap();
        assert_eq!(answer, seen.to_be_bytes());
    }
}

#[test]
fn nothing_but_the_host_is_reached_before_the_hosts_own_addresses_are_known() {
    let options = NetworkOptions { own_addresses_awaited: true, ..NetworkOptions::default() };
    let mut rig = Rig::with(&["any"], options);
    let own = Ipv4Addr::new(192, 0, 2, 7);
    rig.send_datagram(9, (own, 9), b"early");
    rig.send_raw_to(own, rig.syn());
    rig.settle();
    assert_eq!((rig.counters().dropped, rig.counters().denied), (2, 0));
    assert_eq!((rig.counters().udp_flows, rig.counters().tcp_flows), (0, 0));
    assert!(rig.received().is_empty());
    drop(rig.connect());
    rig.engine.cx.addresses.own = vec![own.into()];
    rig.engine.cx.own.set_known();
    rig.send_datagram(9, (own, 9), b"late");
    rig.settle();
    assert_eq!((rig.counters().dropped, rig.counters().denied), (2, 1));
}

#[test]
fn a_peer_of_the_hosts_link_comes_by_ipv4() {
    let rig = Rig::new();
    let came = |peer: &str| {
        let (remote, guest) = crate::ports::ends(peer.parse().unwrap(), 80, &rig.engine.cx);
        (remote.is_ipv4(), guest.is_ipv4())
    };
    // The guest would look for the peer on its own link, where the address does not exist.
    assert_eq!(came("[fe80::5]:4000"), (true, true));
    assert_eq!(came("[2001:db8::5]:4000"), (false, false));
}

const PORT_OF_FLOOD: u16 = 7000;
