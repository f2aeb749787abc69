//! The policy and the rate limits, seen from the guest.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use boxlite_net::{NetworkOptions, Policy, RateLimit, RateLimits, Rule};

use crate::lab::{FEATURES, Lab, OUTSIDE, OUTSIDE6, Running, batch, in_lab};

fn connects(lab: &Lab, address: &str) -> bool {
    let address = address.parse().unwrap();
    lab.guest(|| TcpStream::connect_timeout(&address, Duration::from_secs(60)).is_ok())
}

fn listen(ip: &str) -> u16 {
    let listener = TcpListener::bind((ip.parse::<IpAddr>().unwrap(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || listener.incoming().for_each(drop));
    port
}

#[test]
fn the_hosts_loopback_is_closed_unless_asked_for() {
    in_lab(|lab| {
        let (v4, v6) = (listen("127.0.0.1"), listen("::1"));
        {
            let network = lab.start(NetworkOptions::default());
            assert!(!connects(lab, &format!("192.168.127.254:{v4}")));
            assert!(!connects(lab, &format!("[fdb0:786c:6974::fe]:{v6}")));
            assert!(!connects(lab, &format!("127.0.0.1:{v4}")), "the guest's own loopback");
            assert!(!connects(lab, &format!("[::ffff:127.0.0.1]:{v4}")));
            assert!(!connects(lab, &format!("0.0.0.0:{v4}")));
            assert!(network.counters().denied >= 2);
        }
    });
    in_lab(|lab| {
        let (v4, v6) = (listen("127.0.0.1"), listen("::1"));
        let policy = Policy::from_rules(vec![Rule::allow(&format!("tcp:host:{v4}")).unwrap()]);
        let _network = lab.start(NetworkOptions { policy, ..Default::default() });
        assert!(connects(lab, &format!("192.168.127.254:{v4}")));
        assert!(!connects(lab, &format!("[fdb0:786c:6974::fe]:{v6}")));
    });
}

/// Guests do not reach ports that are published on an address of the host.
#[test]
fn the_hosts_own_addresses_are_closed_unless_named_also_new_ones() {
    in_lab(|lab| {
        let (port, port6) = (listen("0.0.0.0"), listen("::"));
        let allowed = Policy::from_rules(vec![Rule::allow(OUTSIDE).unwrap()]);
        let host = Policy::from_rules(vec![Rule::allow("host").unwrap()]);
        for (policy, opens) in [(Policy::default(), false), (allowed, true), (host, true)] {
            let options = NetworkOptions { policy, ..Default::default() };
            let mtu = options.mtu;
            let network = Running::start_closed(options, Box::new(lab.tap(FEATURES)));
            lab.configure_guest(mtu);
            assert_eq!(connects(lab, &format!("{OUTSIDE}:{port}")), opens);
            drop(network);
        }
        let network = Running::start_closed(NetworkOptions::default(), Box::new(lab.tap(FEATURES)));
        lab.configure_guest(NetworkOptions::default().mtu);
        assert!(!connects(lab, &format!("[{OUTSIDE6}]:{port6}")));
        // The second address of a network: packets to it have the first as their source.
        batch("addr add 10.9.0.1/24 dev lo\naddr add 10.9.0.2/24 dev lo\n");
        assert!(!connects(lab, &format!("10.9.0.2:{port}")));
        assert_eq!(network.counters().denied, 2, "and for no other reason");
    });
}

#[test]
fn rules_hold_for_tcp_and_udp() {
    in_lab(|lab| {
        let (port, port6) = (listen(OUTSIDE), listen(OUTSIDE6));
        let rules = [format!("allow tcp:{OUTSIDE}:{port}"), "deny any".to_owned()];
        let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let policy = Policy::from_rules(rules);
        let network = lab.start(NetworkOptions { policy, ..Default::default() });
        assert!(connects(lab, &format!("{OUTSIDE}:{port}")));
        assert!(!connects(lab, &format!("[{OUTSIDE6}]:{port6}")));
        let server = UdpSocket::bind((OUTSIDE, port)).unwrap();
        server.set_nonblocking(true).unwrap();
        lab.guest(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(b"x", (OUTSIDE, port)).unwrap();
        });
        network.wait_for("the datagram is denied, too", |c| c.denied >= 2);
        assert!(server.recv(&mut [0; 8]).is_err(), "a datagram passed");
        assert_eq!(network.counters().denied, 2);
    });
}

#[test]
fn limits_hold_in_their_direction() {
    const LEN: usize = 3_000_000;
    // So low that a busy machine is faster without the limit, and less than twice as slow with it.
    const RATE: u64 = 1_000_000;
    in_lab(|lab| {
        let limit = Some(RateLimit::new(RATE));
        for to_guest in [true, false] {
            let limits = RateLimits {
                to_guest: limit.filter(|_| to_guest),
                from_guest: limit.filter(|_| !to_guest),
            };
            let _network = lab.start(NetworkOptions { limits, mtu: 9000, ..Default::default() });
            let listener = TcpListener::bind((OUTSIDE, 0)).unwrap();
            let address = listener.local_addr().unwrap();
            let guest = lab.guest(|| TcpStream::connect(address).unwrap());
            let (host, _) = listener.accept().unwrap();
            for guest_sends in [true, false] {
                let (mut from, mut to) =
                    if guest_sends { (&guest, &host) } else { (&host, &guest) };
                let started = Instant::now();
                thread::scope(|scope| {
                    scope.spawn(move || from.write_all(&vec![1; LEN]).unwrap());
                    to.read_exact(&mut vec![0; LEN]).unwrap();
                });
                let time = started.elapsed().as_secs_f64();
                // The burst is an eighth of a second's bytes, and a frame of 64 KiB may overdraw the budget.
                let least = (LEN as f64 - 65_536.0) / RATE as f64 - 0.125;
                if guest_sends != to_guest {
                    assert!((least..2.0 * least).contains(&time), "{time} s, limited");
                } else {
                    assert!(time < least, "{time} s, though not limited");
                }
            }
        }
    });
}
