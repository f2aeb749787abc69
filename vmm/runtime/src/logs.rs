//! What a box's main command wrote, for who reads it.
//!
//! ```text
//!   record: [length u32][stream u8][time u64][bytes]     end: [u32::MAX]     little endian
//! ```

use std::fmt;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boxlite_contract::logbook;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;

pub use boxlite_contract::logbook::{LogStream, Record as LogRecord};

use crate::stream::Duplex;
use crate::stream::json_lines;

/// So long after the end of a query, everything that was written before it is in the log.
const SETTLED: Duration = Duration::from_millis(500);

/// The most bytes of a record.
const MAX_RECORD: u32 = 1 << 20;

/// In place of a record's length: there are no more, as opposed to a stream that broke off.
pub(crate) const END: u32 = u32::MAX;

/// Which part of a log. The default is all that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LogQuery {
    /// Whether to wait for more until the box ends.
    pub follow: bool,
    /// Only the last so many lines of what is there.
    pub tail: Option<u64>,
    /// Only what was written since: milliseconds since the Unix epoch.
    pub since_ms: Option<u64>,
    /// Only what was written until then: nanoseconds since the Unix epoch. Nothing later is waited for.
    pub until_ns: Option<u64>,
    /// Only what was written there.
    pub stream: Option<LogStream>,
}

impl LogQuery {
    /// Waits for more until the box ends.
    pub fn follow(mut self, yes: bool) -> Self {
        self.follow = yes;
        self
    }

    /// Only the last so many lines of what is there.
    pub fn tail(mut self, lines: u64) -> Self {
        self.tail = Some(lines);
        self
    }

    /// Only what was written since.
    pub fn since(mut self, time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.since_ms = Some(since.as_millis().try_into().unwrap_or(u64::MAX));
        self
    }

    /// Only what was written until then.
    pub fn until(mut self, time: SystemTime) -> Self {
        let until = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.until_ns = Some(until.as_nanos().try_into().unwrap_or(u64::MAX));
        self
    }

    /// Only what was written there.
    pub fn stream(mut self, stream: LogStream) -> Self {
        self.stream = Some(stream);
        self
    }

    pub(crate) fn query(&self) -> logbook::Query {
        let mut query = logbook::Query::default();
        query.tail = self.tail;
        query.since_ns = self.since_ms.map(|ms| ms.saturating_mul(1_000_000));
        query.until_ns = self.until_ns;
        query.stream = self.stream;
        query
    }

    /// How long after `now` nothing that comes is wanted any more; none: as long as the box lives.
    pub(crate) fn left(&self, now: SystemTime) -> Option<Duration> {
        let until = self.until_ns.map(Duration::from_nanos)?;
        let end = UNIX_EPOCH.checked_add(until)?.checked_add(SETTLED)?;
        Some(end.duration_since(now).unwrap_or_default())
    }
}

/// What a main command wrote, in the order in which it arrived.
pub struct Logs {
    stream: Box<dyn Duplex>,
    ended: bool,
}

impl Logs {
    pub(crate) fn new(stream: Box<dyn Duplex>) -> Self {
        Self { stream, ended: false }
    }

    /// The next piece; none at the end. Not cancel safe: what is half read then is lost.
    ///
    /// # Errors
    /// When the log cannot be read on, as when the software host that it is in has gone.
    pub async fn next(&mut self) -> io::Result<Option<LogRecord>> {
        if self.ended {
            return Ok(None);
        }
        self.read().await.map_err(json_lines::broken_off)
    }

    async fn read(&mut self) -> io::Result<Option<LogRecord>> {
        let len = match self.stream.read_u32_le().await? {
            END => {
                self.ended = true;
                return Ok(None);
            }
            len if len <= MAX_RECORD => len,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "malformed log")),
        };
        let stream = match self.stream.read_u8().await? {
            0 => LogStream::Stdout,
            _ => LogStream::Stderr,
        };
        let at_ns = self.stream.read_u64_le().await?;
        let mut bytes = vec![0; len as usize];
        self.stream.read_exact(&mut bytes).await?;
        Ok(Some(LogRecord::new(at_ns, stream, bytes)))
    }
}

impl fmt::Debug for Logs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logs").finish_non_exhaustive()
    }
}
