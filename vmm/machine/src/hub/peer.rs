//! A peer: a client that is attached to the main command. It speaks the agent's protocol as if it had started
//! the command.

use std::os::unix::net::UnixStream;

use boxlite_proto::frame::Channel;
use boxlite_proto::message::{Control, Failure, FailureKind, Request, Response};
use boxlite_proto::session::{Chunks, Server, ServerEvent, Violation};
use bytes::Bytes;

use super::link::{Link, LinkError};

/// A connection to a client.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) link: Link,
    pub(super) session: Server<()>,
    pub(super) attached: Option<Attached>,
    /// The client hung up; its input from before is still delivered.
    pub(super) disconnected: bool,
    /// The connection is closed once everything has been sent.
    pub(super) finishing: bool,
    /// The client owns the box: the end of the box waits for it to take all output, without a limit.
    pub(super) owner: bool,
}

/// A peer's attachment to the main command.
#[derive(Debug)]
pub(super) struct Attached {
    stream: u32,
    /// Whether the peer was told that the command runs, and so gets its output.
    pub(super) started: bool,
    pub(super) stdin: Input,
    outputs: [Output; 2],
    /// The end of the command, which the peer is told after all output.
    ending: Option<Ending>,
}

/// How an attachment ends.
#[derive(Clone, Debug)]
pub(super) enum Ending {
    /// With the agent's response.
    Response(Response),
    /// By closing the connection: how the command ended is unknown.
    HangUp,
}

/// Input from the peer to the command.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// Input that the command has not taken: at most a window.
    pub(super) queue: Chunks,
    /// The peer ended its input.
    pub(super) end: bool,
    /// Further input is dropped.
    refused: bool,
}

/// Output from the command to the peer.
#[derive(Debug, Default)]
struct Output {
    /// Output that the peer has not taken: at most a window, because the command gets credit only for
    /// output that all peers have taken.
    queue: Chunks,
    /// The command closed this output.
    end: bool,
    /// The peer does not read this output.
    closed: bool,
}

/// A peer's request to the hub.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PeerRequest {
    /// Attach to the main command, on this stream.
    Attach(u32),
    /// Stop sending this output.
    CloseOutput(Channel),
    /// Forward a control message to the command.
    Control(Control),
}

impl Peer {
    pub(super) fn new(socket: UnixStream) -> std::io::Result<Self> {
        let (link, session) = (Link::new(socket)?, Server::default());
        Ok(Self {
            link,
            session,
            attached: None,
            disconnected: false,
            finishing: false,
            owner: false,
        })
    }

    /// Whether the peer can be dropped.
    pub(super) fn is_finished(&self) -> bool {
        let stdin = self.attached.as_ref().is_some_and(|attached| attached.stdin.is_pending());
        self.disconnected && !stdin
            || self.finishing && self.attached.is_none() && self.session.waiting() == 0
    }

    /// Reads once. Adds requests to `requests`, in order, including those before an error.
    pub(super) fn receive(&mut self, requests: &mut Vec<PeerRequest>) -> Result<(), LinkError> {
        self.link.read()?;
        loop {
            match self.session.receive(&mut self.link.input) {
                Ok(Some(event)) => self.on_event(event, requests),
                Ok(None) => {
                    self.link.input.release();
                    return Ok(());
                }
                // The peer learns the supported version from the hub's hello.
                Err(Violation::Version { .. }) => {
                    self.finishing = true;
                    return Ok(());
                }
                Err(violation) => return Err(violation.into()),
            }
        }
    }

    fn on_event(&mut self, event: ServerEvent, requests: &mut Vec<PeerRequest>) {
        match event {
            // A finishing peer only receives.
            ServerEvent::Request { .. } | ServerEvent::Control { .. } if self.finishing => {}
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
                        let why = "this connection can only attach to the main command";
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
            // A client sends this when it drops the command, which is not its own.
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

    /// Refuses to attach the peer.
    pub(super) fn refuse(&mut self, stream: u32, why: &str) {
        self.session.respond(stream, &refusal(FailureKind::Other, why));
    }

    /// Attaches the peer, which waits for the main command.
    pub(super) fn attach(&mut self, stream: u32) {
        self.attached = Some(Attached {
            stream,
            started: false,
            stdin: Input::default(),
            outputs: Default::default(),
            ending: None,
        });
    }

    /// Tells a peer that waits for it that the main command runs.
    pub(super) fn start(&mut self, pid: u32) {
        let Some(attached) = self.attached.as_mut().filter(|attached| attached.is_waiting()) else {
            return;
        };
        attached.started = true;
        self.session.respond(attached.stream, &Response::Started { pid });
    }

    /// Queues output of the command.
    pub(super) fn output(&mut self, channel: Channel, bytes: &Bytes) {
        if let Some(output) = self.open_output(channel) {
            output.queue.push(bytes.clone());
        }
    }

    /// Ends an output, after what is queued.
    pub(super) fn output_ended(&mut self, channel: Channel) {
        if let Some(output) = self.open_output(channel) {
            output.end = true;
        }
    }

    /// Bytes of the running command's output that the peer has not taken.
    pub(super) fn held(&mut self, channel: Channel) -> usize {
        self.open_output(channel).map_or(0, |output| output.queue.len())
    }

    fn open_output(&mut self, channel: Channel) -> Option<&mut Output> {
        let disconnected = self.disconnected;
        let attached = self.attached.as_mut()?;
        let running = attached.started && attached.ending.is_none() && !disconnected;
        attached.output_mut(channel).filter(|output| running && !output.closed)
    }

    /// Ends the attachment, after what is queued.
    pub(super) fn end(&mut self, ending: Ending) {
        if let Some(attached) = &mut self.attached {
            attached.ending.get_or_insert(ending);
            attached.stdin = Input { refused: true, ..Input::default() };
        }
    }

    /// Closes the connection once everything has been sent.
    pub(super) fn finish(&mut self) {
        self.end(Ending::HangUp);
        self.finishing = true;
    }

    /// Whether [`pump`](Self::pump) could send more now.
    pub(super) fn can_pump(&self) -> bool {
        let Some(attached) = self.attached.as_ref().filter(|_| !self.disconnected) else {
            return false;
        };
        attached.started
            && attached.outputs.iter().zip(Channel::OUTPUTS).any(|(output, channel)| {
                !output.queue.is_empty() && self.session.output_room(attached.stream, channel) > 0
            })
    }

    /// Sends queued output as far as the peer's credit allows, and then the end.
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
            Some(Ending::HangUp) => self.finishing = true,
        }
        *attached = None;
    }

    /// Passes the peer's input to `send`, which takes as much as it can.
    pub(super) fn pump_input(&mut self, send: impl FnOnce(&mut Chunks) -> usize) {
        if let Some(attached) = self.attached.as_mut().filter(|attached| attached.started) {
            let taken = send(&mut attached.stdin.queue);
            self.session.input_taken(attached.stream, taken);
        }
    }

    /// Whether the peer's input has ended; `true` only once.
    pub(super) fn input_ended(&mut self) -> bool {
        self.attached.as_mut().filter(|attached| attached.started).is_some_and(|attached| {
            attached.stdin.queue.is_empty() && std::mem::take(&mut attached.stdin.end)
        })
    }

    /// Drops the peer's input and tells the peer: the command takes no more.
    pub(super) fn refuse_input(&mut self) {
        if let Some(attached) = self.attached.as_mut().filter(|attached| attached.started) {
            attached.stdin = Input { refused: true, ..Input::default() };
            self.session.close_input(attached.stream);
        }
    }

    /// Writes as much as the socket takes.
    pub(super) fn flush(&mut self) {
        self.link.flush(self.session.outbox());
    }
}

impl Attached {
    /// Whether the peer has not been told yet that the command runs.
    pub(super) fn is_waiting(&self) -> bool {
        !self.started && self.ending.is_none()
    }

    /// Whether the peer reads this output.
    pub(super) fn reads(&self, channel: Channel) -> bool {
        let output = channel.output_index().and_then(|index| self.outputs.get(index));
        output.is_some_and(|output| !output.closed)
    }

    /// Whether the peer has input for the running command.
    pub(super) fn has_input(&self) -> bool {
        self.started && self.stdin.is_pending()
    }

    fn output_mut(&mut self, channel: Channel) -> Option<&mut Output> {
        self.outputs.get_mut(channel.output_index()?)
    }
}

impl Output {
    /// Drops this output, queued and future.
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
