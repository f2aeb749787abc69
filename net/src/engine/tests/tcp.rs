//! TCP as the guest sees it, segment by segment.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use proptest::prelude::*;
use smoltcp::wire::{TcpControl, TcpRepr, TcpSeqNumber};

use super::guest::{Got, ISS, Rig, read};

const MS: fn(u64) -> Duration = Duration::from_millis;

#[test]
fn a_connection_is_established_when_the_hosts_is() {
    let mut rig = Rig::new();
    let _server = rig.connect();
    assert_eq!(rig.counters().tcp_open, 1);
    // The policy denies by ICMP, the host by a reset.
    let dst_port = rig.server().port() ^ 1;
    rig.send(TcpRepr { src_port: 1, dst_port, ..rig.syn() });
    assert_eq!(rig.received(), []);
    assert_eq!(rig.counters().denied, 1);
    let syn = TcpRepr { src_port: 2, ..rig.syn() };
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    rig.listener = unused;
    rig.send(syn);
    let answer = rig.one();
    assert_eq!((answer.control, answer.ack), (TcpControl::Rst, Some(ISS.wrapping_add(1))));
}

#[test]
fn segments_without_a_connection_are_reset() {
    let mut rig = Rig::new();
    rig.send(TcpRepr { payload: b"x", ..rig.segment(0, 77) });
    let reset = rig.one();
    assert_eq!((reset.control, reset.seq), (TcpControl::Rst, 77));
    rig.send(TcpRepr { control: TcpControl::Rst, ..rig.segment(0, 77) });
    assert_eq!(rig.received(), [], "a reset is never answered");
}

#[test]
fn a_lost_answer_is_sent_again() {
    let mut rig = Rig::new();
    rig.send(rig.syn());
    let answer = rig.one();
    rig.send(rig.syn());
    assert_eq!(rig.one(), answer);
    rig.pass(MS(900));
    assert_eq!(rig.received(), []);
    rig.pass(MS(1200));
    assert_eq!(rig.one(), answer);
    // The guest does not answer: the host's side is closed.
    for _ in 0..10 {
        rig.pass(Duration::from_secs(64));
    }
    assert_eq!(rig.counters().tcp_open, 0);
}

#[test]
fn unacknowledged_data_is_sent_again_with_growing_delays() {
    let mut rig = Rig::new();
    let (first, mut server) = rig.connect();
    server.write_all(b"hello").unwrap();
    rig.settle();
    let segment = rig.one();
    assert_eq!((segment.seq, &segment.payload[..]), (first, &b"hello"[..]));
    let mut waits = Vec::new();
    for _ in 0..4 {
        let mut wait = Duration::ZERO;
        let again = loop {
            rig.pass(MS(50));
            wait += MS(50);
            if let Some(again) = rig.received().pop() {
                break again;
            }
        };
        assert_eq!((again.seq, &again.payload[..]), (first, &b"hello"[..]));
        waits.push(wait);
    }
    assert!(waits[0] >= MS(200) && waits[0] <= MS(1050), "{waits:?}");
    let doubles = |pair: &[Duration]| pair[1] > pair[0] * 18 / 10 && pair[1] < pair[0] * 22 / 10;
    assert!(waits[1..].windows(2).all(doubles), "{waits:?}");
    rig.send(rig.segment(0, first.wrapping_add(5)));
    rig.pass(Duration::from_secs(30));
    assert_eq!(rig.received(), []);
    assert_eq!(rig.counters().retransmits, 4);
}

#[test]
fn a_guest_that_never_answers_is_given_up_on() {
    let mut rig = Rig::new();
    let (_, mut server) = rig.connect();
    server.write_all(b"hello").unwrap();
    for _ in 0..30 {
        rig.pass(Duration::from_secs(60));
    }
    assert_eq!(rig.counters().tcp_open, 0);
    server.set_nonblocking(false).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn three_duplicate_acknowledgements_trigger_a_fast_retransmit() {
    let mut rig = Rig::new();
    let (first, mut server) = rig.connect();
    server.write_all(&[7; 6000]).unwrap();
    rig.settle();
    let all = rig.data(6000);
    assert_eq!(all.iter().map(|s| s.payload.len()).sum::<usize>(), 6000);
    assert!(all.iter().all(|segment| segment.payload.len() <= 1000), "the guest's MSS");
    rig.send(rig.segment(0, first.wrapping_add(1000)));
    for n in 1..=3 {
        rig.send(rig.segment(0, first.wrapping_add(1000)));
        let again = rig.received();
        assert_eq!(again.len(), usize::from(n == 3), "after {n}");
        if let Some(again) = again.first() {
            assert_eq!((again.seq, again.payload.len()), (first.wrapping_add(1000), 1000));
        }
    }
    // A partial acknowledgement shows the next hole (RFC 6582).
    rig.send(rig.segment(0, first.wrapping_add(3000)));
    assert_eq!(rig.one().seq, first.wrapping_add(3000));
    rig.send(rig.segment(0, first.wrapping_add(6000)));
    assert_eq!(rig.received(), []);
    assert_eq!(rig.counters().retransmits, 2);
}

#[test]
fn a_zero_window_is_probed_until_it_opens() {
    let mut rig = Rig::new();
    let (first, mut server) = rig.connect();
    rig.send(TcpRepr { window_len: 0, payload: b"x", ..rig.segment(0, first) });
    rig.received();
    server.write_all(&[7; 500]).unwrap();
    rig.settle();
    assert_eq!(rig.received(), [], "the window is zero");
    for _ in 0..5 {
        rig.pass(Duration::from_secs(61));
        let probe = rig.one();
        assert_eq!((probe.seq, probe.payload.len()), (first.wrapping_sub(1), 0));
        rig.send(TcpRepr { window_len: 0, ..rig.segment(1, first) });
        assert_eq!(rig.received(), []);
    }
    rig.send(TcpRepr { window_len: 200, ..rig.segment(1, first) });
    assert_eq!(rig.one().payload, [7; 200]);
    rig.send(TcpRepr { window_len: 1000, ..rig.segment(1, first.wrapping_add(200)) });
    assert_eq!(rig.one().payload, [7; 300]);
}

#[test]
fn segments_out_of_order_are_reordered_and_holes_reported_by_sack() {
    let mut rig = Rig::new();
    let (first, server) = rig.connect();
    let data: Vec<u8> = (0..100).collect();
    let part = |rig: &mut Rig, from: usize, to: usize| {
        rig.send(TcpRepr { payload: &data[from..to], ..rig.segment(from, first) });
        rig.received()
    };
    let byte = |n: u32| ISS.wrapping_add(1 + n);
    let received = part(&mut rig, 40, 60);
    assert_eq!((received[0].ack, received[0].sack), (Some(byte(0)), Some((byte(40), byte(60)))));
    let received = part(&mut rig, 80, 100);
    assert_eq!((received[0].ack, received[0].sack), (Some(byte(0)), Some((byte(80), byte(100)))));
    part(&mut rig, 30, 70);
    let received = part(&mut rig, 0, 40);
    assert_eq!(received[0].ack, Some(byte(60)), "the overlap was cut off");
    let received = part(&mut rig, 50, 90);
    assert_eq!((received[0].ack, received[0].sack), (Some(byte(100)), None));
    assert_eq!(read(&server, 100), data);
    let received = part(&mut rig, 0, 100);
    assert_eq!(received[0].ack, Some(byte(100)), "an old segment is acknowledged again");
    assert_eq!(read(&server, 0), b"");
}

#[test]
fn a_fin_out_of_order_waits_for_what_precedes_it() {
    let mut rig = Rig::new();
    let (first, mut server) = rig.connect();
    rig.send(TcpRepr { control: TcpControl::Fin, payload: b"world", ..rig.segment(6, first) });
    assert_eq!(rig.one().ack, Some(ISS.wrapping_add(1)));
    rig.send(TcpRepr { payload: b"hello ", ..rig.segment(0, first) });
    assert_eq!(rig.one().ack, Some(ISS.wrapping_add(1 + 11 + 1)));
    server.set_nonblocking(false).unwrap();
    let mut text = String::new();
    server.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello world");
}

#[test]
fn data_after_a_fin_is_ignored() {
    for order in [[0, 1, 2], [1, 0, 2], [2, 1, 0], [1, 2, 0]] {
        let mut rig = Rig::new();
        let (first, mut server) = rig.connect();
        for part in order {
            let (at, control, payload) = match part {
                0 => (0, TcpControl::None, &b"hello"[..]),
                1 => (5, TcpControl::Fin, &b""[..]),
                _ => (3, TcpControl::None, &b"lo and more"[..]),
            };
            rig.send(TcpRepr { control, payload, ..rig.segment(at, first) });
        }
        rig.send(TcpRepr { payload: b"hello", ..rig.segment(0, first) });
        rig.send(TcpRepr { control: TcpControl::Fin, ..rig.segment(5, first) });
        let received = rig.received().pop().unwrap();
        assert_eq!(received.ack, Some(ISS.wrapping_add(1 + 5 + 1)), "{order:?}");
        server.set_nonblocking(false).unwrap();
        let mut text = String::new();
        server.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello", "{order:?}");
        assert_eq!(rig.counters().tcp_open, 1, "the other half is open");
    }
}

#[test]
fn a_repeated_fin_is_acknowledged_again() {
    let mut rig = Rig::new();
    let (first, server) = rig.connect();
    server.shutdown(Shutdown::Write).unwrap();
    rig.settle();
    let fin = rig.one();
    assert_eq!((fin.control, fin.seq), (TcpControl::Fin, first));
    let end = TcpRepr { control: TcpControl::Fin, ..rig.segment(0, first.wrapping_add(1)) };
    rig.send(end);
    let last = rig.one();
    assert_eq!(last.ack, Some(ISS.wrapping_add(2)));
    assert_eq!(rig.counters().tcp_open, 0);
    rig.send(end);
    let again = rig.one();
    assert_eq!((again.control, again.seq, again.ack), (TcpControl::None, last.seq, last.ack));
    rig.pass(Duration::from_secs(10));
    rig.send(end);
    assert_eq!(rig.one().control, TcpControl::Rst, "the connection is forgotten");
    // The same addresses can be used again, at once.
    rig.connect();
}

#[test]
fn a_dns_query_is_answered_after_a_half_close() {
    let mut rig = Rig::new();
    let gateway = rig.engine.cx.addresses.gateway;
    rig.send_raw_to(gateway, TcpRepr { dst_port: 53, ..rig.syn() });
    rig.settle();
    let first = rig.one().seq.wrapping_add(1);
    let mut question = vec![0, 39, 0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    question.extend(b"\x04host\x07boxlite\x08internal\0\0\x01\0\x01");
    let segment = TcpRepr { dst_port: 53, payload: &question, ..rig.segment(0, first) };
    rig.send_raw_to(gateway, TcpRepr { control: TcpControl::Fin, ..segment });
    let received = rig.data(30);
    let answer = received.iter().find(|segment| !segment.payload.is_empty()).unwrap();
    assert_eq!(answer.payload[2..6], [0, 7, 0x85, 0x80], "the query's ID, and no error");
    assert!(answer.payload.ends_with(&[192, 168, 127, 254]));
    let len = answer.payload.len();
    let ack = first.wrapping_add(len as u32);
    rig.send_raw_to(gateway, TcpRepr { dst_port: 53, ..rig.segment(question.len() + 1, ack) });
    let fin = |all: &[Got]| all.iter().any(|segment| segment.control == TcpControl::Fin);
    assert!(fin(&received) || fin(&rig.wait_for(fin)));
}

#[test]
fn a_peer_connects_although_the_guest_is_in_time_wait() {
    let mut rig = Rig::new();
    let port = rig.publish("0:80");
    let mut client = std::net::TcpStream::connect(port).unwrap();
    let syn = rig.one();
    assert_eq!((syn.control, syn.ack), (TcpControl::Syn, None));
    // The guest is in TIME-WAIT for a connection with the same addresses.
    let segment = TcpRepr { src_port: 80, dst_port: syn.port, ..rig.segment(0, 0) };
    let old = TcpSeqNumber(12_345);
    rig.send(TcpRepr { ack_number: Some(old), ..segment });
    let received = rig.received();
    assert_eq!(
        (received[0].control, received[0].seq, received[0].ack),
        (TcpControl::Rst, 12_345, None)
    );
    assert_eq!((received.len(), &received[1]), (2, &syn), "the SYN is sent again at once");
    rig.send(TcpRepr { ack_number: Some(old), ..segment });
    assert_eq!(rig.received().len(), 1, "but only once");
    let ack_number = Some(TcpSeqNumber(syn.seq.wrapping_add(1).cast_signed()));
    rig.send(TcpRepr { control: TcpControl::Syn, ack_number, ..segment });
    assert_eq!(rig.one().control, TcpControl::None);
    client.write_all(b"hello").unwrap();
    rig.settle();
    assert_eq!(rig.data(5)[0].payload, b"hello");
}

#[test]
fn a_peer_keeps_its_ipv6_address_if_the_guest_has_ipv6() {
    let mut rig = Rig::new();
    let peer = "[2001:db8::1]:5000".parse().unwrap();
    let host = rig.engine.cx.addresses.host;
    let mut client = rig.connect_as(peer);
    let syn = rig.one();
    assert_eq!((syn.control, syn.ip), (TcpControl::Syn, peer.ip().into()));
    rig.pass(MS(1100));
    assert_eq!(rig.one().ip, host.into(), "a guest that never used IPv6 is asked over IPv4");
    // A reset ends the connection of a guest that has no server.
    let segment = TcpRepr { src_port: 80, dst_port: peer.port(), ..rig.segment(0, 0) };
    rig.pass(MS(1100));
    let ack_number = Some(TcpSeqNumber(rig.one().seq.wrapping_add(1).cast_signed()));
    rig.send(TcpRepr { control: TcpControl::Rst, ack_number, ..segment });
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);

    rig.ping6();
    let _client = rig.connect_as(peer);
    let syn = rig.one();
    for wait in [1100, 2100] {
        rig.pass(MS(wait));
        assert_eq!(rig.one(), syn, "a slow guest is asked again");
    }
    rig.pass(MS(4100));
    assert_eq!(rig.one().ip, host.into(), "in the end over IPv4");
}

#[test]
fn guessed_resets_are_challenged() {
    let mut rig = Rig::new();
    let (first, mut server) = rig.connect();
    rig.send(TcpRepr { control: TcpControl::Rst, ..rig.segment(1000, first) });
    assert_eq!(rig.one().control, TcpControl::None, "a challenge");
    rig.send(TcpRepr { control: TcpControl::Rst, ..rig.segment(1 << 30, first) });
    assert_eq!(rig.received(), []);
    rig.send(TcpRepr { control: TcpControl::Syn, ..rig.segment(50, first) });
    assert_eq!(rig.one().control, TcpControl::None, "a challenge");
    rig.send(TcpRepr { payload: b"x", ..rig.segment(0, first.wrapping_add(1 << 20)) });
    assert_eq!(rig.one().ack, Some(ISS.wrapping_add(1)), "it acknowledges what was never sent");
    assert_eq!(rig.counters().tcp_open, 1);
    rig.send(TcpRepr { control: TcpControl::Rst, ..rig.segment(0, first) });
    assert_eq!(rig.counters().tcp_open, 0);
    server.set_nonblocking(false).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_silent_flow_lives_while_the_guest_answers() {
    let mut rig = Rig::new();
    let (first, server) = rig.connect();
    for _ in 0..3 {
        rig.pass(Duration::from_secs(601));
        let probe = rig.one();
        assert_eq!((probe.seq, probe.payload.len()), (first.wrapping_sub(1), 0));
        rig.send(rig.segment(0, first));
    }
    for _ in 0..7 {
        rig.pass(Duration::from_secs(601));
        rig.received();
    }
    assert_eq!(rig.counters().tcp_open, 0);
    drop(server);
}

#[test]
fn a_host_that_does_not_read_closes_the_window_and_nothing_is_lost() {
    let mut rig = Rig::new();
    let (first, server) = rig.connect();
    let data: Vec<u8> = (0..10_000).map(|n| (n % 251) as u8).collect();
    let (mut sent, mut edge) = (0, 0);
    loop {
        let part = TcpRepr { payload: &data, ..rig.segment(sent, first) };
        rig.send(part);
        let received = rig.received().pop().unwrap();
        let acked = received.ack.unwrap().wrapping_sub(ISS.wrapping_add(1)) as usize;
        edge = edge.max(acked + (usize::from(received.window) << 7));
        sent = acked;
        if edge - sent < data.len() {
            break;
        }
        assert!(sent < 64 << 20, "the window never closes");
    }
    // Data beyond the window is cut off.
    let beyond = vec![1; 60_000];
    rig.send(TcpRepr { payload: &beyond[..edge - sent + 5000], ..rig.segment(sent, first) });
    let received = rig.received().pop().unwrap();
    assert_eq!(received.ack.unwrap().wrapping_sub(ISS.wrapping_add(1)) as usize, edge);
    assert_eq!(received.window, 0);
    let mut got = 0;
    while got < edge {
        got += read(&server, 1).len();
        rig.settle();
    }
    assert_eq!(got, edge);
    assert!(rig.received().pop().unwrap().window > 0, "the window is open again");
}

#[test]
fn a_guest_that_takes_no_frames_holds_no_memory() {
    let mut rig = Rig::new();
    let (first, mut server) = rig.connect();
    rig.send(TcpRepr { window_len: 0xffff, ..rig.segment(0, first) });
    // Answers that the guest does not take fill the link.
    for _ in 0..1500 {
        rig.send(TcpRepr { payload: b"x", ..rig.segment(5, first) });
    }
    let _ = server.write(&[1; 100_000]);
    rig.settle();
    let taken = rig.received().len();
    assert!(taken <= 1024, "{taken} frames in the link");
    rig.settle();
    let data: usize = rig.data(1).iter().map(|segment| segment.payload.len()).sum();
    assert!(data > 0, "sending continues when there is room");
}

#[test]
fn without_buffers_data_waits_in_the_hosts_socket() {
    let mut rig = Rig::new();
    let (_, mut server) = rig.connect();
    let pool = &mut rig.engine.cx.pool;
    let all: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
    server.write_all(&[7; 5000]).unwrap();
    rig.settle();
    rig.pass(Duration::from_secs(3));
    assert_eq!(rig.received(), []);
    all.into_iter().for_each(|buffer| rig.engine.cx.pool.put_back(buffer));
    rig.pass(Duration::from_secs(3));
    let sent: usize = rig.data(5000).iter().map(|segment| segment.payload.len()).sum();
    assert_eq!(sent, 5000);
    assert_eq!(rig.counters().retransmits, 0);
}

proptest! {
    // A case takes long, and a failing one can be understood without shrinking.
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 64, ..Default::default() })]

    /// For any sequence of segments, the host's side reads the sent bytes in order.
    #[test]
    fn any_segments_leave_the_stream_intact(
        segments in proptest::collection::vec(
            (0..3000_usize, 0..1200_usize, any::<u16>(), -3000..3000_i32, 0..40_u8), 1..60),
    ) {
        let stream: Vec<u8> = (0..5000_u32).map(|n| (n * 13 % 251) as u8).collect();
        let mut rig = Rig::new();
        let (first, mut server) = rig.connect();
        let _ = server.write_all(&[9; 2000]);
        for (at, len, window, ack, kind) in segments {
            let control = match kind {
                0 => TcpControl::Syn,
                1..4 => TcpControl::Psh,
                _ => TcpControl::None,
            };
            let ack = first.wrapping_add_signed(ack);
            let ack = (kind != 5).then_some(TcpSeqNumber(ack.cast_signed()));
            let payload = &stream[at..at + len];
            rig.send(TcpRepr { control, window_len: window, ack_number: ack, payload, ..rig.segment(at, first) });
            for Got { payload, .. } in rig.received() {
                prop_assert!(payload.iter().all(|byte| *byte == 9));
            }
            if kind == 6 {
                rig.pass(Duration::from_secs(3));
            }
        }
        rig.send(TcpRepr { payload: &stream, ..rig.segment(0, first) });
        let open = rig.counters().tcp_open == 1;
        let got = read(&server, if open { stream.len() } else { 0 });
        prop_assert!(!open || got == stream, "{} bytes", got.len());
        prop_assert!(stream.starts_with(&got));
    }
}
