//! Values as lines of JSON. An empty line marks the end, so that a stream that broke off is not taken for a complete
//! one.

use std::fmt;
use std::io;
use std::marker::PhantomData;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::{Duplex, broken_off};

/// The line that marks the end.
pub(crate) const END: &[u8] = b"\n";

/// Reads values, one per line.
pub(crate) struct JsonLines<T> {
    stream: BufReader<Box<dyn Duplex>>,
    /// The part of the next line that has been read.
    line: Vec<u8>,
    ended: bool,
    values: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> JsonLines<T> {
    pub(crate) fn new(stream: Box<dyn Duplex>) -> Self {
        Self { stream: BufReader::new(stream), line: Vec::new(), ended: false, values: PhantomData }
    }

    /// Returns the next value, or `None` at the end. Skips lines that are not such a value, as a newer release may
    /// write. Cancel safe.
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

impl<T> fmt::Debug for JsonLines<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonLines").finish_non_exhaustive()
    }
}
