//! The protocol without I/O: bytes in, events out; calls in, bytes out.
//!
//! ```text
//!             ┌ Assembler ─ frames ─▶ Client or Server ─▶ events ┐
//!  connection ┤                       stream table, credit        ├ caller
//!             └ Outbox ◀─────── frames ──────────── requests, data ┘
//! ```
//!
//! A [`Client`] sends requests, a [`Server`] answers them. Each is the state of one connection, and knows when the
//! peer may send which frames. The caller owns the connection and waits for it: it fills an [`Assembler`] with the
//! bytes that it has read, takes events until there are none, and writes the content of the [`Outbox`]. So an async
//! task, a thread and a poll loop can use the same code. A proxy uses only the [`Assembler`] and the [`Outbox`].
//!
//! May use `bytes` and the other modules of this crate; no I/O, no clock, no threads.
//!
//! **Invariant:** everything that the peer sends becomes an event or a [`Violation`]. Nothing panics, and memory is
//! bounded: received data by one frame in the assembler and by credit, data to send by credit and by the requests
//! of the caller.

mod assembler;
mod chunks;
mod client;
mod outbox;
mod server;
mod text;

pub use assembler::{Assembler, SHARED_BODY};
pub use chunks::Chunks;
pub use client::{Client, ClientEvent, RequestError, RequestKind};
pub use outbox::{HIGH_WATER, Outbox};
pub use server::{MAX_STREAMS, Server, ServerEvent};
pub use text::{MAX_MESSAGE, truncate};

use crate::frame::{Channel, FrameError};

/// How a peer broke the protocol. Its connection must be closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// Bytes that are no frame, or a malformed body.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame for a stream that was never opened.
    #[error("a frame for stream {0}, which was never opened")]
    UnknownStream(u32),
    /// A request on stream 0, or on a stream whose last request has no answer yet.
    #[error("a request on stream {0}, which is in use")]
    StreamInUse(u32),
    /// A frame that the peer must not send now, or not on this stream.
    #[error("unexpected {what} on stream {stream}")]
    Unexpected {
        /// The frame.
        what: &'static str,
        /// The stream.
        stream: u32,
    },
    /// More data or credit than the window allows.
    #[error("flow control of {channel:?} on stream {stream} overrun")]
    Window {
        /// The stream.
        stream: u32,
        /// The channel.
        channel: Channel,
    },
    /// The first frame of the connection is not a hello.
    #[error("no hello, but {0}")]
    NoHello(&'static str),
    /// The peer speaks another version of the protocol.
    #[error("protocol version {theirs}, not {ours}")]
    Version {
        /// The version that this side speaks.
        ours: u16,
        /// The version that the peer speaks.
        theirs: u16,
    },
}

/// The state of an output, which each side of a stream keeps for each output.
#[derive(Debug, Default)]
struct OutputState {
    /// The agent has ended it: no more data follows.
    ended: bool,
    /// The host has closed it: it is no longer read.
    closed: bool,
}
