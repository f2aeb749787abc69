//! A client and a server, with an arbitrarily slow wire between them: credit is never exceeded, no data is lost, and
//! the order is kept.

use boxlite_proto::credit::WINDOW;
use boxlite_proto::frame::Channel;
use boxlite_proto::message::{Connect, Exec, ExitStatus, Request, Response};
use boxlite_proto::session::{Assembler, Chunks, Client, ClientEvent, Outbox, Server, ServerEvent};
use bytes::Buf;
use proptest::collection::vec;
use proptest::prelude::*;

use super::greeted;

/// Commands, and last a socket, each direction of which may end before the other.
const STREAMS: u32 = 3;
const SOCKET: u32 = STREAMS;

#[derive(Clone, Debug)]
enum Step {
    SendInput(u32, usize),
    TakeInput(u32, usize),
    SendOutput(u32, Channel, usize),
    TakeOutput(u32, Channel, usize),
    EndSocketInput,
    EndSocketOutput,
    /// This many bytes travel to the agent.
    ToAgent(usize),
    ToHost(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let amount = || prop_oneof![1..50_usize, 1..20_000_usize, Just(1 << 20)];
    let stream = || 1..=STREAMS;
    let output = || prop::sample::select(Channel::OUTPUTS.to_vec());
    prop_oneof![
        20 => (stream(), amount()).prop_map(|(stream, n)| Step::SendInput(stream, n)),
        20 => (stream(), amount()).prop_map(|(stream, n)| Step::TakeInput(stream, n)),
        20 => (stream(), output(), amount()).prop_map(|(s, c, n)| Step::SendOutput(s, c, n)),
        20 => (stream(), output(), amount()).prop_map(|(s, c, n)| Step::TakeOutput(s, c, n)),
        1 => Just(Step::EndSocketInput),
        1 => Just(Step::EndSocketOutput),
        40 => amount().prop_map(Step::ToAgent),
        40 => amount().prop_map(Step::ToHost),
    ]
}

/// Data in one direction. Its bytes count up, so that a lost or reordered byte is detected.
#[derive(Default)]
struct Flow {
    sent: usize,
    arrived: usize,
    taken: usize,
    ended: bool,
}

impl Flow {
    fn next(&mut self, count: usize) -> Vec<u8> {
        let bytes = (self.sent..self.sent + count).map(|i| (i % 251) as u8).collect();
        self.sent += count;
        bytes
    }

    fn arrive(&mut self, bytes: &[u8]) {
        for byte in bytes {
            assert_eq!(*byte, (self.arrived % 251) as u8, "byte {}", self.arrived);
            self.arrived += 1;
        }
        assert!(self.sent - self.taken <= WINDOW as usize, "more than the window");
    }

    fn take(&mut self, most: usize) -> usize {
        let taken = most.min(self.arrived - self.taken);
        self.taken += taken;
        taken
    }
}

struct Pair {
    client: Client<()>,
    server: Server<()>,
    to_client: Assembler,
    to_server: Assembler,
    inputs: [Flow; STREAMS as usize],
    outputs: [[Flow; 2]; STREAMS as usize],
    /// Whether the socket's output has ended.
    socket_ended: bool,
    exited: usize,
}

fn at(stream: u32) -> usize {
    stream as usize - 1
}

impl Pair {
    fn new() -> Self {
        let (mut client, server) = greeted();
        for stream in 1..SOCKET {
            let exec = Exec { stdin: true, ..Exec::default() };
            assert_eq!(client.request(&Request::Exec(exec), |_| ()), Ok(stream));
        }
        let connect = Request::Connect(Connect::default());
        assert_eq!(client.request(&connect, |_| ()), Ok(SOCKET));
        let (to_client, to_server) = Default::default();
        let (inputs, outputs) = Default::default();
        Self {
            client,
            server,
            to_client,
            to_server,
            inputs,
            outputs,
            socket_ended: false,
            exited: 0,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::SendInput(stream, most) => {
                let room = self.client.input_room(stream).min(most);
                let mut bytes = Chunks::default();
                bytes.extend(&self.inputs[at(stream)].next(room));
                let sent = match most % 2 {
                    0 => self.client.send_input_from(stream, &mut bytes),
                    _ => self.client.send_input(stream, &bytes.copy_to_bytes(room)),
                };
                assert_eq!(sent, room);
            }
            Step::TakeInput(stream, most) => {
                let taken = self.inputs[at(stream)].take(most);
                self.server.input_taken(stream, taken);
            }
            Step::EndSocketInput => self.client.end_input(SOCKET),
            Step::EndSocketOutput => self.end_socket_output(),
            Step::SendOutput(SOCKET, channel, _)
                if channel == Channel::Stderr || self.socket_ended => {}
            Step::SendOutput(stream, channel, most) => {
                let room = self.server.output_room(stream, channel).min(most);
                let bytes = self.outputs[at(stream)][index(channel)].next(room);
                self.server.send_output(stream, channel, &bytes);
            }
            Step::TakeOutput(stream, channel, most) => {
                let flow = &mut self.outputs[at(stream)][index(channel)];
                assert_eq!(self.client.output_held(stream, channel), flow.arrived - flow.taken);
                let taken = flow.take(most);
                self.client.output_taken(stream, channel, taken);
            }
            Step::ToAgent(most) => self.travel_to_agent(most),
            Step::ToHost(most) => self.travel_to_host(most),
        }
    }

    fn end_socket_output(&mut self) {
        self.server.end_output(SOCKET, Channel::Stdout);
        self.socket_ended = true;
    }

    fn travel_to_agent(&mut self, most: usize) {
        travel(self.client.outbox(), &mut self.to_server, most);
        while let Some(event) = self.server.receive(&mut self.to_server).unwrap() {
            match event {
                ServerEvent::Request { stream: SOCKET, request } => {
                    assert!(matches!(request, Ok(Request::Connect(_))), "{request:?}");
                }
                ServerEvent::Request { stream, request } => {
                    assert!(matches!(request, Ok(Request::Exec(_))));
                    assert_eq!(self.server.respond(stream, &Response::Started { pid: 1 }), None);
                }
                ServerEvent::Input { stream, data } => self.inputs[at(stream)].arrive(&data),
                ServerEvent::InputEnded { stream } => self.inputs[at(stream)].ended = true,
                ServerEvent::OutputRoom { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn travel_to_host(&mut self, most: usize) {
        travel(self.server.outbox(), &mut self.to_client, most);
        while let Some(event) = self.client.receive(&mut self.to_client).unwrap() {
            match event {
                ClientEvent::Started { pid: 1, .. } | ClientEvent::InputRoom { .. } => {}
                ClientEvent::Output { stream, channel, data } => {
                    self.outputs[at(stream)][index(channel)].arrive(&data);
                }
                ClientEvent::OutputEnded { stream, channel } => {
                    self.outputs[at(stream)][index(channel)].ended = true;
                }
                ClientEvent::Ended { stream, response, .. } => {
                    assert_eq!(response, last(stream));
                    self.exited += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Delivers all data, and takes it.
    fn settle(&mut self) {
        loop {
            self.travel_to_agent(usize::MAX);
            self.travel_to_host(usize::MAX);
            for stream in 1..=STREAMS {
                self.step(Step::TakeInput(stream, usize::MAX));
                for channel in Channel::OUTPUTS {
                    self.step(Step::TakeOutput(stream, channel, usize::MAX));
                }
            }
            if self.client.outbox().is_empty() && self.server.outbox().is_empty() {
                return;
            }
        }
    }

    fn finish(mut self) {
        self.settle();
        // More data can be sent, whatever the steps were.
        for stream in 1..=STREAMS {
            let before = self.inputs[at(stream)].sent;
            if self.client.is_input_open(stream) {
                self.step(Step::SendInput(stream, usize::MAX));
                let sent = self.inputs[at(stream)].sent - before;
                assert!(sent >= WINDOW as usize * 3 / 4, "starved");
            }
            let ended = stream == SOCKET && self.socket_ended;
            assert!(ended || self.server.output_room(stream, Channel::Stdout) > 0, "starved");
            self.client.end_input(stream);
        }
        self.settle();
        for stream in 1..SOCKET {
            for channel in Channel::OUTPUTS {
                self.server.end_output(stream, channel);
            }
            self.server.respond(stream, &last(stream));
        }
        self.end_socket_output();
        self.server.respond(SOCKET, &last(SOCKET));
        self.settle();
        assert_eq!(self.exited, STREAMS as usize);
        self.outputs[at(SOCKET)][index(Channel::Stderr)].ended = true;
        for flow in self.inputs.iter().chain(self.outputs.iter().flatten()) {
            assert!(flow.ended && flow.arrived == flow.sent, "bytes are lost");
        }
    }
}

/// The last answer on a stream.
fn last(stream: u32) -> Response {
    match stream {
        SOCKET => Response::Done,
        _ => Response::Exited(ExitStatus::Code(0)),
    }
}

fn index(channel: Channel) -> usize {
    channel.output_index().unwrap()
}

/// Moves bytes over the wire.
fn travel(from: &mut Outbox, to: &mut Assembler, most: usize) {
    let mut left = most;
    let _ = from.write_with(|slices| {
        let Some(first) = slices.first().filter(|_| left > 0) else { return Ok::<_, ()>(0) };
        let n = first.len().min(left);
        to.extend(&first[..n]);
        left -= n;
        Ok(n)
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_is_lost_moved_or_sent_without_credit(steps in vec(step(), 0..400)) {
        let mut pair = Pair::new();
        pair.travel_to_agent(usize::MAX);
        pair.travel_to_host(usize::MAX);
        steps.into_iter().for_each(|step| pair.step(step));
        pair.finish();
    }
}

#[test]
fn the_close_of_a_channel_is_reported_once() {
    let mut pair = Pair::new();
    pair.travel_to_agent(usize::MAX);
    pair.travel_to_host(usize::MAX);
    pair.client.close_output(1, Channel::Stdout);
    pair.client.close_output(1, Channel::Stdout);
    travel(pair.client.outbox(), &mut pair.to_server, usize::MAX);
    let closed = pair.server.receive(&mut pair.to_server).unwrap();
    assert!(matches!(
        closed,
        Some(ServerEvent::OutputClosed { stream: 1, channel: Channel::Stdout })
    ));
    assert!(pair.server.receive(&mut pair.to_server).unwrap().is_none());
    assert_eq!(pair.server.output_room(1, Channel::Stdout), 0);
    pair.server.end_output(1, Channel::Stdout);
    assert!(pair.server.outbox().is_empty(), "the host knows");
    pair.server.close_input(2);
    pair.server.close_input(2);
    travel(pair.server.outbox(), &mut pair.to_client, usize::MAX);
    let closed = pair.client.receive(&mut pair.to_client).unwrap();
    assert!(matches!(closed, Some(ClientEvent::InputClosed { stream: 2 })));
    assert!(pair.client.receive(&mut pair.to_client).unwrap().is_none());
    assert!(!pair.client.is_input_open(2) && pair.client.input_room(2) == 0);
    pair.client.end_input(2);
    assert!(pair.client.outbox().is_empty(), "the agent knows");
}
