//! A stream on the agent's side: which frames the host may send when, and how much output may be sent.

use bytes::Bytes;

use crate::credit::{ReceiveWindow, SendWindow};
use crate::frame::{Channel, Frame, Kind};
use crate::message::Control;
use crate::session::{OutputState, Violation};

/// The effect of a frame of the host on its stream.
#[derive(Debug)]
pub(super) enum StreamEvent {
    Input(Bytes),
    InputEnded,
    OutputRoom(Channel),
    OutputClosed(Channel),
    Control(Control),
}

#[derive(Debug)]
pub(super) struct Stream<T> {
    id: u32,
    pub(super) tag: Option<T>,
    input: Input,
    outputs: [Output; 2],
}

/// Data from the host.
#[derive(Debug, Default)]
struct Input {
    window: ReceiveWindow,
    /// The host has ended it: no more data follows.
    ended: bool,
    /// The agent has closed it: no more data is taken.
    closed: bool,
}

/// Data to the host.
#[derive(Debug, Default)]
struct Output {
    window: SendWindow,
    state: OutputState,
}

impl<T> Stream<T> {
    pub(super) fn new(id: u32) -> Self {
        Self { id, tag: None, input: Input::default(), outputs: Default::default() }
    }

    /// Handles a frame of the host. Returns none if the frame changes nothing.
    pub(super) fn receive(&mut self, frame: Frame) -> Result<Option<StreamEvent>, Violation> {
        match frame.kind {
            Kind::Stdin if self.input.ended => Err(self.unexpected("input after its end")),
            Kind::Stdin => match self.input.window.receive(frame.body.len()) {
                Ok(()) => Ok(Some(StreamEvent::Input(frame.body))),
                Err(_) => Err(self.overrun(Channel::Stdin)),
            },
            Kind::End => self.on_end(frame.ended_channel()?),
            Kind::Credit => {
                let (channel, bytes) = frame.granted_credit()?;
                let Some(output) = self.output(channel) else {
                    return Err(self.unexpected("credit for standard input"));
                };
                match output.window.grant(bytes) {
                    Ok(()) => Ok(Some(StreamEvent::OutputRoom(channel))),
                    Err(_) => Err(self.overrun(channel)),
                }
            }
            // A newer host may send an unknown message: a running box keeps its agent when the host is updated.
            Kind::Control => Ok(frame.decode().ok().map(StreamEvent::Control)),
            _ => Err(self.unexpected("frame that only an agent sends")),
        }
    }

    fn on_end(&mut self, channel: Channel) -> Result<Option<StreamEvent>, Violation> {
        Ok(match self.output(channel) {
            Some(output) => (!std::mem::replace(&mut output.state.closed, true))
                .then_some(StreamEvent::OutputClosed(channel)),
            None => {
                (!std::mem::replace(&mut self.input.ended, true)).then_some(StreamEvent::InputEnded)
            }
        })
    }

    /// Records that input was taken. Returns the credit to grant now, if any.
    pub(super) fn input_taken(&mut self, bytes: usize) -> Option<u32> {
        self.input.window.take(bytes).filter(|_| !self.input.ended && !self.input.closed)
    }

    /// Closes the input. Returns whether the host must be informed.
    pub(super) fn close_input(&mut self) -> bool {
        !std::mem::replace(&mut self.input.closed, true) && !self.input.ended
    }

    /// Bytes that may be sent.
    pub(super) fn output_room(&self, channel: Channel) -> usize {
        channel
            .output_index()
            .and_then(|index| self.outputs.get(index))
            .filter(|output| !output.state.ended && !output.state.closed)
            .map_or(0, |output| output.window.available())
    }

    pub(super) fn spend(&mut self, channel: Channel, bytes: usize) {
        if let Some(output) = self.output(channel) {
            output.window.spend(bytes);
        }
    }

    /// Ends an output. Returns whether the host must be informed.
    pub(super) fn end_output(&mut self, channel: Channel) -> bool {
        self.output(channel).is_some_and(|output| {
            !std::mem::replace(&mut output.state.ended, true) && !output.state.closed
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
