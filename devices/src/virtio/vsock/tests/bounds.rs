//! Bounds on what a guest or a client can make the device hold, and isolation of the others.

use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;

use super::event_loop::in_background;
use super::guest::{RX, TX};
use super::*;
use crate::log_budget::testing::assert_bounded;
use crate::virtio::VirtioDevice;
use crate::virtio::queue::Virtqueue;
use crate::virtio::testing::{Layout, Ring};
use crate::virtio::vsock::clients::MAX_CLIENTS;
use crate::virtio::vsock::credit::WINDOW;
use crate::virtio::vsock::packet::{HEADER_SIZE, Header};
use crate::virtio::vsock::rx::RxQueue;
use crate::virtio::vsock::{MAX_CONNECTIONS, Timeouts};

#[test]
fn a_client_that_stops_reading_stops_the_guest() {
    let mut guest = Guest::new(no_ports);
    let (mut client, mut socket) = connect(&mut guest);
    let sent = pattern(3 << 20);
    let mut done = 0;
    // The Unix stream's buffer, then the window, and nothing more.
    loop {
        let now = socket.credit().min(sent.len() - done);
        socket.write(&mut guest, &sent[done..done + now]);
        done += now;
        match guest.receive_within(Duration::from_millis(200)) {
            Some(update) => socket.see(&update),
            None => break,
        }
    }
    assert_eq!(socket.credit(), 0);
    assert!(done < sent.len());
    guest.event_loop.assert_idle();
    // A credit request gives no more credit.
    socket.send(&mut guest, op::CREDIT_REQUEST);
    socket.see(&guest.expect(op::CREDIT_UPDATE));
    let held = socket.peer_buf_alloc - socket.credit() as u32;
    assert!(held > WINDOW / 2, "{held}");
    // When the client reads again, the guest can send again.
    let len = sent.len();
    let reading = in_background(move || read_exact(&mut client, len));
    socket.write_all(&mut guest, &sent[done..]);
    assert_same(&reading(), &sent);
}

#[test]
fn a_guest_that_ignores_its_credit_is_reset() {
    let mut guest = Guest::new(no_ports);
    let (mut client, mut socket) = connect(&mut guest);
    let (mut other, mut other_socket) = connect(&mut guest);
    let data = pattern(60_000);
    let mut packets = 0;
    while guest.receive_within(Duration::from_millis(1)).is_none_or(|p| p.op() != op::RST) {
        socket.write(&mut guest, &data);
        packets += 1;
        assert!(packets < 100);
    }
    // Bytes within the credit arrive.
    let got = read_rest(&mut client);
    assert!(got.len() >= WINDOW as usize);
    assert_eq!(got.len() % data.len(), 0);
    assert!(got.chunks(data.len()).all(|chunk| chunk == data));
    other_socket.write(&mut guest, b"not affected");
    assert_eq!(read_exact(&mut other, 12), b"not affected");
}

#[test]
fn without_credit_the_client_waits() {
    let mut guest = Guest::new(no_ports);
    let (mut client, mut socket) = connect_with_buffer(&mut guest, 10);
    client.write_all(b"0123456789abcdef").unwrap();
    let data = guest.expect(op::RW);
    assert_eq!(data.data, b"0123456789");
    guest.expect(op::CREDIT_REQUEST);
    // The guest gets one credit request, whatever it answers.
    socket.send(&mut guest, op::CREDIT_UPDATE);
    socket.fwd_cnt = 11;
    socket.send(&mut guest, op::CREDIT_UPDATE);
    guest.expect_silence();
    guest.event_loop.assert_idle();
    socket.fwd_cnt = 4;
    socket.send(&mut guest, op::CREDIT_UPDATE);
    assert_eq!(guest.expect(op::RW).data, b"abcd");
    socket.buf_alloc = u32::MAX;
    socket.send(&mut guest, op::CREDIT_UPDATE);
    while guest.receive().data != b"ef" {}
}

#[test]
fn without_buffers_the_client_waits() {
    let mut guest = Guest::without_buffers(Setup::default(), no_ports);
    guest.give(1);
    let (ours, mut client) = pair();
    guest.handle().attach(ours).unwrap();
    client.write_all(b"CONNECT 1024\n").unwrap();
    client.write_all(&pattern(100_000)).unwrap();
    let request = guest.wait(RX, "the request", |guest| guest.take_packet().flatten());
    let mut socket = Socket::of(&request);
    socket.send(&mut guest, op::RESPONSE);
    guest.flush();
    guest.event_loop.assert_idle();
    guest.fill();
    assert_same(&socket.read_exact(&mut guest, 100_000), &pattern(100_000));
}

#[test]
fn buffers_without_room_for_data_do_not_stop_the_queue() {
    let mut guest = Guest::without_buffers(Setup::default(), no_ports);
    // Large enough for control packets.
    guest.rx_buffer = HEADER_SIZE as u32;
    guest.give(8);
    let (mut client, request) = ask(&mut guest);
    let socket = Socket::of(&request);
    client.write_all(b"data").unwrap();
    socket.send(&mut guest, op::RESPONSE);
    // Too small for any packet.
    guest.rx_buffer = HEADER_SIZE as u32 - 1;
    guest.give(8);
    guest.rx_buffer = 4096;
    guest.give(40);
    let got = loop {
        let packet = guest.wait(RX, "data", |guest| guest.take_packet());
        if let Some(Packet { data, .. }) = packet.filter(|packet| packet.op() == op::RW) {
            break data;
        }
    };
    assert_eq!(got, b"data");
    guest.event_loop.assert_idle();
}

#[test]
fn a_flood_of_refused_requests_waits_for_buffers() {
    let mut guest = Guest::without_buffers(Setup::default(), no_ports);
    let mut sent = 0;
    let mut stuck = 0;
    while stuck < 20 {
        if guest.try_send(&Socket::new(99, sent).header(op::REQUEST), &[], &[]) {
            (sent, stuck) = (sent + 1, 0);
        } else {
            stuck += 1;
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    // As many resets as may wait, and a full tx queue.
    assert_eq!(sent, 1024 + 64);
    guest.event_loop.assert_idle();
    // Answers that were sent make room for packets, without another notification.
    guest.fill();
    guest.flush();
    for port in 0..sent {
        assert_eq!(guest.expect(op::RST).header.dst_port.get(), port);
    }
    guest.expect_silence();
    // Then the device works as before.
    let (mut client, mut socket) = connect(&mut guest);
    socket.write(&mut guest, b"hello");
    assert_eq!(read_exact(&mut client, 5), b"hello");
}

#[test]
fn a_flood_of_connections_is_bounded() {
    let (ports, served) = all_ports();
    let mut guest = Guest::new(ports);
    let (mut client, mut early) = connect(&mut guest);
    for port in 0..MAX_CONNECTIONS as u32 - 1 {
        Socket::new(1025, port).send(&mut guest, op::REQUEST);
        assert_eq!(guest.expect(op::RESPONSE).header.dst_port.get(), port);
    }
    for port in 5000..5010 {
        Socket::new(1025, port).send(&mut guest, op::REQUEST);
        guest.expect(op::RST);
    }
    let (ours, mut late) = pair();
    guest.handle().attach(ours).unwrap();
    late.write_all(b"CONNECT 1024\n").unwrap();
    assert_eq!(read_rest(&mut late), b"");
    early.write(&mut guest, b"hello");
    assert_eq!(read_exact(&mut client, 5), b"hello");
    guest.event_loop.assert_idle();
    // When a connection closes, another can be opened.
    Socket::new(1025, 7).send(&mut guest, op::RST);
    Socket::new(1025, 6000).send(&mut guest, op::REQUEST);
    guest.expect(op::RESPONSE);
    assert_eq!(served.try_iter().count(), MAX_CONNECTIONS);
}

#[test]
fn connections_opened_and_reset_without_buffers_leave_nothing() {
    let (ports, served) = all_ports();
    let mut guest = Guest::without_buffers(Setup::default(), ports);
    for round in 0..3000 {
        let socket = Socket::new(1025, round % 7);
        socket.send(&mut guest, op::REQUEST);
        socket.send(&mut guest, op::RST);
    }
    guest.flush();
    guest.fill();
    guest.expect_silence();
    assert_eq!(served.try_iter().count(), 3000);
}

#[test]
fn clients_without_a_connect_line_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock.sock");
    let listener = Some(UnixListener::bind(&path).unwrap());
    let timeouts = Timeouts { line: Duration::from_millis(500), ..Timeouts::default() };
    let mut guest = Guest::with(Setup { listener, timeouts, ..Setup::default() }, no_ports);
    let idle: Vec<_> = (0..MAX_CLIENTS + 20).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let mut late = UnixStream::connect(&path).unwrap();
    late.write_all(b"CONNECT 1024\n").unwrap();
    guest.event_loop.assert_idle();
    // The late client is admitted when the others have timed out.
    let socket = Socket::of(&guest.expect(op::REQUEST));
    socket.send(&mut guest, op::RESPONSE);
    assert_eq!(read_line(&mut late), format!("OK {}\n", socket.host_port));
    for mut client in idle {
        assert_eq!(read_rest(&mut client), b"");
    }
}

#[test]
fn the_inbox_of_a_guest_that_is_down_is_bounded() {
    let mut guest = Guest::new(no_ports);
    guest.device.reset();
    let mut clients = Vec::new();
    let refused = loop {
        let (ours, theirs) = pair();
        match guest.handle().attach(ours) {
            Ok(()) => clients.push(theirs),
            Err(e) => break e,
        }
    };
    assert_eq!(refused.kind(), ErrorKind::WouldBlock);
    assert_eq!(clients.len(), MAX_CLIENTS);
    for client in &mut clients {
        client.write_all(b"CONNECT 1\n").unwrap();
    }
    guest.activate();
    guest.fill();
    for _ in &clients {
        guest.expect(op::REQUEST);
    }
}

#[test]
fn connections_take_turns() {
    let mut guest = Guest::with(Setup { rx_size: 16, ..Setup::default() }, no_ports);
    let mut connections: Vec<_> =
        (0..5).map(|_| connect_with_buffer(&mut guest, u32::MAX)).collect();
    // While the guest does not receive, all streams fill up.
    for (client, _) in &mut connections {
        client.set_nonblocking(true).unwrap();
        while client.write(&[7; 4096]).is_ok() {}
    }
    let mut bytes = BTreeMap::<u32, usize>::new();
    while bytes.values().sum::<usize>() < 5 * (128 << 10) {
        let packet = guest.expect(op::RW);
        *bytes.entry(packet.header.src_port.get()).or_default() += packet.data.len();
    }
    assert_eq!(bytes.len(), connections.len());
    assert!(bytes.values().all(|&count| count >= 64 << 10), "{bytes:?}");
}

#[test]
fn truncated_packets_and_worse_are_dropped() {
    let mut guest = Guest::new(no_ports);
    let (mut client, socket) = connect(&mut guest);
    let (mut other, mut other_socket) = connect(&mut guest);
    // Too short for a header, outside of memory, device-writable.
    guest.send_chain(&[(0x180_0000, 43)], false);
    guest.send_chain(&[(u64::MAX - 10, 100)], false);
    guest.send_chain(&[(0x180_0000, 100)], true);
    guest.send_chain(&[(0x180_0000, 0)], false);
    guest.flush();
    guest.expect_silence();
    // A length beyond the chain leaves a hole in the stream.
    for len in [11, 0x7fff_ffff, u32::MAX] {
        guest.send(&Header { len: len.into(), ..socket.header(op::RW) }, b"0123456789");
        guest.expect(op::RST);
    }
    assert_eq!(read_rest(&mut client), b"");
    other_socket.write(&mut guest, b"not affected");
    assert_eq!(read_exact(&mut other, 12), b"not affected");
}

#[test]
fn a_second_request_resets_the_connection() {
    let (ports, served) = all_ports();
    let mut guest = Guest::new(ports);
    let socket = Socket::new(1025, 4711);
    socket.send(&mut guest, op::REQUEST);
    guest.expect(op::RESPONSE);
    let (_, mut server) = served.recv().unwrap();
    socket.send(&mut guest, op::REQUEST);
    guest.expect(op::RST);
    assert_eq!(read_rest(&mut server), b"");
    assert!(served.try_recv().is_err());
}

#[test]
fn interrupts_and_credit_updates_are_few() {
    let mut guest = Guest::new(no_ports);
    let (mut client, mut socket) = connect(&mut guest);
    let len = 4 << 20;
    let reading = in_background(move || read_exact(&mut client, len));
    let before = guest.interrupts();
    let (mut done, mut updates) = (0, 0);
    let data = pattern(len);
    while done < len {
        let now = socket.credit().min(len - done).min(16 * 1024);
        if now == 0 {
            socket.see(&guest.expect(op::CREDIT_UPDATE));
            updates += 1;
            continue;
        }
        socket.write(&mut guest, &data[done..done + now]);
        done += now;
    }
    assert_same(&reading(), &data);
    assert!(updates <= 2 * len / WINDOW as usize, "{updates} updates");
    // 256 packets. The driver reclaims their buffers when the tx ring is full.
    let interrupts = guest.interrupts() - before;
    assert!(interrupts <= 128, "{interrupts} interrupts");
}

#[test]
fn a_broken_queue_needs_a_reset() {
    for ring in [RX, TX] {
        let mut guest = Guest::new(no_ports);
        let (mut client, _) = connect(&mut guest);
        guest.rings[ring].break_available_index(&guest.memory);
        guest.kick();
        client.write_all(b"hello").unwrap();
        guest.event_loop.assert_idle();
        assert_eq!(guest.interrupt_status() & 2, 2, "the driver is notified");
        drop(client);
        // After a reset it works again.
        guest.device.reset();
        guest.activate();
        guest.fill();
        let (mut client, mut socket) = connect(&mut guest);
        socket.write(&mut guest, b"again");
        assert_eq!(read_exact(&mut client, 5), b"again");
    }
}

#[test]
fn unusable_buffers_are_bounded_per_turn() {
    let memory = crate::virtio::testing::memory();
    let mut ring = Ring::new(Layout::of(0), 256, false);
    let mut queue = RxQueue(Virtqueue::new("rx", ring.queue(&memory), 0));
    for _ in 0..256 {
        ring.publish(&memory, &[(0x8000, HEADER_SIZE as u32 - 1)], true);
    }
    let mut used = || std::iter::from_fn(|| ring.take_used(&memory)).count();
    for _ in 0..2 {
        queue.0.begin_turn(128);
        assert!(queue.pop_buffer(&memory, 0).is_none());
        assert!(queue.0.is_turn_over());
        assert_eq!(used(), 128, "a driver can add buffers as fast as they are returned");
    }
    queue.0.begin_turn(128);
    assert!(queue.pop_buffer(&memory, 0).is_none() && !queue.0.is_turn_over());
    // The device continues with them without a notification.
    let mut guest = Guest::without_buffers(Setup { rx_size: 512, ..Setup::default() }, no_ports);
    guest.rx_buffer = HEADER_SIZE as u32 - 1;
    guest.give(400);
    guest.rx_buffer = 4096;
    guest.give(8);
    ask(&mut guest);
}

#[test]
fn log_messages_are_bounded_over_activations() {
    let mut guest = Guest::new(no_ports);
    let log = guest.device.log.clone();
    for _ in 0..30 {
        for ring in [RX, TX] {
            guest.rings[ring].break_available_index(&guest.memory);
        }
        guest.kick();
        let (ours, _client) = pair();
        guest.handle().attach(ours).unwrap();
        guest.event_loop.assert_idle();
        guest.device.reset();
        guest.activate();
    }
    assert_bounded(&log, 30);
}
