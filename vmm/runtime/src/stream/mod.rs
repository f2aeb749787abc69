//! Byte streams between a handle and the runtime that serves it, and the encodings on them.

pub(crate) mod json_lines;
pub(crate) mod progress;
pub(crate) mod wire;

use tokio::io::{AsyncRead, AsyncWrite};

/// A bidirectional byte stream.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
