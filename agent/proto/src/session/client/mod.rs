//! The host's side of a connection.

mod kind;
mod stream;

use std::collections::BTreeMap;

use bytes::Bytes;

pub use self::kind::RequestKind;
use self::stream::{Stream, StreamEvent};
use super::assembler::Assembler;
use super::chunks::Chunks;
use super::outbox::Outbox;
use super::{Violation, truncate};
use crate::PROTOCOL_VERSION;
use crate::frame::{Channel, Frame, Kind, MAX_BODY, MAX_DATA};
use crate::message::{Control, Event, Hello, Request, Response};

/// An event on the host's side of a connection.
#[derive(Debug)]
pub enum ClientEvent<T> {
    /// The agent has answered the hello. Requests may be sent before that.
    Hello(Hello),
    /// The agent has sent an unsolicited event; the message of an [`Event::Fatal`] is bounded.
    Event(Event),
    /// A command has started.
    Started {
        /// Its stream.
        stream: u32,
        /// Its process ID in the guest.
        pid: u32,
    },
    /// Output has arrived. [`Client::output_taken`] lets the agent send more.
    Output {
        /// The stream.
        stream: u32,
        /// The output.
        channel: Channel,
        /// The bytes.
        data: Bytes,
    },
    /// No more data follows on an output.
    OutputEnded {
        /// The stream.
        stream: u32,
        /// The output.
        channel: Channel,
    },
    /// More input may be sent than before.
    InputRoom {
        /// The stream.
        stream: u32,
    },
    /// The guest takes no more input.
    InputClosed {
        /// The stream.
        stream: u32,
    },
    /// The stream has ended.
    Ended {
        /// The stream; its number is not used again.
        stream: u32,
        /// The caller's tag.
        tag: T,
        /// The final response: one that is valid for the request, or [`Response::Failed`], of bounded lengths.
        response: Response,
    },
}

impl<T> ClientEvent<T> {
    /// The stream of the event; none for an event of the connection.
    pub fn stream(&self) -> Option<u32> {
        match self {
            Self::Hello(_) | Self::Event(_) => None,
            Self::Started { stream, .. }
            | Self::Output { stream, .. }
            | Self::OutputEnded { stream, .. }
            | Self::InputRoom { stream }
            | Self::InputClosed { stream }
            | Self::Ended { stream, .. } => Some(*stream),
        }
    }
}

/// A request that cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// It does not fit into a frame.
    #[error("the request has {size} bytes, more than the {max} that can be sent")]
    TooLarge {
        /// Its bytes.
        size: usize,
        /// The limit.
        max: usize,
    },
    /// All stream numbers have been used.
    #[error("the connection has carried as many requests as it can")]
    Exhausted,
}

/// The host's side of a connection. The caller attaches a tag of type `T` to each stream.
#[derive(Debug)]
pub struct Client<T> {
    outbox: Outbox,
    greeted: bool,
    /// The last stream number in use.
    last: u32,
    streams: BTreeMap<u32, (Stream, T)>,
}

impl<T> Client<T> {
    /// A connection that starts with this hello.
    pub fn new(hello: &Hello) -> Self {
        Self::with_preamble(&[], hello)
    }

    /// As [`new`](Self::new), after bytes for the transport, which the agent does not see.
    pub fn with_preamble(preamble: &[u8], hello: &Hello) -> Self {
        let mut outbox = Outbox::default();
        outbox.push_preamble(preamble);
        outbox.push(hello.frame(0));
        Self { outbox, greeted: false, last: 0, streams: BTreeMap::new() }
    }

    /// The frames that wait to be sent.
    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// Bytes that wait to be sent.
    pub fn waiting(&self) -> usize {
        self.outbox.len()
    }

    /// The next event in the bytes that have arrived, if there is one.
    pub fn receive(&mut self, input: &mut Assembler) -> Result<Option<ClientEvent<T>>, Violation> {
        while let Some(frame) = input.next_frame()? {
            if let Some(event) = self.receive_frame(frame)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Handles a frame of the agent. Returns an event if the frame matters to the caller.
    pub fn receive_frame(&mut self, frame: Frame) -> Result<Option<ClientEvent<T>>, Violation> {
        if frame.stream == 0 {
            return self.on_connection(&frame);
        }
        if !self.greeted {
            return Err(Violation::NoHello("another frame"));
        }
        let (stream, kind) = (frame.stream, frame.kind);
        let Some((state, _)) = self.streams.get_mut(&stream) else {
            return match kind {
                _ if stream > self.last => Err(Violation::UnknownStream(stream)),
                // The agent may grant credit for input, or close it, after the final response.
                Kind::Credit | Kind::End => Ok(None),
                _ => Err(Violation::Unexpected { what: "frame after the last", stream }),
            };
        };
        Ok(match state.receive(frame)? {
            StreamEvent::Started(pid) => Some(ClientEvent::Started { stream, pid }),
            StreamEvent::Output(channel, data) => {
                Some(ClientEvent::Output { stream, channel, data })
            }
            StreamEvent::OutputEnded(channel) => Some(ClientEvent::OutputEnded { stream, channel }),
            StreamEvent::InputRoom => Some(ClientEvent::InputRoom { stream }),
            StreamEvent::InputClosed => Some(ClientEvent::InputClosed { stream }),
            StreamEvent::Ended(response) => self
                .streams
                .remove(&stream)
                .map(|(_, tag)| ClientEvent::Ended { stream, tag, response }),
        })
    }

    fn on_connection(&mut self, frame: &Frame) -> Result<Option<ClientEvent<T>>, Violation> {
        match frame.kind {
            Kind::Hello if !self.greeted => {
                let hello: Hello = frame.decode()?;
                if hello.version != PROTOCOL_VERSION {
                    let (ours, theirs) = (PROTOCOL_VERSION, hello.version);
                    return Err(Violation::Version { ours, theirs });
                }
                self.greeted = true;
                Ok(Some(ClientEvent::Hello(hello)))
            }
            Kind::Event => {
                let event = match frame.decode() {
                    Ok(Event::Fatal { mut message }) => {
                        truncate(&mut message);
                        Event::Fatal { message }
                    }
                    _ if !self.greeted => return Err(Violation::NoHello("an event")),
                    Ok(event) => event,
                    // This host does not know the events of a newer agent.
                    Err(_) => return Ok(None),
                };
                Ok(Some(ClientEvent::Event(event)))
            }
            _ if !self.greeted => Err(Violation::NoHello("another frame")),
            _ => Err(Violation::Unexpected { what: "frame", stream: 0 }),
        }
    }

    /// Sends a request on a new stream, and returns the number of the stream. `tag` makes the tag from the number.
    pub fn request(
        &mut self,
        request: &Request,
        tag: impl FnOnce(u32) -> T,
    ) -> Result<u32, RequestError> {
        let id = self.last.checked_add(1).ok_or(RequestError::Exhausted)?;
        let frame = request.frame(id);
        let size = frame.body.len();
        if size > MAX_BODY {
            return Err(RequestError::TooLarge { size, max: MAX_BODY });
        }
        self.last = id;
        self.streams.insert(id, (Stream::new(id, RequestKind::of(request)), tag(id)));
        self.outbox.push(frame);
        Ok(id)
    }

    /// The tag of an open stream.
    pub fn tag(&self, stream: u32) -> Option<&T> {
        self.streams.get(&stream).map(|(_, tag)| tag)
    }

    /// The tag of an open stream.
    pub fn tag_mut(&mut self, stream: u32) -> Option<&mut T> {
        self.streams.get_mut(&stream).map(|(_, tag)| tag)
    }

    /// Ends all streams, and takes their tags. Further output and responses on them are violations.
    pub fn end_all(&mut self) -> impl Iterator<Item = T> + use<T> {
        std::mem::take(&mut self.streams).into_values().map(|(_, tag)| tag)
    }

    /// Sends a control message to a running command. No effect on a stream that has ended.
    pub fn control(&mut self, stream: u32, control: Control) {
        if self.streams.contains_key(&stream) {
            self.outbox.push(control.frame(stream));
        }
    }

    /// Bytes of input that may be sent now.
    pub fn input_room(&self, stream: u32) -> usize {
        let input = self.streams.get(&stream).map(|(stream, _)| &stream.input);
        input.filter(|input| !input.ended).map_or(0, |input| input.window.available())
    }

    /// Whether input may be sent, now or once there is room.
    pub fn is_input_open(&self, stream: u32) -> bool {
        self.streams.get(&stream).is_some_and(|(stream, _)| !stream.input.ended)
    }

    /// Sends as much of `data` as there is room for. Returns the number of bytes.
    pub fn send_input(&mut self, stream: u32, data: &[u8]) -> usize {
        let sent = self.spend_input(stream, data.len());
        for piece in data[..sent].chunks(MAX_DATA) {
            self.outbox.copy_data(stream, Channel::Stdin, piece);
        }
        sent
    }

    /// Sends as much from the front of `data` as there is room for. Returns the number of bytes.
    pub fn send_input_from(&mut self, stream: u32, data: &mut Chunks) -> usize {
        let sent = self.spend_input(stream, data.len());
        let mut left = sent;
        while let Some(piece) = data.pop(left.min(MAX_DATA)) {
            left -= piece.len();
            self.outbox.push_data(stream, Channel::Stdin, piece);
        }
        sent
    }

    fn spend_input(&mut self, stream: u32, wanted: usize) -> usize {
        let bytes = wanted.min(self.input_room(stream));
        if let Some((stream, _)) = self.streams.get_mut(&stream) {
            stream.input.window.spend(bytes);
        }
        bytes
    }

    /// Ends the input: no more data follows.
    pub fn end_input(&mut self, stream: u32) {
        if let Some((state, _)) = self.streams.get_mut(&stream)
            && !std::mem::replace(&mut state.input.ended, true)
        {
            self.outbox.push(Frame::end(stream, Channel::Stdin));
        }
    }

    /// Bytes of an output that have arrived and are not [taken](Self::output_taken).
    pub fn output_held(&self, stream: u32, channel: Channel) -> usize {
        self.streams.get(&stream).map_or(0, |(stream, _)| stream.held(channel))
    }

    /// Records that this many bytes of an output were taken: the agent may send as many more.
    pub fn output_taken(&mut self, stream: u32, channel: Channel, bytes: usize) {
        if let Some((state, _)) = self.streams.get_mut(&stream)
            && let Some(credit) = state.output_taken(channel, bytes)
        {
            self.outbox.push(Frame::credit(stream, channel, credit));
        }
    }

    /// Closes an output: it is no longer read. Data that the agent has sent before still arrives.
    pub fn close_output(&mut self, stream: u32, channel: Channel) {
        if let Some((state, _)) = self.streams.get_mut(&stream)
            && state.close_output(channel)
        {
            self.outbox.push(Frame::end(stream, channel));
        }
    }
}
