//! A peer: somebody who has attached to the main command and speaks the agent's protocol, as if
//! the command were its own.

use std::os::unix::net::UnixStream;

use boxlite_proto::frame::Channel;
use boxlite_proto::message::{Control, Failure, FailureKind, Request, Response};
use boxlite_proto::session::{Chunks, Server, ServerEvent, Violation};
use bytes::Bytes;

use super::link::{Broken, Link};

/// A connection to somebody.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) link: Link,
    pub(super) session: Server<()>,
    pub(super) attached: Option<Attached>,
    /// It hung up; what it had sent before is still delivered.
    pub(super) gone: bool,
    /// It is hung up on once all has left.
    pub(super) leaving: bool,
    /// The box is its own: what it has not taken is waited for, however long that takes.
    pub(super) owner: bool,
}

/// Its hold on the main command.
#[derive(Debug)]
pub(super) struct Attached {
    stream: u32,
    /// Whether it was told that the command runs, and gets output.
    pub(super) started: bool,
    pub(super) stdin: Input,
    outputs: [Output; 2],
    /// The last it is told, after all output.
    ending: Option<Ending>,
}

/// How it ends for a peer.
#[derive(Clone, Debug)]
pub(super) enum Ending {
    /// As the agent said.
    Response(Response),
    /// Nobody knows how the command ended.
    HangUp,
}

/// From the peer to the command.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// At most a window.
    pub(super) queue: Chunks,
    /// The peer said that no more comes.
    pub(super) end: bool,
    /// No more is taken.
    refused: bool,
}

/// From the command to the peer.
#[derive(Debug, Default)]
struct Output {
    /// What it has not taken: at most a window, for the command's own is only opened again by
    /// what all have taken.
    queue: Chunks,
    /// No more comes.
    end: bool,
    /// The peer does not read it.
    closed: bool,
}

/// What a peer wants of the hub.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PeerRequest {
    /// The main command, on that stream.
    Attach(u32),
    /// No more of that output.
    CloseOutput(Channel),
    /// That the command is told something.
    Control(Control),
}

impl Peer {
    pub(super) fn new(socket: UnixStream) -> std::io::Result<Self> {
        let (link, session) = (Link::new(socket)?, Server::default());
        Ok(Self { link, session, attached: None, gone: false, leaving: false, owner: false })
    }

    /// Whether nothing has to be done for it any more.
    pub(super) fn is_over(&self) -> bool {
        let stdin = self.attached.as_ref().is_some_and(|attached| attached.stdin.is_pending());
        self.gone && !stdin
            || self.leaving && self.attached.is_none() && self.session.waiting() == 0
    }

    /// Reads once. What it wants is added to `requests`, in order, also what came before an error.
    pub(super) fn receive(&mut self, requests: &mut Vec<PeerRequest>) -> Result<(), Broken> {
        self.link.read()?;
        loop {
            match self.session.receive(&mut self.link.input) {
                Ok(Some(event)) => self.on_event(event, requests),
                Ok(None) => {
                    self.link.input.release();
                    return Ok(());
                }
                // It sees from our hello which version it would have to speak.
                Err(Violation::Version { .. }) => {
                    self.leaving = true;
                    return Ok(());
                }
                Err(violation) => return Err(violation.into()),
            }
        }
    }

    fn on_event(&mut self, event: ServerEvent, requests: &mut Vec<PeerRequest>) {
        match event {
            // Only what is left for it is of interest.
            ServerEvent::Request { .. } | ServerEvent::Control { .. } if self.leaving => {}
            ServerEvent::Request { stream, request: Ok(Request::Exec(_)) }
                if self.attached.is_none() =>
            {
                requests.push(PeerRequest::Attach(stream));
            }
            ServerEvent::Request { stream, request } => {
                let answer = match request {
                    Ok(Request::Ping) => Response::Done,
                    Ok(Request::Exec(_)) => {
                        refusal(FailureKind::Other, "this connection is attached already")
                    }
                    _ => {
                        let why = "here is only the main command to attach to";
                        refusal(FailureKind::Unsupported, why)
                    }
                };
                self.session.respond(stream, &answer);
            }
            ServerEvent::Hello(_) | ServerEvent::OutputRoom { .. } => {}
            ServerEvent::Input { stream, data } => {
                if let Some(attached) = self.attached_on(stream).filter(|a| !a.stdin.refused) {
                    attached.stdin.queue.push(data);
                }
            }
            ServerEvent::InputEnded { stream } => {
                if let Some(attached) = self.attached_on(stream) {
                    attached.stdin.end = !attached.stdin.refused;
                }
            }
            ServerEvent::OutputClosed { stream, channel } => {
                if let Some(output) = self.attached_on(stream).and_then(|a| a.output_mut(channel)) {
                    output.close();
                    requests.push(PeerRequest::CloseOutput(channel));
                }
            }
            // Said by a client that loses interest; the command is not its own.
            ServerEvent::Control { control: Control::Kill, .. } => {}
            ServerEvent::Control { stream, control } => {
                if self.attached_on(stream).is_some_and(|attached| attached.ending.is_none()) {
                    requests.push(PeerRequest::Control(control));
                }
            }
        }
    }

    fn attached_on(&mut self, stream: u32) -> Option<&mut Attached> {
        self.attached.as_mut().filter(|attached| attached.stream == stream)
    }

    /// Refuses the main command.
    pub(super) fn refuse(&mut self, stream: u32, why: &str) {
        self.session.respond(stream, &refusal(FailureKind::Other, why));
    }

    /// The peer waits for the main command.
    pub(super) fn attach(&mut self, stream: u32) {
        self.attached = Some(Attached {
            stream,
            started: false,
            stdin: Input::default(),
            outputs: Default::default(),
            ending: None,
        });
    }

    /// The main command runs: tells the peer, if it waits for that.
    pub(super) fn start(&mut self, pid: u32) {
        let Some(attached) = self.attached.as_mut().filter(|attached| attached.is_waiting()) else {
            return;
        };
        attached.started = true;
        self.session.respond(attached.stream, &Response::Started { pid });
    }

    /// The command wrote something.
    pub(super) fn output(&mut self, channel: Channel, bytes: &Bytes) {
        if let Some(output) = self.open_output(channel) {
            output.queue.push(bytes.clone());
        }
    }

    /// The command writes nothing more there.
    pub(super) fn output_ended(&mut self, channel: Channel) {
        if let Some(output) = self.open_output(channel) {
            output.end = true;
        }
    }

    /// Bytes of the running command that the peer has not taken.
    pub(super) fn held(&mut self, channel: Channel) -> usize {
        self.open_output(channel).map_or(0, |output| output.queue.len())
    }

    fn open_output(&mut self, channel: Channel) -> Option<&mut Output> {
        let gone = self.gone;
        let attached = self.attached.as_mut()?;
        let running = attached.started && attached.ending.is_none() && !gone;
        attached.output_mut(channel).filter(|output| running && !output.closed)
    }

    /// The command that it is attached to is over.
    pub(super) fn end(&mut self, ending: Ending) {
        if let Some(attached) = &mut self.attached {
            attached.ending.get_or_insert(ending);
            attached.stdin = Input { refused: true, ..Input::default() };
        }
    }

    /// Hangs up when all has left.
    pub(super) fn leave(&mut self) {
        self.end(Ending::HangUp);
        self.leaving = true;
    }

    /// Whether [`pump`](Self::pump) would hand out something now.
    pub(super) fn can_pump(&self) -> bool {
        let Some(attached) = self.attached.as_ref().filter(|_| !self.gone) else { return false };
        attached.started
            && attached.outputs.iter().zip(Channel::OUTPUTS).any(|(output, channel)| {
                !output.queue.is_empty() && self.session.output_room(attached.stream, channel) > 0
            })
    }

    /// Hands out what the peer has credit and room for.
    pub(super) fn pump(&mut self) {
        let Self { link, session, attached, .. } = self;
        let Some(running) = attached else { return };
        if link.is_write_closed() {
            running.outputs.iter_mut().for_each(Output::close);
        }
        if !running.started && running.ending.is_none() {
            return;
        }
        for (output, channel) in running.outputs.iter_mut().zip(Channel::OUTPUTS) {
            session.send_output_from(running.stream, channel, &mut output.queue);
            if output.end && output.queue.is_empty() {
                session.end_output(running.stream, channel);
            }
        }
        if running.outputs.iter().any(|output| !output.queue.is_empty()) {
            return;
        }
        match running.ending.take() {
            None => return,
            Some(Ending::Response(response)) => drop(session.respond(running.stream, &response)),
            Some(Ending::HangUp) => self.leaving = true,
        }
        *attached = None;
    }

    /// Hands the peer's input to `send`, which takes as much as it can.
    pub(super) fn pump_input(&mut self, send: impl FnOnce(&mut Chunks) -> usize) {
        if let Some(attached) = self.attached.as_mut().filter(|attached| attached.started) {
            let taken = send(&mut attached.stdin.queue);
            self.session.input_taken(attached.stream, taken);
        }
    }

    /// Whether the peer's input has come to its end; true once.
    pub(super) fn input_ended(&mut self) -> bool {
        self.attached.as_mut().filter(|attached| attached.started).is_some_and(|attached| {
            attached.stdin.queue.is_empty() && std::mem::take(&mut attached.stdin.end)
        })
    }

    /// The command takes no more input.
    pub(super) fn refuse_input(&mut self) {
        if let Some(attached) = self.attached.as_mut().filter(|attached| attached.started) {
            attached.stdin = Input { refused: true, ..Input::default() };
            self.session.close_input(attached.stream);
        }
    }

    /// Sends what can be sent now.
    pub(super) fn flush(&mut self) {
        self.link.flush(self.session.outbox());
    }
}

impl Attached {
    /// Whether it has not been told yet that the command runs.
    pub(super) fn is_waiting(&self) -> bool {
        !self.started && self.ending.is_none()
    }

    /// Whether it takes that output.
    pub(super) fn reads(&self, channel: Channel) -> bool {
        let output = channel.output_index().and_then(|index| self.outputs.get(index));
        output.is_some_and(|output| !output.closed)
    }

    /// Whether it has input for the command that runs.
    pub(super) fn has_input(&self) -> bool {
        self.started && self.stdin.is_pending()
    }

    fn output_mut(&mut self, channel: Channel) -> Option<&mut Output> {
        self.outputs.get_mut(channel.output_index()?)
    }
}

impl Output {
    /// Nobody reads it.
    fn close(&mut self) {
        self.closed = true;
        self.queue.clear();
    }
}

impl Input {
    fn is_pending(&self) -> bool {
        !self.queue.is_empty() || self.end
    }
}

fn refusal(kind: FailureKind, why: &str) -> Response {
    Response::Failed(Failure { kind, message: why.to_owned() })
}
