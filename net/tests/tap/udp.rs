//! Datagrams: small, large and refused.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use boxlite_net::{NetworkOptions, OffloadFeatures};

use crate::lab::{FEATURES, Lab, OUTSIDE, OUTSIDE6, batch, in_lab};

const TIMEOUT: Duration = Duration::from_secs(60);

/// An echo server outside.
fn echo(ip: &str) -> SocketAddr {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while let Ok((n, peer)) = socket.recv_from(&mut buffer) {
            if n == 0 {
                return;
            }
            socket.send_to(&buffer[..n], peer).unwrap();
        }
    });
    address
}

fn client(lab: &Lab, server: SocketAddr) -> UdpSocket {
    lab.guest(|| {
        let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket.connect(server).unwrap();
        socket
    })
}

#[test]
fn datagrams_of_every_size_come_back() {
    for (mtu, features) in
        [(65_520, FEATURES), (1500, FEATURES), (1280, OffloadFeatures::default())]
    {
        in_lab(move |lab| {
            let network = lab.start_with(NetworkOptions { mtu, ..Default::default() }, features);
            for ip in [OUTSIDE, OUTSIDE6] {
                let socket = client(lab, echo(ip));
                let mut buffer = vec![0; 65_536];
                for len in [1, 2, 1000, 1199, 1473, 1472, 9000, 65_000, 65_507] {
                    let data: Vec<u8> = (0..len).map(|n| (n * 31 % 251) as u8).collect();
                    socket.send(&data).unwrap();
                    let n = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("{ip} {len}: {e}"));
                    assert!(buffer[..n] == data, "{len} bytes");
                }
                socket.send(&[]).unwrap();
            }
            assert_eq!((network.counters().udp_flows, network.counters().malformed), (2, 0));
        });
    }
}

#[test]
fn the_guest_sees_refused_and_denied_datagrams() {
    in_lab(|lab| {
        let _network = lab.start(NetworkOptions::default());
        for (address, kind) in [
            (format!("{OUTSIDE}:9"), ErrorKind::ConnectionRefused),
            (format!("[{OUTSIDE6}]:9"), ErrorKind::ConnectionRefused),
            ("192.168.127.1:9".to_owned(), ErrorKind::ConnectionRefused),
            // Linux reports only hard errors to datagram sockets.
            ("169.254.169.254:9".to_owned(), ErrorKind::HostUnreachable),
            ("[fd00:ec2::254]:9".to_owned(), ErrorKind::PermissionDenied),
        ] {
            let socket = client(lab, address.parse().unwrap());
            let deadline = Instant::now() + TIMEOUT;
            // The kernel reports the answer to a datagram when the next one is sent.
            let error = loop {
                match socket.send(b"x") {
                    Ok(_) => assert!(Instant::now() < deadline, "{address}: no error"),
                    Err(error) => break error,
                }
                thread::sleep(Duration::from_millis(20));
            };
            assert_eq!(error.kind(), kind, "{address}");
        }
    });
}

#[test]
fn one_socket_exchanges_datagrams_with_many_peers() {
    in_lab(|lab| {
        let network = lab.start(NetworkOptions::default());
        let servers: Vec<_> = (0..50).map(|_| echo(OUTSIDE)).collect();
        let socket = lab.guest(|| UdpSocket::bind("0.0.0.0:4433").unwrap());
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        for server in &servers {
            socket.send_to(server.to_string().as_bytes(), server).unwrap();
        }
        for _ in &servers {
            let mut buffer = [0; 100];
            let (n, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(String::from_utf8_lossy(&buffer[..n]), from.to_string());
        }
        assert_eq!(network.counters().udp_open, 50);
    });
}

#[test]
fn flows_survive_the_loss_of_a_host_address() {
    in_lab(|lab| {
        let network = lab.start(NetworkOptions::default());
        let server = UdpSocket::bind((OUTSIDE, 0)).unwrap();
        server.set_read_timeout(Some(TIMEOUT)).unwrap();
        let address = server.local_addr().unwrap();
        let way = format!("route replace table local local {OUTSIDE} dev lo src");
        batch(&format!("addr add 203.0.113.7/32 dev lo\n{way} 203.0.113.7\n"));
        let socket = client(lab, address);
        let ask = || {
            socket.send(b"x").unwrap();
            let (_, peer) = server.recv_from(&mut [0; 8]).unwrap();
            server.send_to(b"y", peer).unwrap();
            socket.recv(&mut [0; 8]).unwrap();
            peer.ip().to_string()
        };
        assert_eq!(ask(), "203.0.113.7");
        // The host moves to another network.
        batch(&format!("{way} {OUTSIDE}\naddr del 203.0.113.7/32 dev lo\n"));
        assert_eq!(ask(), OUTSIDE);
        assert_eq!(network.counters().udp_flows, 1);
    });
}
