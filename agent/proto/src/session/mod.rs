//! The protocol without I/O: bytes in, events out; calls in, bytes out.
//!
//! ```text
//!             ┌ Assembler ─ frames ─▶ Client or Server ─▶ events ┐
//!  connection ┤                       stream table, credit        ├ caller
//!             └ Outbox ◀─────── frames ──────────── requests, data ┘
//! ```
//!
//! A [`Client`] asks, a [`Server`] answers; each stands for one connection and knows which frame the peer may send
//! when. The caller owns the connection and its waiting: it fills an [`Assembler`] with what it read, takes events
//! until there are none, and writes what is in the outbox. So an async task, a thread and a poll loop use the same code.
//! A proxy that passes frames on uses the [`Assembler`] and the [`Outbox`] alone.
//!
//! May use `bytes` and the other modules of this crate; no I/O, no clock, no threads.
//!
//! **Invariant:** whatever the peer sends becomes an event or a [`Violation`]; nothing panics, and memory is bounded:
//! what arrives by one frame in the assembler and by credit, what waits to be sent by credit and by what the
//! caller asks for.

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

/// How a peer broke the protocol. Its connection cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// Bytes that are no frame, or a body that is not what its kind says.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame for a stream that was never opened.
    #[error("a frame for stream {0}, which was never opened")]
    UnknownStream(u32),
    /// A request on stream 0, or on a stream whose last request has no answer yet.
    #[error("a request on stream {0}, which is in use")]
    StreamInUse(u32),
    /// A frame that has no place there.
    #[error("unexpected {what} on stream {stream}")]
    Unexpected {
        /// What it was.
        what: &'static str,
        /// Where it was.
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
    /// The connection opened with something else than a hello.
    #[error("no hello, but {0}")]
    NoHello(&'static str),
    /// The two ends cannot talk to each other.
    #[error("protocol version {theirs}, not {ours}")]
    Version {
        /// The version that this side speaks.
        ours: u16,
        /// The version that the peer speaks.
        theirs: u16,
    },
}

/// Whether an output still carries data. Both sides of a stream keep one for each output.
#[derive(Debug, Default)]
struct OutputState {
    /// The agent said that no more comes.
    ended: bool,
    /// The host said that nobody reads it.
    closed: bool,
}
