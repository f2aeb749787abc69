//! Data in both directions, and closing of connections.

use std::net::Shutdown;

use super::event_loop::in_background;
use super::*;
use crate::virtio::vsock::packet::HEADER_SIZE;

const MIB: usize = 1 << 20;

#[test]
fn megabytes_reach_the_guest_unchanged() {
    for (event_idx, rx_buffer, rx_size) in
        [(true, 4096, 64), (false, 3776, 16), (true, 65536, 8), (true, 45, 64)]
    {
        let len = if rx_buffer == 45 { 20_000 } else { 8 * MIB };
        let setup = Setup { event_idx, rx_buffer, rx_size, ..Setup::default() };
        let mut guest = Guest::with(setup, no_ports);
        let (mut client, mut socket) = connect_with_buffer(&mut guest, 100_000);
        let sent = pattern(len);
        let expected = sent.clone();
        let done = in_background(move || {
            client.write_all(&sent).unwrap();
            client
        });
        let got = socket.read_exact(&mut guest, len);
        assert_same(&got, &expected);
        let _client = done();
        guest.event_loop.assert_idle();
    }
}

#[test]
fn megabytes_reach_the_host_unchanged() {
    for event_idx in [true, false] {
        let mut guest = Guest::with(Setup { event_idx, ..Setup::default() }, no_ports);
        let (mut client, mut socket) = connect(&mut guest);
        let sent = pattern(8 * MIB);
        let done = in_background(move || {
            let got = read_exact(&mut client, 8 * MIB);
            (client, got)
        });
        socket.write_all(&mut guest, &sent);
        let (_client, got) = done();
        assert_same(&got, &sent);
        guest.event_loop.assert_idle();
    }
}

#[test]
fn both_directions_at_once() {
    let mut guest = Guest::new(no_ports);
    let (mut client, mut socket) = connect(&mut guest);
    let (len, data) = (2 * MIB, pattern(2 * MIB));
    let (mut writer, up) = (client.try_clone().unwrap(), data.clone());
    let written = in_background(move || writer.write_all(&up).unwrap());
    let read = in_background(move || read_exact(&mut client, len));
    let (mut got, mut sent) = (Vec::new(), 0);
    while got.len() < len || sent < len {
        let now = (len - sent).min(socket.credit()).min(65536);
        if now > 0 {
            socket.write(&mut guest, &data[sent..sent + now]);
            sent += now;
        }
        if let Some(packet) = guest.receive_within(Duration::from_millis(1)) {
            socket.see(&packet);
            socket.fwd_cnt += packet.data.len() as u32;
            got.extend(packet.data);
            if packet.header.op.get() == op::CREDIT_REQUEST {
                socket.send(&mut guest, op::CREDIT_UPDATE);
            }
        }
    }
    written();
    assert_same(&got, &data);
    assert_same(&read(), &data);
}

#[test]
fn a_packet_fills_its_buffer() {
    let mut guest = Guest::without_buffers(Setup::default(), no_ports);
    guest.give(1);
    let (mut client, mut socket) = connect(&mut guest);
    // The guest has one buffer at a time, and the stream has data for many.
    let sent = pattern(10 * (4096 - HEADER_SIZE));
    client.write_all(&sent).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let first = guest.expect(op::RW);
    assert_eq!(first.data.len(), 4096 - HEADER_SIZE);
    socket.see(&first);
    let mut got = first.data;
    got.extend(socket.read_exact(&mut guest, 9 * (4096 - HEADER_SIZE)));
    assert_same(&got, &sent);
}

#[test]
fn packets_may_be_split_anywhere() {
    let mut guest = Guest::new(no_ports);
    let (mut client, socket) = connect(&mut guest);
    for cuts in [&[][..], &[1], &[43], &[44], &[45], &[44, 44, 46], &[10, 20, 30, 40, 50, 51]] {
        let header =
            crate::virtio::vsock::packet::Header { len: 10.into(), ..socket.header(op::RW) };
        assert!(guest.try_send(&header, b"0123456789", cuts));
        assert_eq!(read_exact(&mut client, 10), b"0123456789", "{cuts:?}");
        guest.flush();
    }
}

#[test]
fn a_client_that_shut_down_sending_still_receives() {
    let mut guest = Guest::new(no_ports);
    let (mut client, mut socket) = connect(&mut guest);
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(socket.read_exact(&mut guest, 8), b"question");
    assert_eq!(guest.expect(op::SHUTDOWN).header.flags.get(), 2);
    guest.event_loop.assert_idle();
    socket.write(&mut guest, &pattern(100_000));
    assert_same(&read_exact(&mut client, 100_000), &pattern(100_000));
    // The guest closes, which is confirmed once the client has all bytes.
    socket.write(&mut guest, b"bye");
    socket.shutdown(&mut guest, 3);
    guest.expect(op::RST);
    assert_eq!(read_rest(&mut client), b"bye");
    socket.send(&mut guest, op::RST);
    guest.expect_silence();
    guest.event_loop.assert_idle();
}

#[test]
fn a_guest_that_shut_down_sending_still_receives() {
    let mut guest = Guest::new(no_ports);
    let (mut client, mut socket) = connect(&mut guest);
    socket.write(&mut guest, b"question");
    socket.shutdown(&mut guest, 2);
    assert_eq!(read_rest(&mut client), b"question");
    guest.event_loop.assert_idle();
    client.write_all(&pattern(100_000)).unwrap();
    assert_same(&socket.read_exact(&mut guest, 100_000), &pattern(100_000));
    client.write_all(b"bye").unwrap();
    drop(client);
    assert_eq!(socket.read_exact(&mut guest, 3), b"bye");
    // The client has closed, which the guest confirms.
    assert_eq!(guest.expect(op::SHUTDOWN).header.flags.get(), 3);
    guest.event_loop.assert_idle();
    socket.send(&mut guest, op::RST);
    guest.expect_silence();
}

#[test]
fn the_guest_shuts_down_receiving() {
    let mut guest = Guest::new(no_ports);
    let (mut client, mut socket) = connect(&mut guest);
    socket.shutdown(&mut guest, 1);
    guest.flush();
    socket.write(&mut guest, b"one way");
    assert_eq!(read_exact(&mut client, 7), b"one way");
    let refused = client.write_all(b"the other").map_err(|e| e.kind());
    assert_eq!(refused, Err(ErrorKind::BrokenPipe));
    guest.expect_silence();
    guest.event_loop.assert_idle();
    drop(client);
    assert_eq!(guest.expect(op::SHUTDOWN).header.flags.get(), 3);
}

#[test]
fn a_client_that_closes_ends_both_directions_after_its_last_byte() {
    let mut guest = Guest::new(no_ports);
    let (mut client, mut socket) = connect_with_buffer(&mut guest, 5000);
    let sent = pattern(50_000);
    client.write_all(&sent).unwrap();
    drop(client);
    // The guest gave credit for a tenth of it: the rest waits, and the loop sleeps.
    guest.event_loop.assert_idle();
    let mut got = Vec::new();
    let mut flags = 0;
    while flags & 2 == 0 {
        let packet = guest.receive();
        match packet.op() {
            op::RW => {
                assert_eq!(flags & 2, 0, "data after the end");
                socket.fwd_cnt += packet.data.len() as u32;
                got.extend(packet.data);
            }
            op::SHUTDOWN => flags |= packet.header.flags.get(),
            op::CREDIT_REQUEST => socket.send(&mut guest, op::CREDIT_UPDATE),
            _ => panic!("{packet:?}"),
        }
        socket.send(&mut guest, op::CREDIT_UPDATE);
    }
    assert_eq!(flags, 3);
    assert_same(&got, &sent);
    // Data from the guest is now discarded.
    socket.write(&mut guest, &pattern(100_000));
    socket.write(&mut guest, &pattern(100_000));
    guest.flush();
    socket.shutdown(&mut guest, 3);
    guest.expect(op::RST);
    guest.expect_silence();
}

#[test]
fn a_guest_that_does_not_confirm_is_reset() {
    let timeouts =
        crate::virtio::vsock::Timeouts { close: Duration::from_millis(100), ..Default::default() };
    let mut guest = Guest::with(Setup { timeouts, ..Setup::default() }, no_ports);
    let (client, _) = connect(&mut guest);
    drop(client);
    assert_eq!(guest.expect(op::SHUTDOWN).header.flags.get(), 3);
    guest.expect(op::RST);
    guest.expect_silence();
}

#[test]
fn data_sent_before_the_guest_closed_arrives() {
    // Closes and waits for the confirmation; closes and resets; only resets.
    for (shutdown, reset) in [(true, false), (true, true), (false, true)] {
        let mut guest = Guest::new(no_ports);
        let (mut client, mut socket) = connect(&mut guest);
        // More than the Unix stream's buffer holds.
        let sent = pattern(socket.credit());
        socket.write(&mut guest, &sent);
        if shutdown {
            socket.shutdown(&mut guest, 3);
        }
        guest.flush();
        while let Some(packet) = guest.receive_within(Duration::from_millis(50)) {
            assert_eq!(packet.op(), op::CREDIT_UPDATE, "{packet:?}");
        }
        if reset {
            socket.send(&mut guest, op::RST);
            guest.flush();
        }
        guest.event_loop.assert_idle();
        assert_same(&read_rest(&mut client), &sent);
        if !reset {
            guest.expect_besides_credit(op::RST);
        }
        guest.expect_silence();
    }
}

#[test]
fn the_ports_of_a_closed_connection_can_be_used_again() {
    let (ports, served) = all_ports();
    let mut guest = Guest::new(ports);
    let mut socket = Socket::new(1025, 4711);
    socket.send(&mut guest, op::REQUEST);
    socket.see(&guest.expect(op::RESPONSE));
    let (_, mut first) = served.recv().unwrap();
    let sent = pattern(socket.credit());
    socket.write(&mut guest, &sent);
    socket.shutdown(&mut guest, 3);
    // The guest does not wait for the confirmation, nor the server for the end of the stream.
    let mut socket = Socket::new(1025, 4711);
    socket.send(&mut guest, op::REQUEST);
    socket.see(&guest.expect_besides_credit(op::RESPONSE));
    let (_, mut second) = served.recv().unwrap();
    socket.write(&mut guest, b"second");
    assert_eq!(read_exact(&mut second, 6), b"second");
    assert_same(&read_rest(&mut first), &sent);
    drop(first);
    // The end of the first connection does not affect the second.
    guest.expect_silence();
    second.write_all(b"reply").unwrap();
    assert_eq!(socket.read_exact(&mut guest, 5), b"reply");
}

#[test]
fn a_client_that_closes_with_unread_data_resets_the_connection() {
    let mut guest = Guest::new(no_ports);
    let (mut client, mut socket) = connect(&mut guest);
    socket.write(&mut guest, b"unread");
    guest.flush();
    client.write_all(b"the last request").unwrap();
    drop(client);
    assert_eq!(socket.read_exact(&mut guest, 16), b"the last request");
    while guest.receive().op() != op::RST {}
    guest.expect_silence();
}

#[test]
fn a_reset_is_an_error_for_a_client_with_unsent_data() {
    let mut guest = Guest::new(no_ports);
    let (mut client, socket) = connect_with_buffer(&mut guest, 0);
    client.write_all(b"the guest has no room for this").unwrap();
    guest.expect(op::CREDIT_REQUEST);
    socket.send(&mut guest, op::RST);
    let end = client.read(&mut [0]).map_err(|e| e.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
}
