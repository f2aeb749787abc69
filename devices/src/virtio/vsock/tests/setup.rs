//! The device's configuration, and how connections are opened.

use std::os::unix::net::UnixListener;

use super::guest::Setup;
use super::*;
use crate::virtio::VirtioDevice;
use crate::virtio::vsock::packet::Header;
use crate::virtio::vsock::{GUEST_CID, SocketPorts, Timeouts, Vsock};

fn short(line: u64, connect: u64, close: u64) -> Timeouts {
    let [line, connect, close] = [line, connect, close].map(Duration::from_millis);
    Timeouts { line, connect, close }
}

#[test]
fn the_device_describes_itself() {
    let guest = Guest::new(no_ports);
    assert_eq!(guest.device.device_type(), 19);
    // Streams, indirect descriptors, event index; no SEQPACKET.
    assert_eq!(guest.device.features(), 1 | 1 << 28 | 1 << 29);
    assert_eq!(guest.device.queue_sizes().len(), 3);
    let read = |offset, len| {
        let mut data = vec![0xaa; len];
        guest.device.read_config(offset, &mut data);
        data
    };
    assert_eq!(read(0, 8), [3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(read(4, 4), [0; 4]);
    assert_eq!(read(7, 9), [0; 9]);
    assert_eq!(read(u64::MAX, 1), [0]);
}

#[test]
fn a_reserved_cid_is_refused() {
    let event_loop = crate::EventLoop::new().unwrap();
    for cid in [0, 1, 2, u32::MAX] {
        let device = Vsock::new(cid, event_loop.handle(), no_ports);
        assert_eq!(device.err().map(|e| e.kind()), Some(ErrorKind::InvalidInput), "{cid}");
    }
}

#[test]
fn a_client_connects_and_exchanges_data() {
    let mut guest = Guest::new(no_ports);
    let (ours, mut client) = pair();
    guest.handle().attach(ours).unwrap();
    // The client need not wait for the answer.
    client.write_all(b"CONNECT 1024\nhello ").unwrap();
    let mut socket = Socket::of(&guest.expect(op::REQUEST));
    client.write_all(b"guest").unwrap();
    guest.expect_silence();
    socket.send(&mut guest, op::RESPONSE);
    assert_eq!(socket.read_exact(&mut guest, 11), b"hello guest");
    assert_eq!(read_line(&mut client), format!("OK {}\n", socket.host_port));
    socket.write(&mut guest, b"hello host");
    assert_eq!(read_exact(&mut client, 10), b"hello host");
    guest.event_loop.assert_idle();
}

#[test]
fn clients_of_the_listening_socket_connect_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock.sock");
    let listener = Some(UnixListener::bind(&path).unwrap());
    let mut guest = Guest::with(Setup { listener, ..Setup::default() }, no_ports);
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"CONNECT 77\n").unwrap();
        let socket = Socket::of(&guest.expect(op::REQUEST));
        assert_eq!(socket.guest_port, 77);
        socket.send(&mut guest, op::RESPONSE);
        assert_eq!(read_line(&mut client), format!("OK {}\n", socket.host_port));
        clients.push(client);
    }
    guest.event_loop.assert_idle();
}

#[test]
fn every_connection_has_a_port_of_its_own() {
    let mut guest = Guest::new(no_ports);
    let ports: std::collections::BTreeSet<_> =
        (0..20).map(|_| ask(&mut guest).1.header.src_port.get()).collect();
    assert_eq!(ports.len(), 20);
}

#[test]
fn a_refused_client_is_disconnected() {
    let mut guest = Guest::new(no_ports);
    let (mut client, request) = ask(&mut guest);
    Socket::of(&request).send(&mut guest, op::RST);
    assert_eq!(read_rest(&mut client), b"");
    guest.expect_silence();
    guest.event_loop.assert_idle();
}

#[test]
fn a_client_with_another_protocol_is_disconnected() {
    let mut guest = Guest::new(no_ports);
    let (ours, mut client) = pair();
    guest.handle().attach(ours).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: box\r\n\r\n").unwrap();
    // The client sees the end of the stream or, because of its unread data, a reset.
    assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)));
    guest.expect_silence();
}

#[test]
fn a_client_without_a_line_is_disconnected_at_its_deadline() {
    let timeouts = short(100, 10_000, 10_000);
    let mut guest = Guest::with(Setup { timeouts, ..Setup::default() }, no_ports);
    let (ours, mut silent) = pair();
    guest.handle().attach(ours).unwrap();
    let (ours, mut slow) = pair();
    guest.handle().attach(ours).unwrap();
    slow.write_all(b"CONNECT 10").unwrap();
    guest.event_loop.assert_idle();
    assert_eq!(read_rest(&mut silent), b"");
    assert_eq!(read_rest(&mut slow), b"");
    // The deadline does not apply to a connection.
    let (mut client, mut socket) = connect(&mut guest);
    std::thread::sleep(Duration::from_millis(200));
    socket.write(&mut guest, b"still here");
    assert_eq!(read_exact(&mut client, 10), b"still here");
}

#[test]
fn a_request_without_an_answer_times_out() {
    let timeouts = short(10_000, 100, 10_000);
    let mut guest = Guest::with(Setup { timeouts, ..Setup::default() }, no_ports);
    let (mut client, request) = ask(&mut guest);
    assert_eq!(read_rest(&mut client), b"");
    let reset = guest.expect(op::RST);
    assert_eq!(reset.header.src_port, request.header.src_port);
    // The answer is too late.
    Socket::of(&request).send(&mut guest, op::RESPONSE);
    guest.expect(op::RST);
    guest.event_loop.assert_idle();
}

#[test]
fn a_request_that_was_never_sent_times_out_without_a_reset() {
    let timeouts = short(10_000, 100, 10_000);
    let mut guest = Guest::without_buffers(Setup { timeouts, ..Setup::default() }, no_ports);
    let (ours, mut client) = pair();
    guest.handle().attach(ours).unwrap();
    client.write_all(b"CONNECT 1024\n").unwrap();
    assert_eq!(read_rest(&mut client), b"");
    guest.fill();
    guest.expect_silence();
}

#[test]
fn the_guest_connects_and_exchanges_data() {
    let (ports, served) = all_ports();
    let mut guest = Guest::new(ports);
    let mut socket = Socket::new(1025, 4711);
    socket.send(&mut guest, op::REQUEST);
    let response = guest.expect(op::RESPONSE);
    socket.see(&response);
    let (port, mut server) = served.recv().unwrap();
    assert_eq!(port, 1025);
    socket.write(&mut guest, b"to the host");
    assert_eq!(read_exact(&mut server, 11), b"to the host");
    server.write_all(b"to the guest").unwrap();
    assert_eq!(socket.read_exact(&mut guest, 12), b"to the guest");
    guest.event_loop.assert_idle();
}

#[test]
fn host_ports_can_be_sockets_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("vsock.sock");
    let listener = UnixListener::bind(folder.path().join("vsock.sock_52")).unwrap();
    let mut guest = Guest::new(SocketPorts::new(&base));
    let mut socket = Socket::new(52, 4711);
    socket.send(&mut guest, op::REQUEST);
    socket.see(&guest.expect(op::RESPONSE));
    let (mut server, _) = listener.accept().unwrap();
    socket.write(&mut guest, b"hello");
    assert_eq!(read_exact(&mut server, 5), b"hello");

    // No socket, a full backlog, a closed socket.
    Socket::new(53, 4712).send(&mut guest, op::REQUEST);
    guest.expect(op::RST);
    let mut answered = 0;
    for guest_port in 5000.. {
        Socket::new(52, guest_port).send(&mut guest, op::REQUEST);
        match guest.receive().op() {
            op::RESPONSE => answered += 1,
            op::RST => break,
            other => panic!("{other}"),
        }
    }
    assert!(answered > 0, "a listening socket has a backlog");
    drop(listener);
    // Connections in the backlog are never accepted.
    for _ in 0..answered {
        guest.expect(op::RST);
    }
    Socket::new(52, 4999).send(&mut guest, op::REQUEST);
    guest.expect(op::RST);
}

#[test]
fn a_port_that_is_not_served_is_refused() {
    let mut guest = Guest::new(no_ports);
    let socket = Socket::new(99, 4711);
    socket.send(&mut guest, op::REQUEST);
    let reset = guest.expect(op::RST).header;
    assert_eq!((reset.src_cid.get(), reset.dst_cid.get()), (2, GUEST_CID.into()));
    assert_eq!((reset.src_port.get(), reset.dst_port.get()), (99, 4711));
    assert_eq!((reset.socket_type.get(), reset.len.get()), (1, 0));
}

#[test]
fn packets_of_no_connection_are_refused() {
    let mut guest = Guest::new(no_ports);
    let socket = Socket::new(99, 4711);
    for op in [op::RESPONSE, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 0, 77] {
        socket.send(&mut guest, op);
        guest.expect(op::RST);
    }
    // A reset is not answered: that could go on forever.
    socket.send(&mut guest, op::RST);
    guest.expect_silence();
}

#[test]
fn addresses_and_types_that_are_not_ours_are_refused() {
    let (ports, served) = all_ports();
    let mut guest = Guest::new(ports);
    let request = Socket::new(99, 4711).header(op::REQUEST);
    // To another host, or another guest.
    for cid in [0, 1, 3, 4, 1 << 32 | 2, u64::MAX] {
        guest.send(&Header { dst_cid: cid.into(), ..request }, &[]);
        assert_eq!(guest.expect(op::RST).header.src_cid.get(), cid);
    }
    // Of a type that was not offered (SEQPACKET), or does not exist.
    for socket_type in [2, 0, u16::MAX] {
        guest.send(&Header { socket_type: socket_type.into(), ..request }, &[]);
        assert_eq!(guest.expect(op::RST).header.socket_type.get(), socket_type);
    }
    // From an unknown sender: there is no address to answer.
    for cid in [0, 1, 2, 4, 1 << 32 | 3] {
        guest.send(&Header { src_cid: cid.into(), ..request }, &[]);
    }
    guest.expect_silence();
    assert!(served.try_recv().is_err());
}

#[test]
fn a_reset_closes_all_connections_and_the_device_restarts() {
    let (ports, served) = all_ports();
    let mut guest = Guest::new(ports);
    let (mut client, mut socket) = connect(&mut guest);
    socket.write(&mut guest, b"last words");
    let (mut asking, _) = ask(&mut guest);
    Socket::new(1025, 4711).send(&mut guest, op::REQUEST);
    guest.expect(op::RESPONSE);
    let (_, mut server) = served.recv().unwrap();
    let (ours, mut undecided) = pair();
    guest.handle().attach(ours).unwrap();
    guest.flush();

    assert_eq!(guest.device.reset().len(), 3);
    assert!(guest.device.reset().is_empty());
    assert_eq!(read_rest(&mut client), b"last words");
    assert_eq!(read_rest(&mut asking), b"");
    assert_eq!(read_rest(&mut server), b"");

    // A client of a stopped device waits.
    let (ours, mut waiting) = pair();
    guest.handle().attach(ours).unwrap();
    waiting.write_all(b"CONNECT 5\n").unwrap();
    guest.activate();
    guest.fill();
    let request = guest.expect(op::REQUEST);
    assert_eq!(request.header.dst_port.get(), 5);
    drop(waiting);
    let (mut client, mut socket) = connect(&mut guest);
    socket.write(&mut guest, b"again");
    assert_eq!(read_exact(&mut client, 5), b"again");
    assert!(matches!(undecided.read(&mut [0]), Ok(0)));
}

#[test]
fn the_handle_outlives_the_device() {
    let guest = Guest::new(no_ports);
    let handle = guest.handle();
    drop(guest);
    let (ours, mut client) = pair();
    handle.attach(ours).unwrap();
    handle.reset_transport().unwrap();
    drop(handle);
    assert_eq!(read_rest(&mut client), b"");
}

#[test]
fn a_transport_reset_closes_all_connections_and_sends_an_event() {
    let mut guest = Guest::new(no_ports);
    let (mut client, socket) = connect(&mut guest);
    guest.handle().reset_transport().unwrap();
    assert_eq!(read_rest(&mut client), b"");
    // The event is sent as soon as there is a buffer large enough.
    guest.give_event_buffer(3);
    assert_eq!(guest.receive_event(), []);
    guest.give_event_buffer(8);
    assert_eq!(guest.receive_event(), [0; 4]);
    guest.expect_silence();
    socket.send(&mut guest, op::CREDIT_UPDATE);
    guest.expect(op::RST);
    // It is sent once.
    guest.give_event_buffer(8);
    let (mut client, mut socket) = connect(&mut guest);
    socket.write(&mut guest, b"on");
    assert_eq!(read_exact(&mut client, 2), b"on");
    guest.handle().reset_transport().unwrap();
    assert_eq!(guest.receive_event(), [0; 4]);
}
