//! A peer: somebody who has attached to the main command and speaks the agent's protocol, as if
//! the command were its own.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;

use boxlite_proto::PROTOCOL_VERSION;
use boxlite_proto::credit::{ReceiveWindow, SendWindow};
use boxlite_proto::frame::{Channel, Frame, Kind, MAX_DATA};
use boxlite_proto::message::{Control, Failure, FailureKind, Hello, Request, Response};

use super::link::{Broken, Link};

/// A peer's socket is given more only when fewer bytes wait for it.
const OUT_HIGH: usize = 256 << 10;

/// A connection to somebody.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) link: Link,
    greeted: bool,
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
    pub(super) queue: VecDeque<u8>,
    pub(super) window: ReceiveWindow,
    /// The peer said that no more comes.
    pub(super) end: bool,
    /// The peer was told that no more is taken.
    refused: bool,
}

/// From the command to the peer.
#[derive(Debug, Default)]
struct Output {
    /// What it has not taken: at most a window, for the command's own is only opened again by
    /// what all have taken.
    queue: VecDeque<u8>,
    window: SendWindow,
    /// No more comes.
    end: bool,
    /// The peer was told so.
    end_sent: bool,
    /// The peer does not read it.
    closed: bool,
}

/// What a peer wants of the hub.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// The main command, on that stream.
    Attach(u32),
    /// No more of that output.
    Unread(Channel),
    /// That the command is told something.
    Control(Control),
}

/// Where a channel of output is in an array.
pub(super) fn index(channel: Channel) -> Option<usize> {
    match channel {
        Channel::Stdin => None,
        Channel::Stdout => Some(0),
        Channel::Stderr => Some(1),
    }
}

/// The channels of output.
pub(super) const OUTPUTS: [Channel; 2] = [Channel::Stdout, Channel::Stderr];

impl Peer {
    pub(super) fn new(socket: UnixStream) -> std::io::Result<Self> {
        let link = Link::new(socket)?;
        let (attached, owner) = (None, false);
        Ok(Self { link, greeted: false, attached, gone: false, leaving: false, owner })
    }

    /// Whether nothing has to be done for it any more.
    pub(super) fn is_over(&self) -> bool {
        let stdin = self.attached.as_ref().is_some_and(|attached| attached.stdin.is_pending());
        self.gone && !stdin || self.leaving && self.attached.is_none() && self.link.waiting() == 0
    }

    /// Takes a frame. Wishes are added to `wishes`, in their order.
    pub(super) fn receive(&mut self, frame: &Frame, wishes: &mut Vec<Wish>) -> Result<(), Broken> {
        match frame.kind {
            // Only what is left for it is of interest.
            Kind::Hello | Kind::Request | Kind::Control if self.leaving => {}
            Kind::Hello if !self.greeted => self.greet(&frame.decode()?),
            _ if !self.greeted => return Err(Broken::Protocol("the first frame is not Hello")),
            Kind::Request => self.request(frame, wishes)?,
            Kind::Stdin | Kind::End | Kind::Credit | Kind::Control => {
                let running = self.attached.as_mut().filter(|a| a.stream == frame.stream);
                // A stream that has just ended, and the peer did not know yet.
                let Some(attached) = running else { return Ok(()) };
                attached.receive(frame, wishes)?;
            }
            _ => return Err(Broken::Protocol("a frame that only the agent sends")),
        }
        Ok(())
    }

    fn greet(&mut self, hello: &Hello) {
        let ours = Hello { version: PROTOCOL_VERSION, generation: 0, unix_time_ns: 0 };
        self.link.push(&ours.frame(0));
        self.greeted = true;
        // It sees from the answer which version it would have to speak.
        self.leaving = hello.version != PROTOCOL_VERSION;
    }

    fn request(&mut self, frame: &Frame, wishes: &mut Vec<Wish>) -> Result<(), Broken> {
        if frame.stream == 0 {
            return Err(Broken::Protocol("a request on stream 0"));
        }
        let answer = match frame.decode::<Request>() {
            Ok(Request::Ping) => Response::Done,
            Ok(Request::Exec(_)) if self.attached.is_some() => {
                refusal(FailureKind::Other, "this connection is attached already")
            }
            Ok(Request::Exec(_)) => {
                wishes.push(Wish::Attach(frame.stream));
                return Ok(());
            }
            _ => refusal(FailureKind::Unsupported, "here is only the main command to attach to"),
        };
        self.link.push(&answer.frame(frame.stream));
        Ok(())
    }

    /// Refuses the main command.
    pub(super) fn refuse(&mut self, stream: u32, why: &str) {
        self.link.push(&refusal(FailureKind::Other, why).frame(stream));
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
        self.link.push(&Response::Started { pid }.frame(attached.stream));
    }

    /// The command wrote something.
    pub(super) fn output(&mut self, channel: Channel, bytes: &[u8]) {
        if let Some(output) = self.open_output(channel) {
            output.queue.extend(bytes);
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
        attached.outputs.get_mut(index(channel)?).filter(|output| running && !output.closed)
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
            && self.link.waiting() < OUT_HIGH
            && attached
                .outputs
                .iter()
                .any(|output| !output.queue.is_empty() && output.window.available() > 0)
    }

    /// Hands out what the peer has credit and room for.
    pub(super) fn pump(&mut self) {
        let Self { link, attached, .. } = self;
        let Some(running) = attached else { return };
        if link.is_deaf() {
            running.outputs.iter_mut().for_each(Output::close);
        }
        if !running.started && running.ending.is_none() {
            return;
        }
        for (output, channel) in running.outputs.iter_mut().zip(OUTPUTS) {
            while !output.queue.is_empty() && link.waiting() < OUT_HIGH {
                let n = output.queue.len().min(output.window.available()).min(MAX_DATA);
                if n == 0 {
                    break;
                }
                output.window.spend(n);
                let bytes: Vec<u8> = output.queue.drain(..n).collect();
                link.push_parts(running.stream, channel.kind(), &bytes);
            }
            let due = output.end && output.queue.is_empty() && !output.closed;
            if due && !std::mem::replace(&mut output.end_sent, true) {
                link.push(&Frame::end(running.stream, channel));
            }
        }
        if running.outputs.iter().any(|output| !output.queue.is_empty()) {
            return;
        }
        match running.ending.take() {
            None => return,
            Some(Ending::Response(response)) => link.push(&response.frame(running.stream)),
            Some(Ending::HangUp) => self.leaving = true,
        }
        *attached = None;
    }

    /// The command took `bytes` of the peer's input.
    pub(super) fn input_taken(&mut self, bytes: usize) {
        let Some(attached) = &mut self.attached else { return };
        if let Some(credit) = attached.stdin.window.take(bytes) {
            self.link.push(&Frame::credit(attached.stream, Channel::Stdin, credit));
        }
    }

    /// The command takes no more input.
    pub(super) fn refuse_input(&mut self) {
        let Some(attached) = self.attached.as_mut().filter(|attached| attached.started) else {
            return;
        };
        attached.stdin.queue = VecDeque::new();
        attached.stdin.end = false;
        if !std::mem::replace(&mut attached.stdin.refused, true) {
            self.link.push(&Frame::end(attached.stream, Channel::Stdin));
        }
    }
}

impl Attached {
    /// Whether it has not been told yet that the command runs.
    pub(super) fn is_waiting(&self) -> bool {
        !self.started && self.ending.is_none()
    }

    /// Whether it has input for the command that runs.
    /// Whether it takes that output.
    pub(super) fn reads(&self, channel: Channel) -> bool {
        index(channel)
            .and_then(|index| self.outputs.get(index))
            .is_some_and(|output| !output.closed)
    }

    pub(super) fn has_input(&self) -> bool {
        self.started && self.stdin.is_pending()
    }

    fn receive(&mut self, frame: &Frame, wishes: &mut Vec<Wish>) -> Result<(), Broken> {
        let broken_credit = |_| Broken::Protocol("flow control");
        match frame.kind {
            Kind::Stdin if self.stdin.end => {
                return Err(Broken::Protocol("input after its end"));
            }
            Kind::Stdin => {
                self.stdin.window.receive(frame.body.len()).map_err(broken_credit)?;
                if !self.stdin.refused {
                    self.stdin.queue.extend(&frame.body);
                }
            }
            Kind::End => match index(frame.ended_channel()?) {
                None => self.stdin.end = !self.stdin.refused,
                Some(index) => {
                    if let Some(output) = self.outputs.get_mut(index) {
                        output.close();
                    }
                    wishes.extend(OUTPUTS.get(index).copied().map(Wish::Unread));
                }
            },
            Kind::Credit => {
                let (channel, bytes) = frame.granted_credit()?;
                let output = index(channel).and_then(|index| self.outputs.get_mut(index));
                let output = output.ok_or(Broken::Protocol("credit for standard input"))?;
                output.window.grant(bytes).map_err(broken_credit)?;
            }
            // What a newer peer says is not for this command.
            _ => match (frame.decode(), &self.ending) {
                // Said by a client that loses interest; the command is not its own.
                (Ok(Control::Kill), _) => {}
                (Ok(control), None) => wishes.push(Wish::Control(control)),
                _ => {}
            },
        }
        Ok(())
    }
}

impl Output {
    /// Nobody reads it.
    fn close(&mut self) {
        self.closed = true;
        self.queue = VecDeque::new();
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
