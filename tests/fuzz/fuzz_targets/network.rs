//! A hostile guest: any frames, and frames that are valid up to the network layer.
//!
//! `cargo fuzz run --fuzz-dir tests/fuzz network`

#![no_main]

use std::net::{Ipv4Addr, TcpListener};
use std::thread;
use std::time::Duration;

use boxlite_net::link::memory;
use boxlite_net::{OffloadFeatures, Network, NetworkOptions, Policy, Rule};
use libfuzzer_sys::fuzz_target;

/// The most frames in a run.
const MAX_FRAMES: usize = 256;

fuzz_target!(|input: &[u8]| {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    // The guest can reach only a port of this process.
    let rules = vec![
        Rule::allow(&format!("tcp:host:{port}")).expect("a rule"),
        Rule::deny("any").expect("a rule"),
    ];
    let options = NetworkOptions {
        policy: Policy::from_rules(rules),
        resolv_conf: "/nonexistent".into(),
        ..Default::default()
    };
    let network = Network::new(options).expect("a network");
    let handle = network.handle();
    let thread = thread::spawn(move || network.run());
    let features = OffloadFeatures { checksum: true, tso4: true, tso6: true };
    let (link, guest) = memory::pair(features).expect("a link");
    handle.attach(Box::new(link)).expect("the network runs");

    let mut sent = 0;
    for frame in frames(input, port).take(MAX_FRAMES) {
        sent += u64::from(guest.send(frame));
        while guest.receive().is_some() {}
    }
    while handle.counters().frames_from_guest < sent && !thread.is_finished() {
        while guest.receive().is_some() {}
        thread::sleep(Duration::from_micros(50));
    }
    handle.stop();
    thread.join().expect("no panic").expect("the loop");
});

/// Splits the input into frames. Each begins with a byte for its length and one that selects the valid
/// headers that it gets.
fn frames(mut input: &[u8], port: u16) -> impl Iterator<Item = Vec<u8>> {
    std::iter::from_fn(move || {
        let (&[len, kind], rest) = input.split_first_chunk::<2>()?;
        let (body, rest) = rest.split_at(usize::from(len).min(rest.len()));
        input = rest;
        Some(match kind % 4 {
            0 => body.to_vec(),
            1 => ethernet([0x86, 0xdd], &ipv6(body)),
            _ => ethernet([8, 0], &ipv4(body, port)),
        })
    })
}

fn ethernet(kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let addresses = [2, 0x62, 0x6f, 0x78, 0, 1, 2, 0x62, 0x6f, 0x78, 0, 2];
    [&addresses[..], &kind, payload].concat()
}

/// An IPv4 packet. The first byte of `body` is the protocol, the second is the last byte of the
/// destination address. A destination port of 0 is replaced by `port`.
fn ipv4(body: &[u8], port: u16) -> Vec<u8> {
    let (&[protocol, to], payload) = body.split_first_chunk().unwrap_or((&[6, 254], &[]));
    let mut payload = payload.to_vec();
    if let Some(field) = payload.get_mut(2..4)
        && *field == [0, 0]
    {
        field.copy_from_slice(&port.to_be_bytes());
    }
    let len = (20 + payload.len() as u16).to_be_bytes();
    let mut header = [
        0x45, 0, len[0], len[1], 0, 7, 0, 0, 64, protocol, 0, 0, 192, 168, 127, 2, 192, 168, 127,
        to,
    ];
    let words = header.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let sum: u32 = words.sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&header[..], &payload].concat()
}

fn ipv6(body: &[u8]) -> Vec<u8> {
    let (&[protocol, to], payload) = body.split_first_chunk().unwrap_or((&[58, 1], &[]));
    let len = (payload.len() as u16).to_be_bytes();
    let net = [0xfd, 0xb0, 0x78, 0x6c, 0x69, 0x74, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    [&[0x60, 0, 0, 0, len[0], len[1], protocol, 255], &net[..], &[2], &net, &[to], payload].concat()
}
