//! The agent's side of a connection; also the side of a process that stands in for an agent.

mod stream;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use bytes::Bytes;

use self::stream::{Stream, StreamEvent};
use super::Violation;
use super::assembler::Assembler;
use super::chunks::Chunks;
use super::outbox::Outbox;
use crate::PROTOCOL_VERSION;
use crate::frame::{Channel, Frame, FrameError, Kind, MAX_DATA};
use crate::message::{Control, Event, Failure, FailureKind, Hello, Request, Response};

/// Limit on unanswered requests on a connection.
pub const MAX_STREAMS: usize = 8192;

/// An event on the agent's side of a connection.
#[derive(Debug)]
pub enum ServerEvent {
    /// The host has sent its hello, which is answered.
    Hello(Hello),
    /// The host has sent a request; [`Server::respond`] answers it.
    Request {
        /// The stream of the request.
        stream: u32,
        /// The request; an error if this version does not know it.
        request: Result<Request, FrameError>,
    },
    /// Input has arrived. [`Server::input_taken`] lets the host send more.
    Input {
        /// The stream.
        stream: u32,
        /// The bytes.
        data: Bytes,
    },
    /// No more input follows.
    InputEnded {
        /// The stream.
        stream: u32,
    },
    /// More output may be sent than before.
    OutputRoom {
        /// The stream.
        stream: u32,
        /// The output.
        channel: Channel,
    },
    /// The host no longer reads an output.
    OutputClosed {
        /// The stream.
        stream: u32,
        /// The output.
        channel: Channel,
    },
    /// The host has sent a control message to a running command.
    Control {
        /// The stream.
        stream: u32,
        /// The message.
        control: Control,
    },
}

impl ServerEvent {
    /// The open stream of the event, if it has one.
    pub fn stream(&self) -> Option<u32> {
        match self {
            Self::Hello(_) | Self::Request { .. } => None,
            Self::Input { stream, .. }
            | Self::InputEnded { stream }
            | Self::OutputRoom { stream, .. }
            | Self::OutputClosed { stream, .. }
            | Self::Control { stream, .. } => Some(*stream),
        }
    }
}

/// The agent's side of a connection. The caller may attach a tag of type `T` to each stream.
#[derive(Debug)]
pub struct Server<T> {
    outbox: Outbox,
    greeted: bool,
    /// Streams whose request has no final response yet.
    streams: BTreeMap<u32, Stream<T>>,
}

impl<T> Default for Server<T> {
    fn default() -> Self {
        Self { outbox: Outbox::default(), greeted: false, streams: BTreeMap::new() }
    }
}

impl<T> Server<T> {
    /// The frames that wait to be sent.
    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// Bytes that wait to be sent.
    pub fn waiting(&self) -> usize {
        self.outbox.len()
    }

    /// Whether the host has sent its hello.
    pub fn is_greeted(&self) -> bool {
        self.greeted
    }

    /// The next event in the bytes that have arrived, if there is one.
    ///
    /// # Errors
    /// The host broke the protocol. After [`Violation::Version`], send the outbox before the connection is closed:
    /// its hello has the version of this side.
    pub fn receive(&mut self, input: &mut Assembler) -> Result<Option<ServerEvent>, Violation> {
        while let Some(frame) = input.next_frame()? {
            if let Some(event) = self.receive_frame(frame)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Handles a frame of the host. Returns an event if the frame matters to the caller.
    pub fn receive_frame(&mut self, frame: Frame) -> Result<Option<ServerEvent>, Violation> {
        let stream = frame.stream;
        match frame.kind {
            Kind::Hello if !self.greeted => return self.on_hello(&frame).map(Some),
            _ if !self.greeted => return Err(Violation::NoHello("another frame")),
            Kind::Request => return self.on_request(&frame),
            Kind::Control | Kind::Stdin | Kind::End | Kind::Credit => {}
            Kind::Hello => return Err(Violation::Unexpected { what: "hello", stream }),
            Kind::Response | Kind::Event | Kind::Stdout | Kind::Stderr => {
                let what = "frame that only an agent sends";
                return Err(Violation::Unexpected { what, stream });
            }
        }
        // The stream has ended, and the host did not know that when it sent the frame.
        let Some(state) = self.streams.get_mut(&stream) else { return Ok(None) };
        Ok(state.receive(frame)?.map(|event| match event {
            StreamEvent::Input(data) => ServerEvent::Input { stream, data },
            StreamEvent::InputEnded => ServerEvent::InputEnded { stream },
            StreamEvent::OutputRoom(channel) => ServerEvent::OutputRoom { stream, channel },
            StreamEvent::OutputClosed(channel) => ServerEvent::OutputClosed { stream, channel },
            StreamEvent::Control(control) => ServerEvent::Control { stream, control },
        }))
    }

    fn on_hello(&mut self, frame: &Frame) -> Result<ServerEvent, Violation> {
        let hello: Hello = frame.decode()?;
        let ours = Hello { version: PROTOCOL_VERSION, generation: 0, unix_time_ns: 0 };
        self.outbox.push(ours.frame(0));
        if hello.version != PROTOCOL_VERSION {
            return Err(Violation::Version { ours: PROTOCOL_VERSION, theirs: hello.version });
        }
        self.greeted = true;
        Ok(ServerEvent::Hello(hello))
    }

    fn on_request(&mut self, frame: &Frame) -> Result<Option<ServerEvent>, Violation> {
        let stream = frame.stream;
        let open = self.streams.len();
        let Entry::Vacant(entry) = self.streams.entry(stream) else {
            return Err(Violation::StreamInUse(stream));
        };
        if stream == 0 {
            return Err(Violation::StreamInUse(stream));
        }
        if open >= MAX_STREAMS {
            let message = format!("{MAX_STREAMS} requests have no answer yet on this connection");
            let failure = Failure { kind: FailureKind::Other, message };
            self.outbox.push(Response::Failed(failure).frame(stream));
            return Ok(None);
        }
        entry.insert(Stream::new(stream));
        Ok(Some(ServerEvent::Request { stream, request: frame.decode() }))
    }

    /// Sends an unsolicited event to the host.
    pub fn event(&mut self, event: &Event) {
        self.outbox.push(event.frame(0));
    }

    /// Answers a request. Every response except [`Response::Started`] ends the stream, and returns the stream's tag.
    pub fn respond(&mut self, stream: u32, response: &Response) -> Option<T> {
        if !self.streams.contains_key(&stream) {
            return None;
        }
        self.outbox.push(response.frame(stream));
        match response {
            Response::Started { .. } => None,
            _ => self.streams.remove(&stream).and_then(|stream| stream.tag),
        }
    }

    /// Attaches a tag to a stream.
    pub fn set_tag(&mut self, stream: u32, tag: T) {
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.tag = Some(tag);
        }
    }

    /// The tag of an open stream, if it has one.
    pub fn tag(&self, stream: u32) -> Option<&T> {
        self.streams.get(&stream)?.tag.as_ref()
    }

    /// The tags of all streams.
    pub fn tags(&self) -> impl Iterator<Item = &T> {
        self.streams.values().filter_map(|stream| stream.tag.as_ref())
    }

    /// Records that this many bytes of input were taken: the host may send as many more.
    pub fn input_taken(&mut self, stream: u32, bytes: usize) {
        if let Some(state) = self.streams.get_mut(&stream)
            && let Some(credit) = state.input_taken(bytes)
        {
            self.outbox.push(Frame::credit(stream, Channel::Stdin, credit));
        }
    }

    /// Closes the input: the host must send no more. Data that it has sent before still arrives.
    pub fn close_input(&mut self, stream: u32) {
        if let Some(state) = self.streams.get_mut(&stream)
            && state.close_input()
        {
            self.outbox.push(Frame::end(stream, Channel::Stdin));
        }
    }

    /// Bytes of output that may be sent now in one frame.
    pub fn output_room(&self, stream: u32, channel: Channel) -> usize {
        let stream = self.streams.get(&stream).filter(|_| self.outbox.has_room());
        stream.map_or(0, |stream| stream.output_room(channel).min(MAX_DATA))
    }

    /// Sends output, at most [`output_room`](Self::output_room).
    pub fn send_output(&mut self, stream: u32, channel: Channel, data: &[u8]) {
        debug_assert!(data.len() <= self.output_room(stream, channel));
        if let Some(state) = self.streams.get_mut(&stream) {
            state.spend(channel, data.len());
            self.outbox.copy_data(stream, channel, data);
        }
    }

    /// Sends as much from the front of `data` as there is room for.
    pub fn send_output_from(&mut self, stream: u32, channel: Channel, data: &mut Chunks) {
        while let Some(piece) = data.pop(self.output_room(stream, channel)) {
            if let Some(state) = self.streams.get_mut(&stream) {
                state.spend(channel, piece.len());
                self.outbox.push_data(stream, channel, piece);
            }
        }
    }

    /// Ends an output: no more data follows.
    pub fn end_output(&mut self, stream: u32, channel: Channel) {
        if let Some(state) = self.streams.get_mut(&stream)
            && state.end_output(channel)
        {
            self.outbox.push(Frame::end(stream, channel));
        }
    }
}
