//! TCP connections of the guest: opening, data, closing and resets.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use boxlite_net::{NetworkOptions, OffloadFeatures, Policy, Rule};
use rustix::net::sockopt;

use crate::lab::{Lab, NO_ROUTE, OUTSIDE, OUTSIDE6, UNREACHABLE, in_lab};

const TIMEOUT: Duration = Duration::from_secs(60);

fn listen(ip: &str) -> (TcpListener, SocketAddr) {
    let ip: IpAddr = ip.parse().unwrap();
    let listener = TcpListener::bind((ip, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn connect(lab: &Lab, address: SocketAddr) -> io::Result<TcpStream> {
    lab.guest(|| {
        let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(stream)
    })
}

/// A connection from the guest: the guest's end and the server's.
fn connection(lab: &Lab, ip: &str) -> (TcpStream, TcpStream) {
    let (listener, address) = listen(ip);
    let guest = connect(lab, address).unwrap();
    let (host, _) = listener.accept().unwrap();
    host.set_read_timeout(Some(TIMEOUT)).unwrap();
    host.set_write_timeout(Some(TIMEOUT)).unwrap();
    (guest, host)
}

fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Sends `data` in one direction, and checks that all of it and the end of the stream arrive.
fn transfer(from: &mut TcpStream, to: &mut TcpStream, data: &[u8]) {
    thread::scope(|scope| {
        scope.spawn(|| {
            from.write_all(data).unwrap();
            from.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        to.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), data.len());
        assert!(received == data, "the bytes differ");
    });
}

fn end(mut stream: &TcpStream) -> io::Result<usize> {
    stream.read(&mut [0; 1])
}

#[test]
fn bytes_cross_unchanged_with_every_offload_and_mtu() {
    for (mtu, features) in [
        (65_520, OffloadFeatures { checksum: true, tso4: true, tso6: true }),
        (65_520, OffloadFeatures { checksum: true, tso4: false, tso6: false }),
        (1500, OffloadFeatures { checksum: true, tso4: true, tso6: true }),
        (1500, OffloadFeatures::default()),
        (1280, OffloadFeatures { checksum: true, tso4: false, tso6: false }),
    ] {
        in_lab(move |lab| {
            let network = lab.start_with(NetworkOptions { mtu, ..Default::default() }, features);
            let data = pattern(5_000_000, mtu.into());
            for ip in [OUTSIDE, OUTSIDE6] {
                let (mut guest, mut host) = connection(lab, ip);
                transfer(&mut guest, &mut host, &data);
                transfer(&mut host, &mut guest, &data);
            }
            network.wait_for("all flows end", |c| c.tcp_open == 0);
            assert_eq!((network.counters().tcp_flows, network.counters().malformed), (2, 0));
        });
    }
}

#[test]
fn the_guest_sees_why_a_connection_fails() {
    in_lab(|lab| {
        let policy = Policy::from_rules(vec![Rule::deny("any:81").unwrap()]);
        let _network = lab.start(NetworkOptions { policy, ..Default::default() });
        let failure = |address: &str| {
            let started = Instant::now();
            let error = connect(lab, address.parse().unwrap()).unwrap_err();
            assert!(started.elapsed() < TIMEOUT / 4, "{address}: silence");
            error.kind()
        };
        assert_eq!(failure(&format!("{OUTSIDE}:9")), ErrorKind::ConnectionRefused);
        assert_eq!(failure(&format!("[{OUTSIDE6}]:9")), ErrorKind::ConnectionRefused);
        assert_eq!(failure("192.168.127.1:9"), ErrorKind::ConnectionRefused);
        assert_eq!(failure(&format!("{NO_ROUTE}:80")), ErrorKind::NetworkUnreachable);
        assert_eq!(failure("[2001:db8:ffff::1]:80"), ErrorKind::NetworkUnreachable);
        assert_eq!(failure(&format!("{UNREACHABLE}:80")), ErrorKind::HostUnreachable);
        assert_eq!(failure(&format!("{OUTSIDE}:81")), ErrorKind::HostUnreachable);
    });
}

#[test]
fn half_open_connections_stay_open_in_the_other_direction() {
    in_lab(|lab| {
        let network = lab.start(NetworkOptions::default());
        for guest_first in [true, false] {
            let (guest, host) = connection(lab, OUTSIDE);
            let (mut a, mut b) = if guest_first { (guest, host) } else { (host, guest) };
            a.write_all(b"question").unwrap();
            a.shutdown(Shutdown::Write).unwrap();
            let mut question = Vec::new();
            b.read_to_end(&mut question).unwrap();
            assert_eq!(question, b"question");
            thread::sleep(Duration::from_millis(50));
            let data = pattern(1_000_000, 3);
            transfer(&mut b, &mut a, &data);
            drop((a, b));
            network.wait_for("the flow ends", |c| c.tcp_open == 0);
        }
    });
}

#[test]
fn both_ends_close_at_once_or_either_end_first() {
    in_lab(|lab| {
        let network = lab.start(NetworkOptions::default());
        for order in 0..3 {
            let (guest, host) = connection(lab, OUTSIDE);
            match order {
                0 => {
                    drop(guest);
                    assert_eq!(end(&host).unwrap(), 0);
                }
                1 => {
                    drop(host);
                    assert_eq!(end(&guest).unwrap(), 0);
                }
                _ => {
                    guest.shutdown(Shutdown::Write).unwrap();
                    host.shutdown(Shutdown::Write).unwrap();
                    assert_eq!((end(&guest).unwrap(), end(&host).unwrap()), (0, 0));
                }
            }
        }
        network.wait_for("all flows end", |c| c.tcp_open == 0);
    });
}

#[test]
fn resets_pass_in_both_directions() {
    in_lab(|lab| {
        let network = lab.start(NetworkOptions::default());
        for guest_resets in [true, false] {
            for half_closed in [false, true] {
                let (guest, host) = connection(lab, OUTSIDE);
                let (a, mut b) = if guest_resets { (guest, host) } else { (host, guest) };
                if half_closed {
                    a.shutdown(Shutdown::Write).unwrap();
                    assert_eq!(end(&b).unwrap(), 0);
                }
                sockopt::set_socket_linger(&a, Some(Duration::ZERO)).unwrap();
                drop(a);
                // Any write now fails with the reset.
                let deadline = Instant::now() + TIMEOUT;
                let error = loop {
                    assert!(Instant::now() < deadline, "no reset");
                    match b.write(b"x").and_then(|_| if half_closed { Ok(1) } else { end(&b) }) {
                        Ok(_) => thread::sleep(Duration::from_millis(5)),
                        Err(e) => break e.kind(),
                    }
                };
                let reset = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
                assert!(reset.contains(&error), "{error:?}");
            }
        }
        network.wait_for("all flows end", |c| c.tcp_open == 0);
    });
}

#[test]
fn a_stopped_reader_stops_the_writer_and_nothing_is_lost() {
    in_lab(|lab| {
        let network = lab.start(NetworkOptions::default());
        for guest_writes in [true, false] {
            let (guest, host) = connection(lab, OUTSIDE);
            let (mut from, mut to) = if guest_writes { (guest, host) } else { (host, guest) };
            let data = pattern(32 << 20, 11);
            thread::scope(|scope| {
                let writer = scope.spawn(|| {
                    // More than all buffers can hold: the writer continues only when the peer reads.
                    from.write_all(&data).unwrap();
                    from.shutdown(Shutdown::Write).unwrap();
                });
                thread::sleep(Duration::from_millis(700));
                assert!(!writer.is_finished(), "32 MiB are buffered somewhere");
                let mut received = Vec::new();
                to.read_to_end(&mut received).unwrap();
                assert!(received == data);
            });
        }
        network.wait_for("all flows end", |c| c.tcp_open == 0);
    });
}

#[test]
fn the_hosts_loopback_is_reached_by_name_if_the_policy_allows_it() {
    in_lab(|lab| {
        let (listener, address) = listen("127.0.0.1");
        let policy = Policy::from_rules(vec![Rule::allow("tcp:host").unwrap()]);
        let network = lab.start(NetworkOptions { policy, ..Default::default() });
        let alias = format!("192.168.127.254:{}", address.port()).parse().unwrap();
        let mut guest = connect(lab, alias).unwrap();
        let (mut host, _) = listener.accept().unwrap();
        transfer(&mut guest, &mut host, b"hello");
        drop((guest, host));
        network.wait_for("the flow ends", |c| c.tcp_open == 0);
    });
}
