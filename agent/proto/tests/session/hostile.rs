//! Peers that break the protocol: a violation, no panic, bounded memory.

use std::slice::from_ref;

use boxlite_proto::frame::{Channel, Frame, Kind, MAX_DATA};
use boxlite_proto::guest::{FileKind, FileStat, MAX_LINK, MAX_NAME, Process, Stat};
use boxlite_proto::message::{
    Control, Event, Exec, ExitStatus, Failure, FailureKind, Hello, Request, Response,
};
use boxlite_proto::session::{
    Assembler, Client, ClientEvent, MAX_MESSAGE, MAX_STREAMS, Server, ServerEvent, Violation,
};
use proptest::collection::vec;
use proptest::prelude::*;

use super::{client_events, greeted, hello, server_events};

fn to_client(requests: &[Request], frames: &[Frame]) -> Result<Vec<ClientEvent<()>>, Violation> {
    let (mut client, _) = greeted();
    for request in requests {
        client.request(request, |_| ()).unwrap();
    }
    let events = frames.iter().map(|frame| client.receive_frame(frame.clone()));
    Ok(events.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

fn to_server(frames: &[Frame]) -> Result<Vec<ServerEvent>, Violation> {
    let (_, mut server) = greeted();
    let events = frames.iter().map(|frame| server.receive_frame(frame.clone()));
    Ok(events.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

fn refused<T: std::fmt::Debug>(result: Result<T, Violation>, expected: &str) {
    let text = result.unwrap_err().to_string();
    assert!(text.contains(expected), "{text:?} for {expected:?}");
}

#[test]
fn a_client_refuses_frames_that_no_agent_sends() {
    let exec = [Request::Exec(Exec { stdin: true, ..Exec::default() })];
    let started = Response::Started { pid: 1 }.frame(1);
    let data = |channel, length| Frame::data(1, channel, vec![0; length]);
    let exited = Response::Exited(ExitStatus::Code(0)).frame(1);
    let flood = vec![data(Channel::Stderr, MAX_DATA); 5];
    let cases: [(&[Frame], &str); 16] = [
        (&[hello().frame(0)], "unexpected frame on stream 0"),
        (&[Request::Ping.frame(1)], "unexpected request"),
        (&[Control::Kill.frame(1)], "unexpected control"),
        (&[data(Channel::Stdin, 1)], "unexpected standard input"),
        (&[Response::Done.frame(2)], "stream 2, which was never opened"),
        (&[Response::Done.frame(1)], "unexpected response"),
        (&[Response::Started { pid: 2 }.frame(1)], "unexpected response"),
        (&[exited, data(Channel::Stdout, 1)], "after the last"),
        (&flood, "flow control of Stderr"),
        (&[Frame::end(1, Channel::Stdout), data(Channel::Stdout, 1)], "unexpected output"),
        (&[Frame::end(1, Channel::Stdout), Frame::end(1, Channel::Stdout)], "unexpected end"),
        (&[Frame::end(1, Channel::Stdin), Frame::end(1, Channel::Stdin)], "unexpected end"),
        (&[Frame::credit(1, Channel::Stdin, 1)], "flow control of Stdin"),
        (&[Frame::credit(1, Channel::Stdout, 1)], "unexpected credit"),
        (&[Frame { stream: 1, kind: Kind::End, body: vec![].into() }], "malformed End"),
        (
            &[Frame { stream: 1, kind: Kind::Response, body: vec![200].into() }],
            "malformed Response",
        ),
    ];
    for (frames, expected) in cases {
        refused(to_client(&exec, &[from_ref(&started), frames].concat()), expected);
    }
    // A newer agent may send events that this host does not know.
    let unknown = Frame { stream: 0, kind: Kind::Event, body: vec![200].into() };
    assert!(to_client(&exec, &[unknown]).unwrap().is_empty());
    refused(to_client(&exec, &[data(Channel::Stdout, 1)]), "unexpected output");
    refused(to_client(&exec, &[Response::Exited(ExitStatus::Code(0)).frame(1)]), "response");
}

#[test]
fn each_request_allows_only_its_responses() {
    let stat = |length| FileStat {
        kind: FileKind::Symlink,
        size: 0,
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: 0,
        mtime_ns: 0,
        link_target: vec![b'x'; length],
    };
    let process = |length| Process { name: vec![b'n'; length], ..Process::default() };
    let requests = [
        (Request::Ping, Response::Done),
        (Request::Sync, Response::Done),
        (Request::Shutdown { grace_ms: 1 }, Response::Done),
        (Request::SetClock(Default::default()), Response::Done),
        (Request::CopyOut(Default::default()), Response::Done),
        (Request::ExecDetached(Exec::default()), Response::Detached { pid: 1 }),
        (Request::Metrics, Response::Metrics(Default::default())),
        (Request::ExecCounts, Response::ExecCounts(Default::default())),
        (Request::Processes, Response::Processes(vec![process(MAX_NAME)])),
        (Request::Stat(Stat::default()), Response::Stat(stat(MAX_LINK))),
        (Request::Clock, Response::Clock { monotonic_ns: 1 }),
        (Request::UnpackLayer, Response::Unpacked { entries: 1, bytes: 1 }),
        (Request::CopyIn(Default::default()), Response::Unpacked { entries: 1, bytes: 1 }),
        (Request::Connect(Default::default()), Response::Done),
    ];
    for (request, fitting) in &requests {
        for (_, answer) in &requests {
            let result = to_client(from_ref(request), &[answer.frame(1)]);
            assert_eq!(result.is_ok(), answer == fitting, "{request:?} answered by {answer:?}");
        }
        let failed = Failure { kind: FailureKind::Other, message: "x".repeat(1 << 20) };
        let failed = Response::Failed(failed).frame(1);
        let events = to_client(from_ref(request), &[failed]).unwrap();
        let [ClientEvent::Ended { response: Response::Failed(failure), .. }] = &events[..] else {
            panic!("{events:?}");
        };
        assert!(failure.message.len() <= MAX_MESSAGE);
        let started = Response::Started { pid: 1 }.frame(1);
        refused(to_client(from_ref(request), &[started]), "unexpected response");
    }
    let long = Response::Stat(stat(MAX_LINK + 1)).frame(1);
    refused(to_client(&[Request::Stat(Stat::default())], &[long]), "length of a link");
    let long = Response::Processes(vec![process(MAX_NAME + 1)]).frame(1);
    refused(to_client(&[Request::Processes], &[long]), "length of a process's name");
}

#[test]
fn data_flows_only_for_requests_that_have_data() {
    let packed = Frame::data(1, Channel::Stdout, *b"tar");
    assert!(to_client(&[Request::CopyOut(Default::default())], from_ref(&packed)).is_ok());
    let errors = Frame::data(1, Channel::Stderr, *b"x");
    refused(to_client(&[Request::CopyOut(Default::default())], &[errors]), "unexpected output");
    refused(to_client(&[Request::UnpackLayer], from_ref(&packed)), "unexpected output");
    refused(to_client(&[Request::Ping], &[packed]), "unexpected output");
    let socket = [Request::Connect(Default::default())];
    let (bytes, errors) = ([0; 3], Frame::data(1, Channel::Stderr, *b"x"));
    let bytes = Frame::data(1, Channel::Stdout, bytes);
    let end = Frame::end(1, Channel::Stdout);
    let ended = [bytes.clone(), end.clone(), Frame::end(1, Channel::Stdin)];
    assert_eq!(to_client(&socket, &ended).unwrap().len(), 3);
    refused(to_client(&socket, &[errors]), "unexpected output");
    refused(to_client(&socket, &[end.clone(), bytes]), "unexpected output");
    refused(to_client(&socket, &[Frame::end(1, Channel::Stderr)]), "unexpected end");
    refused(to_client(&[Request::CopyOut(Default::default())], &[end]), "unexpected end");
    let credit = Frame::credit(1, Channel::Stdin, 0);
    refused(to_client(&[Request::Ping], from_ref(&credit)), "unexpected credit");
    // Late credit, and a late close of the input.
    let late = [Response::Done.frame(1), credit, Frame::end(1, Channel::Stdin)];
    assert_eq!(to_client(&[Request::Ping], &late).unwrap().len(), 1);
}

#[test]
fn a_connection_begins_with_a_hello_of_the_same_version() {
    let other = Hello { version: 9999, ..hello() }.frame(0);
    let receive = |frame: &Frame| Client::<()>::new(&hello()).receive_frame(frame.clone());
    refused(receive(&other), "version 9999");
    refused(receive(&Response::Done.frame(0)), "no hello");
    refused(receive(&Response::Done.frame(1)), "no hello");
    refused(receive(&Event::Stage(boxlite_proto::message::Stage::Root).frame(0)), "an event");
    let fatal = receive(&Event::Fatal { message: "é".repeat(100_000) }.frame(0)).unwrap();
    let Some(ClientEvent::Event(Event::Fatal { message })) = fatal else { panic!("{fatal:?}") };
    assert!(message.len() <= MAX_MESSAGE && message.starts_with("éé"));
    let mut server = Server::<()>::default();
    refused(server.receive_frame(Request::Ping.frame(1)), "no hello");
    refused(server.receive_frame(other), "version 9999");
    let mut answer = Assembler::default();
    answer.extend(&super::drain(server.outbox()));
    assert_eq!(
        answer.next_frame().unwrap(),
        Some(hello().frame(0)),
        "the host gets the server's version"
    );
}

#[test]
fn a_server_refuses_frames_that_no_host_sends() {
    let exec = Request::Exec(Exec::default()).frame(1);
    let data = |length| Frame::data(1, Channel::Stdin, vec![0; length]);
    let flood = vec![data(MAX_DATA); 5];
    let cases: [(&[Frame], &str); 10] = [
        (&[hello().frame(0)], "unexpected hello"),
        (&[Request::Ping.frame(0)], "a request on stream 0"),
        (from_ref(&exec), "in use"),
        (&[Response::Done.frame(1)], "only an agent sends"),
        (&[Event::Fatal { message: String::new() }.frame(0)], "only an agent sends"),
        (&[Frame::data(1, Channel::Stdout, *b"x")], "only an agent sends"),
        (&flood, "flow control of Stdin"),
        (&[Frame::end(1, Channel::Stdin), data(1)], "input after its end"),
        (&[Frame::credit(1, Channel::Stdout, 1)], "flow control of Stdout"),
        (&[Frame::credit(1, Channel::Stdin, 1)], "credit for standard input"),
    ];
    for (frames, expected) in cases {
        refused(to_server(&[from_ref(&exec), frames].concat()), expected);
    }
    // A newer host may send control messages and requests that this agent does not know.
    let control = Frame { stream: 1, kind: Kind::Control, body: vec![200].into() };
    assert_eq!(to_server(&[exec.clone(), control]).unwrap().len(), 1);
    let strange = Frame { stream: 2, kind: Kind::Request, body: vec![200].into() };
    let events = to_server(&[strange]).unwrap();
    assert!(matches!(events[..], [ServerEvent::Request { stream: 2, request: Err(_) }]));
    // Frames on a stream that has ended are ignored.
    let late = [data(1), Frame::end(1, Channel::Stdin), Control::Kill.frame(1)];
    assert!(to_server(&late).unwrap().is_empty());
}

#[test]
fn requests_without_an_answer_are_bounded() {
    let (_, mut server) = greeted();
    for stream in 1..=MAX_STREAMS as u32 {
        assert!(server.receive_frame(Request::Ping.frame(stream)).unwrap().is_some());
    }
    let one_more = Request::Ping.frame(u32::MAX);
    assert!(server.receive_frame(one_more.clone()).unwrap().is_none());
    assert!(!server.outbox().is_empty(), "it is refused");
    assert_eq!(server.respond(1, &Response::Done), None);
    assert!(server.receive_frame(one_more).unwrap().is_some());
}

proptest! {
    #[test]
    fn no_bytes_harm_a_session(bytes in vec(any::<u8>(), 0..400)) {
        let mut input = Assembler::default();
        input.extend(&bytes);
        client_events(&mut greeted().0, &mut input);
        let mut input = Assembler::default();
        input.extend(&bytes);
        server_events(&mut greeted().1, &mut input);
    }

    #[test]
    fn no_frames_harm_a_session(
        frames in vec((0_u32..4, 0_u8..14, vec(any::<u8>(), 0..8)), 0..60),
    ) {
        let (mut client, mut server) = greeted();
        for request in [
            Request::Exec(Exec::default()),
            Request::UnpackLayer,
            Request::Connect(Default::default()),
        ] {
            client.request(&request, |_| ()).unwrap();
        }
        let (mut client_broken, mut server_broken) = (false, false);
        for (stream, kind, body) in frames {
            let Some(kind) = Kind::from_u8(kind) else { continue };
            let body: Vec<u8> = body.into_iter().take(kind.max_body()).collect();
            let frame = Frame { stream, kind, body: body.into() };
            if !client_broken {
                client_broken = client.receive_frame(frame.clone()).is_err();
            }
            if !server_broken {
                match server.receive_frame(frame) {
                    Ok(Some(ServerEvent::Request { stream, .. })) if stream % 2 == 0 => {
                        server.respond(stream, &Response::Done);
                    }
                    result => server_broken = result.is_err(),
                }
            }
        }
        let _ = (super::drain(client.outbox()), super::drain(server.outbox()));
    }
}
