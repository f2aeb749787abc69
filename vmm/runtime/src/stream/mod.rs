//! Streams of bytes between a runtime and who serves it, and what travels on them.

pub(crate) mod json_lines;
pub(crate) mod progress;
pub(crate) mod wire;

use tokio::io::{AsyncRead, AsyncWrite};

/// A stream of bytes in both directions.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
