//! Guests and peers that violate the protocol lose their connection, and nothing else happens.

use std::io::Write;

use boxlite_proto::message::{Event, ExitStatus};
use proptest::prelude::*;

use super::*;

/// Asserts that an agent that sends these frames loses its connection.
fn loses(frames: &[Frame]) {
    let mut box_ = Fixture::running();
    let mut peer = box_.attached();
    let mut bytes: Vec<u8> =
        frames.iter().flat_map(|frame| box_.to_hub(frame).to_bytes()).collect();
    // The hub may hang up before all frames have been sent.
    let _ = box_.agent.as_mut().unwrap().write_all(&std::mem::take(&mut bytes));
    let note = loop {
        match box_.event() {
            HubEvent::AgentLost(why) => break why,
            HubEvent::MainEnded(_) => {}
            other => panic!("{other:?} after {frames:?}"),
        }
    };
    assert!(!note.is_empty());
    // The agent gets the remaining frames, then the end.
    while let Ok(Some(frame)) = Frame::read(&mut peer.0) {
        if let Some(channel) = frame.data_channel() {
            let _ = Frame::credit(9, channel, frame.body.len() as u32).write(&mut peer.0);
        }
    }
    // The hub still serves.
    box_.connect();
    box_.start();
}

#[test]
fn frames_that_no_agent_sends_end_the_connection() {
    let data = || Frame::data(1, Channel::Stdout, *b"x");
    loses(&[Frame::data(99, Channel::Stdout, *b"x")]);
    loses(&[Frame::data(0, Channel::Stdout, *b"x")]);
    loses(&[Frame::data(1, Channel::Stdin, *b"x")]);
    loses(&[hello()]);
    loses(&[Request::Ping.frame(1)]);
    loses(&[Control::Kill.frame(1)]);
    loses(&[Response::Done.frame(1)]);
    loses(&[Response::Started { pid: 2 }.frame(1)]);
    loses(&[Frame::end(1, Channel::Stdout), data()]);
    loses(&[Frame::credit(1, Channel::Stdin, 1)]);
    loses(&[Frame::credit(1, Channel::Stdout, 1)]);
    loses(&[Frame { stream: 1, kind: Kind::End, body: vec![].into() }]);
    loses(&[Frame { stream: 1, kind: Kind::Credit, body: vec![1].into() }]);
    loses(&[Frame { stream: 1, kind: Kind::Response, body: vec![200].into() }]);
}

#[test]
fn output_over_its_window_ends_the_connection() {
    let chunk = Frame::data(1, Channel::Stderr, vec![0; MAX_DATA]);
    // A peer that reads nothing keeps the window closed.
    loses(&vec![chunk; 3 * WINDOW as usize / MAX_DATA]);
}

#[test]
fn an_agent_must_send_its_hello_first() {
    let answers: [&[u8]; 4] = [
        b"NO\n",
        &[b'x'; 100],
        b"OK 1\n\xff\xff\xff\xff\0\0\0\0\x03",
        &[&b"OK 1\n"[..], &Response::Started { pid: 1 }.frame(1).to_bytes()].concat(),
    ];
    for answer in answers {
        let box_ = Fixture::connected();
        box_.hub.disconnect();
        let mut agent = box_.raw_agent();
        box_.hub.send(HubCommand::StartMain);
        let _ = agent.write_all(answer);
        assert!(matches!(box_.event(), HubEvent::AgentLost(_)), "{answer:?}");
    }
}

#[test]
fn an_agents_last_message_is_truncated() {
    let mut box_ = Fixture::running();
    box_.send(&Event::Fatal { message: "é".repeat(100_000) }.frame(0));
    let HubEvent::Fatal(message) = box_.event() else { panic!() };
    assert!(message.len() <= 4096 && message.starts_with("éé"));
}

#[test]
fn only_an_agents_first_fatal_message_counts() {
    let mut box_ = Fixture::running();
    for n in 0..1000 {
        box_.send(&Event::Fatal { message: format!("reason {n}") }.frame(0));
    }
    box_.send(&Response::Exited(ExitStatus::Code(0)).frame(1));
    assert_eq!(box_.event(), HubEvent::Fatal("reason 0".into()));
    assert!(matches!(box_.event(), HubEvent::MainEnded(_)), "the other reasons are not told");
}

#[test]
fn peers_that_violate_the_protocol_are_disconnected() {
    let box_ = Fixture::running();
    let hang_ups: [Vec<Frame>; 6] = [
        vec![Request::Ping.frame(1)],
        vec![hello(), hello()],
        vec![hello(), Request::Ping.frame(0)],
        vec![hello(), Response::Done.frame(1)],
        vec![
            hello(),
            Request::Exec(Exec::default()).frame(9),
            Frame::credit(9, Channel::Stdout, 1),
        ],
        [
            vec![hello(), Request::Exec(Exec::default()).frame(9)],
            // The agent takes one window of input, and the peer has one more.
            vec![Frame::data(9, Channel::Stdin, vec![0; MAX_DATA]); 12],
        ]
        .concat(),
    ];
    for frames in hang_ups {
        let mut peer = box_.connect_peer();
        for frame in &frames {
            // The hub may have hung up by now.
            let _ = frame.write(&mut peer.0);
        }
        let told = std::iter::from_fn(|| Frame::read(&mut peer.0).ok().flatten()).count();
        assert!(told <= 2 + 12, "{told} frames after {frames:?}");
    }
    box_.attached();
}

#[test]
fn a_peer_of_another_version_gets_the_hubs_hello() {
    let box_ = Fixture::running();
    let mut peer = box_.connect_peer();
    peer.send(
        &boxlite_proto::message::Hello { version: 9999, generation: 0, unix_time_ns: 0 }.frame(0),
    );
    assert_eq!(peer.receive(), hello());
    assert!(peer.is_hung_up_on());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_harm_the_hub(
        from_agent in proptest::collection::vec(any::<u8>(), 0..200),
        from_peer in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut box_ = Fixture::running();
        let mut peer = box_.attached();
        let _ = box_.agent.as_mut().unwrap().write_all(&from_agent);
        let _ = peer.0.write_all(&from_peer);
        drop((peer, box_.agent.take()));
        // The hub notices, drops both connections, and still serves.
        while !matches!(box_.event(), HubEvent::AgentLost(_)) {}
        box_.connect();
        box_.start();
    }

    #[test]
    fn no_frames_harm_the_hub(
        frames in proptest::collection::vec((0_u32..4, 0_u8..14, proptest::collection::vec(any::<u8>(), 0..8)), 0..20),
    ) {
        let mut box_ = Fixture::running();
        let mut peer = box_.attached();
        for (stream, kind, body) in frames {
            let Some(kind) = Kind::from_u8(kind) else { continue };
            let body = body.into_iter().take(kind.max_body()).collect();
            let frame = Frame { stream, kind, body };
            let _ = box_.to_hub(&frame).write(box_.agent.as_mut().unwrap());
            let _ = Frame { stream: if stream == 1 { 9 } else { stream }, ..frame }.write(&mut peer.0);
        }
        drop((peer, box_.agent.take()));
        while !matches!(box_.event(), HubEvent::AgentLost(_)) {}
        box_.connect();
        box_.start();
    }
}
