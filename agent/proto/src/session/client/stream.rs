//! A stream on the host's side: which frames the agent may send when, and their effect.

use bytes::Bytes;

use super::kind::{RequestKind, oversize};
use crate::credit::{ReceiveWindow, SendWindow};
use crate::frame::{Channel, Frame, Kind};
use crate::message::Response;
use crate::session::{OutputState, Violation, truncate};

/// The effect of a frame of the agent on its stream.
#[derive(Debug)]
pub(super) enum StreamEvent {
    Started(u32),
    Output(Channel, Bytes),
    OutputEnded(Channel),
    InputRoom,
    InputClosed,
    Ended(Response),
}

#[derive(Debug)]
pub(super) struct Stream {
    id: u32,
    kind: RequestKind,
    /// Whether data may flow.
    running: bool,
    pub(super) input: Input,
    outputs: [Output; 2],
}

/// Data to the guest.
#[derive(Debug, Default)]
pub(super) struct Input {
    pub(super) window: SendWindow,
    /// No more data is sent: the host has ended it, or the agent has closed it.
    pub(super) ended: bool,
    /// The agent has closed it: no more data is taken.
    closed: bool,
}

/// Data from the guest.
#[derive(Debug, Default)]
struct Output {
    window: ReceiveWindow,
    state: OutputState,
}

impl Stream {
    pub(super) fn new(id: u32, kind: RequestKind) -> Self {
        Self {
            id,
            kind,
            running: kind.runs_at_once(),
            input: Input { ended: !kind.has_input(), ..Input::default() },
            outputs: Default::default(),
        }
    }

    /// Handles a frame of the agent.
    pub(super) fn receive(&mut self, frame: Frame) -> Result<StreamEvent, Violation> {
        match frame.kind {
            Kind::Stdout => self.on_data(Channel::Stdout, frame.body),
            Kind::Stderr => self.on_data(Channel::Stderr, frame.body),
            Kind::End => self.on_end(frame.ended_channel()?),
            Kind::Credit => {
                let (channel, bytes) = frame.granted_credit()?;
                self.on_credit(channel, bytes)
            }
            Kind::Response => self.on_response(frame.decode()?),
            Kind::Hello => Err(self.unexpected("hello")),
            Kind::Request => Err(self.unexpected("request")),
            Kind::Control => Err(self.unexpected("control")),
            Kind::Event => Err(self.unexpected("event")),
            Kind::Stdin => Err(self.unexpected("standard input")),
        }
    }

    fn on_data(&mut self, channel: Channel, data: Bytes) -> Result<StreamEvent, Violation> {
        let running = self.running && self.kind.has_output(channel);
        let Some(output) = self.output(channel).filter(|output| running && !output.state.ended)
        else {
            return Err(self.unexpected("output"));
        };
        if output.window.receive(data.len()).is_err() {
            return Err(self.overrun(channel));
        }
        Ok(StreamEvent::Output(channel, data))
    }

    fn on_end(&mut self, channel: Channel) -> Result<StreamEvent, Violation> {
        let unexpected = Err(self.unexpected("end"));
        if !self.running {
            return unexpected;
        }
        let (kind, closed) = (self.kind, self.input.closed);
        match self.output(channel) {
            Some(output) if kind.ends_output(channel) && !output.state.ended => {
                output.state.ended = true;
                Ok(StreamEvent::OutputEnded(channel))
            }
            Some(_) => unexpected,
            None if kind.has_input() && !closed => {
                (self.input.ended, self.input.closed) = (true, true);
                Ok(StreamEvent::InputClosed)
            }
            None => unexpected,
        }
    }

    fn on_credit(&mut self, channel: Channel, bytes: u32) -> Result<StreamEvent, Violation> {
        if !self.kind.has_input() || channel != Channel::Stdin {
            return Err(self.unexpected("credit"));
        }
        match self.input.window.grant(bytes) {
            Ok(()) => Ok(StreamEvent::InputRoom),
            Err(_) => Err(self.overrun(channel)),
        }
    }

    fn on_response(&mut self, mut response: Response) -> Result<StreamEvent, Violation> {
        if let (RequestKind::Exec, false, Response::Started { pid }) =
            (self.kind, self.running, &response)
        {
            self.running = true;
            return Ok(StreamEvent::Started(*pid));
        }
        if !self.kind.ends_with(&response, self.running) {
            return Err(self.unexpected("response"));
        }
        if let Some(what) = oversize(&response) {
            return Err(self.unexpected(what));
        }
        if let Response::Failed(failure) = &mut response {
            truncate(&mut failure.message);
        }
        Ok(StreamEvent::Ended(response))
    }

    /// Bytes of an output that the caller has not taken.
    pub(super) fn held(&self, channel: Channel) -> usize {
        let output = channel.output_index().and_then(|index| self.outputs.get(index));
        output.map_or(0, |output| output.window.held())
    }

    /// Records that the caller took output. Returns the credit to grant now, if any.
    pub(super) fn output_taken(&mut self, channel: Channel, bytes: usize) -> Option<u32> {
        let output = self.output(channel)?;
        output.window.take(bytes).filter(|_| !output.state.ended && !output.state.closed)
    }

    /// Closes an output. Returns whether the agent must be informed.
    pub(super) fn close_output(&mut self, channel: Channel) -> bool {
        self.output(channel).is_some_and(|output| {
            !std::mem::replace(&mut output.state.closed, true) && !output.state.ended
        })
    }

    fn output(&mut self, channel: Channel) -> Option<&mut Output> {
        self.outputs.get_mut(channel.output_index()?)
    }

    fn unexpected(&self, what: &'static str) -> Violation {
        Violation::Unexpected { what, stream: self.id }
    }

    fn overrun(&self, channel: Channel) -> Violation {
        Violation::Window { stream: self.id, channel }
    }
}
