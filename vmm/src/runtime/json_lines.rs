//! Values that come as lines of JSON.

use std::fmt;
use std::io;
use std::marker::PhantomData;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::call::Duplex;

/// Reads values, a line each.
pub(super) struct JsonLines<T> {
    stream: BufReader<Box<dyn Duplex>>,
    /// What has been read of the next line.
    line: Vec<u8>,
    values: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> JsonLines<T> {
    pub(super) fn new(stream: Box<dyn Duplex>) -> Self {
        Self { stream: BufReader::new(stream), line: Vec::new(), values: PhantomData }
    }

    /// The next value; none at the end. A line that is none, as of a newer release, is passed over.
    /// Cancel safe.
    pub(super) async fn next(&mut self) -> io::Result<Option<T>> {
        loop {
            if self.stream.read_until(b'\n', &mut self.line).await? == 0 && self.line.is_empty() {
                return Ok(None);
            }
            let value = serde_json::from_slice(&self.line);
            self.line.clear();
            if let Ok(value) = value {
                return Ok(Some(value));
            }
        }
    }
}

impl<T> fmt::Debug for JsonLines<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonLines").finish_non_exhaustive()
    }
}
