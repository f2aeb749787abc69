//! Values that come as lines of JSON. An empty line is their end, so that a stream that broke off is not taken for
//! a whole one.

use std::fmt;
use std::io;
use std::marker::PhantomData;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::Duplex;

/// What ends the values.
pub(crate) const END: &[u8] = b"\n";

/// Reads values, a line each.
pub(crate) struct JsonLines<T> {
    stream: BufReader<Box<dyn Duplex>>,
    /// What has been read of the next line.
    line: Vec<u8>,
    ended: bool,
    values: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> JsonLines<T> {
    pub(crate) fn new(stream: Box<dyn Duplex>) -> Self {
        Self { stream: BufReader::new(stream), line: Vec::new(), ended: false, values: PhantomData }
    }

    /// The next value; none at the end. A line that is none, as of a newer release, is passed over.
    /// Cancel safe.
    pub(crate) async fn next(&mut self) -> io::Result<Option<T>> {
        while !self.ended {
            let read = self.stream.read_until(b'\n', &mut self.line).await;
            if read.map_err(broken_off)? == 0 || !self.line.ends_with(b"\n") {
                return Err(broken_off(io::ErrorKind::UnexpectedEof.into()));
            }
            self.ended = self.line == END;
            let value = serde_json::from_slice(&self.line);
            self.line.clear();
            if let Ok(value) = value {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }
}

/// An error of a stream that ended before what it carries did.
pub(crate) fn broken_off(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            let why = "it broke off: the runtime that sent it is gone, and its software host, if it ran in one";
            io::Error::new(error.kind(), why)
        }
        _ => error,
    }
}

impl<T> fmt::Debug for JsonLines<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonLines").finish_non_exhaustive()
    }
}
