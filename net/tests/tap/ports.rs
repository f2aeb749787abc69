//! Published ports.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use boxlite_net::{Network, NetworkError, NetworkOptions, PublishedPort};
use rustix::net::{AddressFamily, SocketType};

use crate::lab::{OUTSIDE, OUTSIDE6, in_lab};

const TIMEOUT: Duration = Duration::from_secs(60);

/// Connects from this port, even if an earlier connection used it.
fn connect_from(from: u16, to: SocketAddr) -> TcpStream {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], from))).unwrap();
    rustix::net::connect(&socket, &to).unwrap();
    TcpStream::from(socket)
}

fn port(text: &str) -> PublishedPort {
    text.parse().unwrap()
}

#[test]
fn connections_reach_the_guest_with_their_source_address() {
    in_lab(|lab| {
        let outside = format!("{OUTSIDE}:0:8000");
        let ports = vec![port("0:8000"), port("[::1]:0:8000"), port(&outside)];
        let network = lab.start(NetworkOptions { ports, ..Default::default() });
        let [local, local6, outside] = network.handle.published()[..] else { panic!() };
        assert_ne!(local.host.port(), 0);
        let listener = lab.guest(|| TcpListener::bind("0.0.0.0:8000").unwrap());
        let host = "192.168.127.254";
        for (bound, seen) in [(local, host), (local6, host), (outside, OUTSIDE)] {
            let mut client = TcpStream::connect(bound.host).unwrap();
            let (mut server, peer) = listener.accept().unwrap();
            assert_eq!(peer.ip().to_string(), seen);
            assert_eq!(peer.port(), client.local_addr().unwrap().port());
            client.write_all(b"ping").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let mut request = String::new();
            server.read_to_string(&mut request).unwrap();
            assert_eq!(request, "ping");
            server.write_all(b"pong").unwrap();
            drop(server);
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "pong");
        }
        network.wait_for("all flows end", |c| c.tcp_open == 0);
    });
}

#[test]
fn peers_with_ipv6_addresses_keep_them_where_the_guest_serves_them() {
    in_lab(|lab| {
        let ports = vec![port("[::]:0:8000"), port("[::]:0:8001")];
        let network = lab.start(NetworkOptions { ports, ..Default::default() });
        let both = lab.guest(|| TcpListener::bind("[::]:8000").unwrap());
        let four = lab.guest(|| TcpListener::bind("0.0.0.0:8001").unwrap());
        // The guest's IPv6 is ready, and known to be.
        lab.guest(|| TcpStream::connect("[fdb0:786c:6974::1]:53").unwrap());
        let published = network.handle.published();
        let seen = [(both, OUTSIDE6), (four, "192.168.127.254")];
        for (bound, (listener, seen)) in published.iter().zip(seen) {
            // A host that connects to one of its own addresses uses that address as the source.
            let mut client = TcpStream::connect((OUTSIDE6, bound.host.port())).unwrap();
            let (mut server, peer) = listener.accept().unwrap();
            assert_eq!(peer.ip().to_canonical().to_string(), seen);
            assert_eq!(peer.port(), client.local_addr().unwrap().port());
            client.write_all(b"ping").unwrap();
            let mut request = [0; 4];
            server.read_exact(&mut request).unwrap();
            assert_eq!(&request, b"ping");
        }
    });
}

/// The guest closes first and is in TIME-WAIT; the client connects again from the same port at once.
#[test]
fn a_client_that_reuses_its_port_does_not_wait() {
    in_lab(|lab| {
        let ports = vec![port("0:8000")];
        let network = lab.start(NetworkOptions { ports, ..Default::default() });
        let host = network.handle.published()[0].host;
        let listener = lab.guest(|| TcpListener::bind("0.0.0.0:8000").unwrap());
        let mut from = None;
        for _ in 0..5 {
            let client = connect_from(from.unwrap_or(0), host);
            from = Some(client.local_addr().unwrap().port());
            let (mut server, peer) = listener.accept().unwrap();
            assert_eq!(Some(peer.port()), from, "the same port, so that the guest remembers it");
            // More than the next connection's initial sequence number is ahead of this one's.
            let data = vec![7; 1 << 20];
            thread::scope(|scope| {
                scope.spawn(|| (&client).write_all(&data).unwrap());
                server.read_exact(&mut vec![0; data.len()]).unwrap();
            });
            drop(server);
            assert_eq!((&client).read(&mut [0]).unwrap(), 0);
            drop(client);
            network.wait_for("the flow ends", |c| c.tcp_open == 0);
        }
    });
}

#[test]
fn an_unserved_port_is_reset_and_a_port_in_use_is_an_error() {
    in_lab(|lab| {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken_port = taken.local_addr().unwrap().port();
        let ports = vec![port(&format!("{taken_port}:80"))];
        let error = Network::new(NetworkOptions { ports, ..Default::default() }).err().unwrap();
        assert!(matches!(error, NetworkError::Publish(_)));
        assert!(error.to_string().contains(&taken_port.to_string()), "{error}");

        let network = lab.start(NetworkOptions::default());
        let bound = network.handle.publish(port("0:81")).unwrap();
        let mut client = TcpStream::connect(bound.host).unwrap();
        client.set_read_timeout(Some(TIMEOUT)).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(network.handle.publish(bound).is_err(), "it is in use by us");
        assert!(network.handle.unpublish(bound).unwrap());
        assert!(!network.handle.unpublish(bound).unwrap());
        let error = TcpStream::connect(bound.host).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(network.handle.published(), []);
    });
}

#[test]
fn early_connections_wait_for_the_guest() {
    in_lab(|lab| {
        let network = lab.start(NetworkOptions::default());
        let bound = network.handle.publish(port("0:8000")).unwrap();
        let link = network.handle.detach().unwrap().unwrap();
        let mut client = TcpStream::connect(bound.host).unwrap();
        client.write_all(b"early").unwrap();
        let listener = lab.guest(|| TcpListener::bind("0.0.0.0:8000").unwrap());
        // Each answer comes from a later turn of the network's thread.
        for _ in 0..2 {
            assert!(network.handle.detach().unwrap().is_none());
        }
        network.handle.attach(link).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut request = [0; 5];
        server.read_exact(&mut request).unwrap();
        assert_eq!(&request, b"early");
    });
}

#[test]
fn datagrams_reach_the_guest_and_answers_come_back() {
    in_lab(|lab| {
        let network = lab.start(NetworkOptions::default());
        let bound = network.handle.publish(port("0:5000/udp")).unwrap();
        let server = lab.guest(|| UdpSocket::bind("0.0.0.0:5000").unwrap());
        server.set_read_timeout(Some(TIMEOUT)).unwrap();
        let clients: Vec<_> = (0..20).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        for client in &clients {
            client.send_to(b"question", bound.host).unwrap();
            let mut buffer = [0; 100];
            let (n, peer) = server.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..n], b"question");
            assert_eq!(peer.ip().to_string(), "192.168.127.254");
            server.send_to(peer.port().to_string().as_bytes(), peer).unwrap();
        }
        for client in &clients {
            client.set_read_timeout(Some(TIMEOUT)).unwrap();
            let mut buffer = [0; 100];
            let (n, from) = client.recv_from(&mut buffer).unwrap();
            assert_eq!(from, bound.host);
            let own = client.local_addr().unwrap().port().to_string();
            assert_eq!(String::from_utf8_lossy(&buffer[..n]), own);
        }
    });
}
