//! Tests of the hub with a scripted agent on a socket pair, and scripted peers.

mod hostile;
mod support;

use std::time::Duration;

use boxlite_contract::logbook::{Query, Reader};
use boxlite_proto::credit::WINDOW;
use boxlite_proto::frame::{Channel, Frame, Kind, MAX_DATA};
use boxlite_proto::message::{Control, Exec, ExitStatus, Failure, FailureKind, Request, Response};
use boxlite_runtime::client::AgentClient;

use self::support::{Fixture, TestPeer, hello};
use super::*;

const EXITED: ExitStatus = ExitStatus::Code(3);

fn exited() -> MainEnd {
    MainEnd::Exited { status: EXITED, out_of_memory: false }
}

#[test]
fn the_main_command_is_logged_and_its_end_reported() {
    let mut box_ = Fixture::running();
    box_.send(&Frame::data(1, Channel::Stdout, *b"out\n"));
    box_.send(&Frame::data(1, Channel::Stderr, vec![0, 255]));
    box_.send(&Response::Exited(EXITED).frame(1));
    assert_eq!(box_.event(), HubEvent::MainEnded(exited()));
    let records: Vec<_> =
        Reader::open(box_.folder.path(), Query::default()).unwrap().map(Result::unwrap).collect();
    assert_eq!(records.len(), 2);
    assert_eq!((records[0].stream, &records[0].bytes[..]), (LogStream::Stdout, &b"out\n"[..]));
    assert_eq!((records[1].stream, &records[1].bytes[..]), (LogStream::Stderr, &[0, 255][..]));
}

#[test]
fn an_out_of_memory_kill_is_reported() {
    let mut box_ = Fixture::running();
    let mut peer = box_.attached();
    let killed = ExitStatus::Signal(9);
    box_.send(&Response::ExitedOutOfMemory(killed).frame(1));
    let end = MainEnd::Exited { status: killed, out_of_memory: true };
    assert_eq!(box_.event(), HubEvent::MainEnded(end));
    assert_eq!(peer.response(), Response::ExitedOutOfMemory(killed));
}

#[test]
fn a_failed_start_is_reported_to_all() {
    for (kind, expected) in
        [(FailureKind::NotFound, 127), (FailureKind::NotExecutable, 126), (FailureKind::Other, 125)]
    {
        let mut box_ = Fixture::connected();
        let mut peer = box_.attach();
        assert_eq!(box_.event(), HubEvent::MainAwaited);
        box_.start();
        box_.send(&Response::Failed(Failure { kind, message: "no".into() }).frame(1));
        let HubEvent::MainEnded(MainEnd::NotStarted { code, message }) = box_.event() else {
            panic!()
        };
        assert_eq!((code, &*message), (expected, "no"));
        assert!(matches!(peer.response(), Response::Failed(failure) if failure.kind == kind));
    }
}

#[test]
fn every_peer_gets_all_output_in_order_and_then_the_end() {
    let mut box_ = Fixture::running();
    let mut peers = [box_.attached(), box_.attached(), box_.attached()];
    let (mut sent, mut n) = ([Vec::new(), Vec::new()], 0_u32);
    // Several windows of both channels, interleaved and binary; the agent waits for credit.
    let collectors = peers.each_mut().map(|peer| peer.collect());
    while sent[0].len() + sent[1].len() < 6 * WINDOW as usize {
        n += 1;
        let channel = if n.is_multiple_of(3) { Channel::Stderr } else { Channel::Stdout };
        let bytes: Vec<u8> = (0..n % 30_000).map(|i| (i ^ n) as u8).collect();
        box_.output(channel, &bytes);
        sent[usize::from(channel == Channel::Stderr)].extend(bytes);
    }
    box_.send(&Frame::end(1, Channel::Stdout));
    box_.send(&Response::Exited(EXITED).frame(1));
    for collector in collectors {
        let (streams, last) = collector.join().unwrap();
        assert!(streams == sent, "output was lost or reordered");
        assert_eq!(last, Response::Exited(EXITED));
    }
    assert_eq!(box_.event(), HubEvent::MainEnded(exited()));
}

#[test]
fn a_slow_peer_blocks_the_command_until_it_hangs_up() {
    let mut box_ = Fixture::running();
    let slow = box_.attached();
    let chunk = vec![7; MAX_DATA];
    // The peer's window, and the command's window ahead of it.
    let mut sent = 0;
    while box_.has_credit(Channel::Stdout, Duration::from_millis(300)) {
        box_.output(Channel::Stdout, &chunk);
        sent += chunk.len();
        assert!(sent <= 3 * WINDOW as usize, "nothing holds the command back");
    }
    assert!(sent >= 2 * WINDOW as usize, "held back after {sent} bytes");
    // The other channel is not affected.
    for _ in 0..4 {
        box_.output(Channel::Stderr, &chunk);
    }
    drop(slow);
    assert!(box_.has_credit(Channel::Stdout, Duration::from_secs(5)), "held back by nobody");
}

#[test]
fn unread_output_is_closed_only_while_the_box_ends_with_its_launcher() {
    for detached in [false, true] {
        let exec = Exec { argv: vec![b"main".to_vec()], stdin: true, ..Exec::default() };
        let main = Some(MainExec { exec, init: true });
        let programs = Programs { main, ends_with_readers: true, ..Programs::default() };
        let mut box_ = Fixture::with(programs);
        box_.connect();
        box_.start();
        box_.send(&Response::Started { pid: 7 }.frame(1));
        assert_eq!(box_.event(), HubEvent::MainStarted(7));
        if detached {
            box_.hub.send(HubCommand::KeepOutput);
        }
        let mut peer = box_.attached();
        peer.send(&Frame::end(9, Channel::Stdout));
        peer.send(&Frame::data(9, Channel::Stdin, *b"x"));
        if !detached {
            assert_eq!(box_.receive(), Frame::end(1, Channel::Stdout));
        }
        assert_eq!(box_.receive(), Frame::data(1, Channel::Stdin, *b"x"));
    }
}

#[test]
fn a_peer_gets_its_remaining_output_after_the_command_ended() {
    let mut box_ = Fixture::running();
    let mut peer = box_.attached();
    for _ in 0..8 {
        box_.output(Channel::Stdout, &vec![1; MAX_DATA]);
    }
    box_.send(&Response::Exited(EXITED).frame(1));
    assert_eq!(box_.event(), HubEvent::MainEnded(exited()));
    box_.hub.send(HubCommand::Close(None));
    box_.no_event(Duration::from_millis(100));
    let (streams, last) = peer.collect().join().unwrap();
    assert_eq!((streams[0].len(), last), (8 * MAX_DATA, Response::Exited(EXITED)));
    drop(peer);
    assert_eq!(box_.event(), HubEvent::Drained);
}

#[test]
fn a_suspended_client_does_not_delay_the_end_and_the_owner_does() {
    for (owned, drained) in [(false, true), (true, false)] {
        let exec = Exec { argv: vec![b"main".to_vec()], ..Exec::default() };
        let main = Some(MainExec { exec, init: true });
        let programs = Programs { main, ends_with_readers: owned, ..Programs::default() };
        let mut box_ = Fixture::with(programs);
        box_.connect();
        let mut stuck = box_.connect_peer();
        hello().write(&mut stuck.0).unwrap();
        Request::Exec(Exec::default()).frame(1).write(&mut stuck.0).unwrap();
        assert_eq!(box_.event(), HubEvent::MainAwaited);
        box_.start();
        box_.send(&Response::Started { pid: 7 }.frame(1));
        assert_eq!(box_.event(), HubEvent::MainStarted(7));
        // The peer's window, and as much in its queue: the command has credit for that.
        box_.output(Channel::Stdout, &vec![7; 2 * WINDOW as usize]);
        box_.send(&Response::Exited(EXITED).frame(1));
        assert_eq!(box_.event(), HubEvent::MainEnded(exited()));
        box_.hub.send(HubCommand::Close(None));
        match drained {
            true => assert_eq!(box_.event(), HubEvent::Drained),
            false => box_.no_event(2 * STALL),
        }
    }
}

#[test]
fn the_wait_for_a_peer_has_a_limit() {
    let mut box_ = Fixture::running();
    let _stuck = box_.attached();
    for _ in 0..8 {
        box_.output(Channel::Stdout, &vec![1; MAX_DATA]);
    }
    box_.send(&Response::Exited(EXITED).frame(1));
    assert_eq!(box_.event(), HubEvent::MainEnded(exited()));
    box_.hub.send(HubCommand::Close(None));
    box_.hub.send(HubCommand::Close(Some(Duration::from_millis(50))));
    assert_eq!(box_.event(), HubEvent::Drained);
}

#[test]
fn a_peer_gets_output_from_its_attachment_on() {
    let mut box_ = Fixture::running();
    box_.output(Channel::Stdout, b"before");
    let mut first = box_.attached();
    box_.output(Channel::Stdout, b"between");
    assert_eq!(first.data(), (Channel::Stdout, b"between".to_vec()));
    let mut second = box_.attached();
    box_.output(Channel::Stdout, b"after");
    for peer in [&mut first, &mut second] {
        assert_eq!(peer.data(), (Channel::Stdout, b"after".to_vec()));
    }
}

#[test]
fn input_of_all_peers_reaches_the_command_within_its_credit() {
    let mut box_ = Fixture::running();
    let mut peer = box_.attached();
    let mut other = box_.attached();
    other.send(&Frame::data(9, Channel::Stdin, *b"first"));
    assert_eq!(box_.receive(), Frame::data(1, Channel::Stdin, *b"first"));
    let bytes: Vec<u8> = (0..3 * WINDOW).map(|n| (n / 7) as u8).collect();
    let expected = bytes.clone();
    let writer = std::thread::spawn(move || {
        peer.send_under_credit(&bytes);
        peer.send(&Frame::end(9, Channel::Stdin));
        peer
    });
    let mut got: Vec<u8> = Vec::new();
    loop {
        let frame = box_.receive();
        match frame.kind {
            Kind::Stdin => {
                got.extend(&frame.body);
                box_.send(&Frame::credit(1, Channel::Stdin, frame.body.len() as u32));
            }
            Kind::End => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(got == expected);
    let mut peer = writer.join().unwrap();
    // The input has ended for all peers.
    assert_eq!(other.receive(), Frame::end(9, Channel::Stdin));
    peer.send(&Control::Signal(2).frame(9));
    assert_eq!(box_.receive(), Control::SignalProcess(2).frame(1));
}

#[test]
fn input_from_before_a_hang_up_is_delivered() {
    let mut box_ = Fixture::running();
    let mut peer = box_.attached();
    for _ in 0..4 {
        peer.send(&Frame::data(9, Channel::Stdin, vec![1; MAX_DATA]));
    }
    drop(peer);
    let mut got = 0;
    while got < 4 * MAX_DATA {
        got += box_.receive().body.len();
    }
    box_.output(Channel::Stdout, b"still there");
}

#[test]
fn a_peer_waits_through_restarts_of_command_and_vm() {
    let mut box_ = Fixture::running();
    let mut peer = box_.attached();
    box_.send(&Response::Exited(EXITED).frame(1));
    assert_eq!(box_.event(), HubEvent::MainEnded(exited()));
    assert_eq!(peer.response(), Response::Exited(EXITED));
    peer.ask(&Request::Exec(Exec::default()));
    assert_eq!(box_.event(), HubEvent::MainAwaited);
    box_.start();
    box_.send(&Response::Started { pid: 8 }.frame(2));
    assert_eq!(box_.event(), HubEvent::MainStarted(8));
    assert_eq!(peer.response(), Response::Started { pid: 8 });
    // The VM stops: how the command ended is unknown.
    let mut waiting = box_.attach();
    box_.hub.disconnect();
    assert!(peer.is_hung_up_on());
    assert_eq!(waiting.response(), Response::Started { pid: 8 });
    assert!(waiting.is_hung_up_on());
    let mut waiting = box_.attach();
    assert_eq!(box_.event(), HubEvent::MainAwaited);
    box_.connect();
    box_.start();
    box_.send(&Response::Started { pid: 9 }.frame(1));
    assert_eq!(waiting.response(), Response::Started { pid: 9 });
}

#[test]
fn peers_can_only_attach_to_the_main_command() {
    let box_ = Fixture::running();
    let mut peer = box_.attached();
    for request in [Request::Exec(Exec::default()), Request::Sync, Request::UnpackLayer] {
        peer.send(&request.frame(77));
        let frame = peer.receive();
        assert_eq!(frame.stream, 77);
        assert!(matches!(frame.decode::<Response>().unwrap(), Response::Failed(_)), "{request:?}");
    }
    peer.send(&Request::Ping.frame(78));
    assert_eq!(peer.receive(), Response::Done.frame(78));
    let bare = Fixture::with(Programs::default());
    let mut peer = bare.attach();
    assert!(matches!(peer.response(), Response::Failed(_)));
    assert!(bare.agent.is_none());
}

#[test]
fn health_checks_run_beside_the_command() {
    let mut box_ = Fixture::running();
    box_.hub.send(HubCommand::Check(5));
    assert!(
        matches!(box_.receive().decode().unwrap(), Request::Exec(exec) if exec.argv == [b"check"])
    );
    box_.send(&Response::Started { pid: 9 }.frame(2));
    // More output than is kept, and more than a window.
    for _ in 0..2 * WINDOW as usize / MAX_DATA {
        box_.send(&Frame::data(2, Channel::Stdout, vec![b'x'; MAX_DATA]));
        assert_eq!(box_.receive(), Frame::credit(2, Channel::Stdout, MAX_DATA as u32));
    }
    box_.send(&Frame::data(2, Channel::Stderr, *b"the end"));
    box_.send(&Response::Exited(ExitStatus::Code(0)).frame(2));
    let HubEvent::HealthChecked(5, Ok(text)) = box_.event() else { panic!() };
    assert!(text.len() <= 4096 && text.ends_with("xthe end"));

    box_.hub.send(HubCommand::Check(6));
    box_.receive();
    box_.send(&Response::Started { pid: 10 }.frame(3));
    box_.send(&Response::Exited(ExitStatus::Code(1)).frame(3));
    assert_eq!(box_.event(), HubEvent::HealthChecked(6, Err("exit code 1".into())));

    box_.hub.send(HubCommand::Check(7));
    box_.receive();
    box_.hub.send(HubCommand::CancelCheck);
    assert_eq!(box_.receive(), Control::Kill.frame(4));
    // No check starts beside one that does not die.
    box_.hub.send(HubCommand::Check(8));
    assert!(matches!(box_.event(), HubEvent::HealthChecked(8, Err(_))));
}

#[test]
fn the_guests_clock_is_set_from_its_own_reading() {
    let mut box_ = Fixture::running();
    box_.hub.send(HubCommand::SetClock);
    let asked = box_.receive();
    assert_eq!(asked.decode::<Request>().unwrap(), Request::Clock);
    // The answer is slow, as on a busy host.
    let before = std::time::UNIX_EPOCH.elapsed().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    box_.send(&Response::Clock { monotonic_ns: 77 }.frame(asked.stream));
    let told = box_.receive();
    let Request::SetClock(reading) = told.decode().unwrap() else { panic!("{told:?}") };
    let after = std::time::UNIX_EPOCH.elapsed().unwrap();
    assert_eq!(reading.monotonic_ns, 77);
    let (time, error) =
        (Duration::from_nanos(reading.unix_time_ns), Duration::from_nanos(reading.error_ns));
    assert!(error >= Duration::from_millis(25), "{error:?}");
    assert!(time + error >= before && time <= after, "{before:?} {time:?} {after:?}");
    box_.send(&Response::Done.frame(told.stream));
    // An agent that does not know the request is not lost.
    box_.hub.send(HubCommand::SetClock);
    let asked = box_.receive();
    let kind = FailureKind::Unsupported;
    let failure = Failure { kind, message: String::new() };
    box_.send(&Response::Failed(failure).frame(asked.stream));
    box_.output(Channel::Stdout, b"still there");
}

#[test]
fn the_guest_is_asked_to_shut_down() {
    let mut box_ = Fixture::running();
    box_.hub.send(HubCommand::ControlMain(Control::Signal(15)));
    assert_eq!(box_.receive(), Control::SignalProcess(15).frame(1));
    box_.hub.send(HubCommand::ShutDown(Duration::from_millis(1500)));
    assert_eq!(box_.receive(), Request::Shutdown { grace_ms: 1500 }.frame(2));
    box_.send(&Response::Done.frame(2));
    box_.agent = None;
    assert!(matches!(box_.event(), HubEvent::AgentLost(_)));
}

#[test]
fn the_number_of_peers_is_bounded() {
    let box_ = Fixture::running();
    let mut peers: Vec<TestPeer> = (0..MAX_PEERS).map(|_| box_.attached()).collect();
    let mut refused = box_.connect_peer();
    let why = Frame::read(&mut refused.0).unwrap().unwrap().decode().unwrap();
    assert!(matches!(&why, Event::Fatal { message } if message.contains("already")), "{why:?}");
    assert!(refused.is_hung_up_on());
    peers.pop();
    // The hub notices at its next pass.
    let admitted = (0..100).any(|_| {
        let mut peer = box_.connect_peer();
        let _ = hello().write(&mut peer.0);
        matches!(Frame::read(&mut peer.0), Ok(Some(frame)) if frame.kind == Kind::Hello)
    });
    assert!(admitted);
}

#[test]
fn the_client_of_the_agent_is_a_peer() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut box_ = Fixture::connected();
    let (ours, theirs) = UnixStream::pair().unwrap();
    box_.hub.send(HubCommand::Attach(theirs));
    ours.set_nonblocking(true).unwrap();
    let client = std::thread::spawn(move || {
        runtime.block_on(async {
            let socket = tokio::net::UnixStream::from_std(ours).unwrap();
            let client = AgentClient::connect(socket, 0).await.unwrap();
            let mut handle = client.exec(Exec { stdin: true, ..Exec::default() }).await.unwrap();
            assert_eq!(handle.pid(), 7);
            use tokio::io::AsyncWriteExt;
            handle.stdin.as_mut().unwrap().write_all(b"question").await.unwrap();
            handle.wait_with_output().await.unwrap()
        })
    });
    assert_eq!(box_.event(), HubEvent::MainAwaited);
    box_.start();
    box_.send(&Response::Started { pid: 7 }.frame(1));
    assert_eq!(box_.receive(), Frame::data(1, Channel::Stdin, *b"question"));
    assert_eq!(box_.receive(), Frame::end(1, Channel::Stdin));
    box_.send(&Frame::data(1, Channel::Stdout, *b"answer"));
    box_.send(&Frame::data(1, Channel::Stderr, *b"error"));
    box_.send(&Response::Exited(EXITED).frame(1));
    let output = client.join().unwrap();
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"answer"[..], &b"error"[..]));
    assert_eq!(output.status, EXITED);
}
