//! A hostile peer of each side of the agent protocol. The first byte of the input sets the size of the
//! pieces in which the rest arrives.
//!
//! `cargo fuzz run --fuzz-dir tests/fuzz session`

#![no_main]

use boxlite_proto::PROTOCOL_VERSION;
use boxlite_proto::credit::WINDOW;
use boxlite_proto::frame::{Channel, Frame};
use boxlite_proto::message::{Exec, Hello, Request, Response};
use boxlite_proto::session::{Assembler, Client, ClientEvent, Server, ServerEvent};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((size, bytes)) = bytes.split_first() else { return };
    let pieces = || bytes.chunks(usize::from(*size) + 1);
    as_agent(pieces());
    as_host(pieces());
    frames(bytes);
});

fn hello() -> Hello {
    Hello { version: PROTOCOL_VERSION, generation: 0, unix_time_ns: 0 }
}

/// The input as an agent's bytes, for a client that has sent one of every request.
fn as_agent<'a>(pieces: impl Iterator<Item = &'a [u8]>) {
    let mut client = Client::new(&hello());
    let exec = Exec { stdin: true, ..Exec::default() };
    for request in [
        Request::Exec(exec.clone()),
        Request::ExecDetached(exec),
        Request::CopyIn(Default::default()),
        Request::CopyOut(Default::default()),
        Request::Connect(Default::default()),
        Request::ExecServer(Default::default()),
        Request::Ping,
        Request::Metrics,
        Request::Processes,
        Request::ExecCounts,
        Request::Clock,
        Request::Stat(Default::default()),
    ] {
        client.request(&request, |id| id).expect("a small request");
    }
    let mut input = Assembler::default();
    input.extend(&hello().frame(0).to_bytes());
    for piece in pieces {
        input.extend(piece);
        loop {
            match client.receive(&mut input) {
                Ok(Some(ClientEvent::Output { stream, channel, data })) => {
                    assert!(client.output_held(stream, channel) <= WINDOW as usize);
                    client.output_taken(stream, channel, data.len());
                }
                Ok(Some(ClientEvent::Ended { stream, tag, .. })) => assert_eq!(stream, tag),
                Ok(Some(ClientEvent::InputRoom { stream } | ClientEvent::Started { stream, .. })) => {
                    client.send_input(stream, &[0; 1000]);
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
        client.outbox().clear();
    }
}

/// The input as a host's bytes, for a server that starts every command, answers a socket when its input
/// has ended, and answers every other request at once.
fn as_host<'a>(pieces: impl Iterator<Item = &'a [u8]>) {
    let mut server = Server::default();
    let mut input = Assembler::default();
    input.extend(&hello().frame(0).to_bytes());
    for piece in pieces {
        input.extend(piece);
        loop {
            match server.receive(&mut input) {
                Ok(Some(ServerEvent::Request { stream, request: Ok(Request::Exec(_)) })) => {
                    server.set_tag(stream, stream);
                    server.respond(stream, &Response::Started { pid: 1 });
                    let room = server.output_room(stream, Channel::Stdout);
                    server.send_output(stream, Channel::Stdout, &vec![0; room]);
                }
                Ok(Some(ServerEvent::Request { stream, request: Ok(Request::Connect(_)) })) => {
                    let room = server.output_room(stream, Channel::Stdout);
                    server.send_output(stream, Channel::Stdout, &vec![0; room]);
                    server.end_output(stream, Channel::Stdout);
                }
                Ok(Some(ServerEvent::InputEnded { stream })) => {
                    server.respond(stream, &Response::Done);
                }
                Ok(Some(ServerEvent::Request { stream, .. })) => {
                    server.respond(stream, &Response::Done);
                }
                Ok(Some(ServerEvent::Input { stream, data })) => {
                    server.input_taken(stream, data.len());
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
        server.outbox().clear();
    }
}

/// The input as frames: each is the same after it was written and read again.
fn frames(mut bytes: &[u8]) {
    let mut input = Assembler::default();
    input.extend(bytes);
    while let Ok(Some(frame)) = Frame::read(&mut bytes) {
        let again = Frame::read(&mut &frame.to_bytes()[..]).expect("our own bytes");
        assert_eq!(again.as_ref(), Some(&frame));
        assert_eq!(input.next_frame().expect("the same bytes"), Some(frame));
    }
}
