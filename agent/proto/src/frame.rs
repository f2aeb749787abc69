//! Frames: `[len u32][stream u32][kind u8][body]`, little endian; `len` counts the body.

use std::io::{self, Read, Write};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes before the body.
pub const HEADER_LEN: usize = 9;

/// The largest body of any frame. It fits an exec with a full argument list (`ARG_MAX`, 2 MiB) and its
/// environment.
pub const MAX_BODY: usize = 4 << 20;

/// The largest body of a data frame, so that streams take turns.
pub const MAX_DATA: usize = 64 << 10;

/// The kind of a frame: the content of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// [`Hello`](crate::message::Hello), on stream 0, first in each direction.
    Hello = 1,
    /// [`Request`](crate::message::Request), host to agent: opens a stream.
    Request = 2,
    /// [`Response`](crate::message::Response), agent to host.
    Response = 3,
    /// [`Control`](crate::message::Control), host to agent, on an open stream.
    Control = 4,
    /// [`Event`](crate::message::Event), agent to host, on stream 0.
    Event = 5,
    /// Raw bytes for standard input, or of a tar to unpack.
    Stdin = 8,
    /// Raw bytes of standard output (or of the terminal), or of a requested tar.
    Stdout = 9,
    /// Raw bytes of standard error.
    Stderr = 10,
    /// `[channel u8]`: from the writer, no more data follows on this channel; from the reader, the channel is no
    /// longer read.
    End = 11,
    /// `[channel u8][bytes u32]`: the reader has taken this many bytes, and the writer may send as many more.
    Credit = 12,
}

impl Kind {
    /// The kind with this number, if there is one.
    pub fn from_u8(kind: u8) -> Option<Self> {
        Some(match kind {
            1 => Self::Hello,
            2 => Self::Request,
            3 => Self::Response,
            4 => Self::Control,
            5 => Self::Event,
            8 => Self::Stdin,
            9 => Self::Stdout,
            10 => Self::Stderr,
            11 => Self::End,
            12 => Self::Credit,
            _ => return None,
        })
    }

    /// The largest body of this kind.
    pub fn max_body(self) -> usize {
        match self {
            Self::Stdin | Self::Stdout | Self::Stderr => MAX_DATA,
            Self::End => 1,
            Self::Credit => 5,
            _ => MAX_BODY,
        }
    }
}

/// A stdio channel of a stream, numbered as the kind that carries its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Channel {
    /// Host to agent.
    Stdin = 8,
    /// Agent to host.
    Stdout = 9,
    /// Agent to host.
    Stderr = 10,
}

impl Channel {
    /// The output channels, from agent to host.
    pub const OUTPUTS: [Self; 2] = [Self::Stdout, Self::Stderr];

    /// Its index in [`OUTPUTS`](Self::OUTPUTS), if it is an output.
    pub fn output_index(self) -> Option<usize> {
        match self {
            Self::Stdin => None,
            Self::Stdout => Some(0),
            Self::Stderr => Some(1),
        }
    }

    /// The channel with this number, if there is one.
    pub fn from_u8(channel: u8) -> Option<Self> {
        Some(match channel {
            8 => Self::Stdin,
            9 => Self::Stdout,
            10 => Self::Stderr,
            _ => return None,
        })
    }

    /// The kind of frame that carries this channel's data.
    pub fn kind(self) -> Kind {
        match self {
            Self::Stdin => Kind::Stdin,
            Self::Stdout => Kind::Stdout,
            Self::Stderr => Kind::Stderr,
        }
    }
}

/// A frame that breaks the protocol, or a failure of its connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// This version does not know the kind.
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    /// The length field exceeds what the kind allows. Nothing was allocated for it.
    #[error("{kind:?} frame of {len} bytes, more than the {max} it may have")]
    TooLong {
        /// The frame's kind.
        kind: Kind,
        /// The length in its header.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The body does not have the format of the kind.
    #[error("malformed {0:?} frame")]
    Malformed(Kind),
    /// The connection failed, or ended inside a frame.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A checked header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of body that follow; at most [`Kind::max_body`].
    pub len: usize,
    /// The stream the frame belongs to.
    pub stream: u32,
    /// The kind of the frame.
    pub kind: Kind,
}

impl Header {
    /// Decodes a header. Fails for an unknown kind, and for a length above the kind's limit.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind] = *bytes;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let stream = u32::from_le_bytes([s0, s1, s2, s3]);
        let kind = Kind::from_u8(kind).ok_or(FrameError::UnknownKind(kind))?;
        let max = kind.max_body();
        if len > max {
            return Err(FrameError::TooLong { kind, len, max });
        }
        Ok(Self { len, stream, kind })
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&(self.len as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&self.stream.to_le_bytes());
        bytes[8] = self.kind as u8;
        bytes
    }
}

/// A whole frame in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The stream it belongs to.
    pub stream: u32,
    /// The kind of the frame.
    pub kind: Kind,
    /// The body.
    pub body: Bytes,
}

impl Frame {
    /// A data frame. `data` must not exceed [`MAX_DATA`].
    pub fn data(stream: u32, channel: Channel, data: impl Into<Vec<u8>>) -> Self {
        let body = Bytes::from(data.into());
        debug_assert!(body.len() <= MAX_DATA);
        Self { stream, kind: channel.kind(), body }
    }

    /// An [`End`](Kind::End) frame.
    pub fn end(stream: u32, channel: Channel) -> Self {
        Self { stream, kind: Kind::End, body: Bytes::copy_from_slice(&[channel as u8]) }
    }

    /// A [`Credit`](Kind::Credit) frame.
    pub fn credit(stream: u32, channel: Channel, bytes: u32) -> Self {
        let [b0, b1, b2, b3] = bytes.to_le_bytes();
        let body = Bytes::copy_from_slice(&[channel as u8, b0, b1, b2, b3]);
        Self { stream, kind: Kind::Credit, body }
    }

    /// A frame with a postcard body. Use the typed constructors of [`message`](crate::message).
    pub(crate) fn encoded<T: Serialize>(stream: u32, kind: Kind, message: &T) -> Self {
        let body = postcard::to_stdvec(message)
            .expect("messages hold only sequences and enums of known length");
        Self { stream, kind, body: body.into() }
    }

    /// The body as a message of type `T`; trailing bytes (fields of a newer peer) are ignored.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        postcard::take_from_bytes(&self.body)
            .map(|(message, _)| message)
            .map_err(|_| FrameError::Malformed(self.kind))
    }

    /// The channel that an [`End`](Kind::End) frame ends.
    pub fn ended_channel(&self) -> Result<Channel, FrameError> {
        match (self.kind, &self.body[..]) {
            (Kind::End, &[channel]) => Channel::from_u8(channel),
            _ => None,
        }
        .ok_or(FrameError::Malformed(self.kind))
    }

    /// The channel and byte count of a [`Credit`](Kind::Credit) frame.
    pub fn granted_credit(&self) -> Result<(Channel, u32), FrameError> {
        match (self.kind, &self.body[..]) {
            (Kind::Credit, &[channel, b0, b1, b2, b3]) => {
                Channel::from_u8(channel).map(|c| (c, u32::from_le_bytes([b0, b1, b2, b3])))
            }
            _ => None,
        }
        .ok_or(FrameError::Malformed(self.kind))
    }

    /// The channel whose data this frame carries, if it is a data frame.
    pub fn data_channel(&self) -> Option<Channel> {
        Channel::from_u8(self.kind as u8)
    }

    /// Reads the next frame. `None` if the connection ended between two frames.
    pub fn read(from: &mut impl Read) -> Result<Option<Self>, FrameError> {
        let mut header = [0; HEADER_LEN];
        let mut have = 0;
        while have < HEADER_LEN {
            match from.read(&mut header[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        let Header { len, stream, kind } = Header::decode(&header)?;
        let mut body = vec![0; len];
        from.read_exact(&mut body)?;
        Ok(Some(Self { stream, kind, body: body.into() }))
    }

    /// Writes the frame from one buffer.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(&self.to_bytes())
    }

    /// Header and body in one buffer.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN + self.body.len());
        let header = Header { len: self.body.len(), stream: self.stream, kind: self.kind };
        bytes.extend_from_slice(&header.encode());
        bytes.extend_from_slice(&self.body);
        bytes
    }
}
