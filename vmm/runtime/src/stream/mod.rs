//! Byte streams between a handle and the runtime that serves it, and the encodings on them.

pub(crate) mod json_lines;
pub(crate) mod progress;
pub(crate) mod wire;

use std::io;

use tokio::io::{AsyncRead, AsyncWrite};

/// A bidirectional byte stream.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Explains the error of a stream that ended too early.
pub(crate) fn broken_off(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            let why =
                "the stream broke off: the runtime that sent it, or its software host, has stopped";
            io::Error::new(error.kind(), why)
        }
        _ => error,
    }
}
