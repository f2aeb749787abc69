//! The output of a box's main command, on the reading side.
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

use crate::stream::{Duplex, broken_off};

/// Time after the end of a query within which all earlier output reaches the log.
const SETTLED: Duration = Duration::from_millis(500);

/// The largest record, in bytes.
const MAX_RECORD: u32 = 1 << 20;

/// Stands for a record's length at the end, which distinguishes the end from a stream that broke off.
pub(crate) const END: u32 = u32::MAX;

/// A part of a log. The default is all existing output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LogQuery {
    /// Whether to wait for new output until the box stops.
    pub follow: bool,
    /// Number of existing lines to return, the last ones.
    pub tail: Option<u64>,
    /// The earliest output: milliseconds since the Unix epoch.
    pub since_ms: Option<u64>,
    /// The latest output: nanoseconds since the Unix epoch. With `follow`, waiting ends then, too.
    pub until_ns: Option<u64>,
    /// The only stream to return; none: both.
    pub stream: Option<LogStream>,
}

impl LogQuery {
    /// Sets whether to wait for new output until the box stops.
    pub fn follow(mut self, yes: bool) -> Self {
        self.follow = yes;
        self
    }

    /// Chooses the last `lines` of the existing output.
    pub fn tail(mut self, lines: u64) -> Self {
        self.tail = Some(lines);
        self
    }

    /// Chooses output since `time`.
    pub fn since(mut self, time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.since_ms = Some(since.as_millis().try_into().unwrap_or(u64::MAX));
        self
    }

    /// Chooses output until `time`, and waits for nothing later.
    pub fn until(mut self, time: SystemTime) -> Self {
        let until = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.until_ns = Some(until.as_nanos().try_into().unwrap_or(u64::MAX));
        self
    }

    /// Chooses one of the two streams.
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
        query.existing = !self.follow;
        query
    }

    /// Time from `now` after which no output matches any more; none: no limit.
    pub(crate) fn left(&self, now: SystemTime) -> Option<Duration> {
        let until = self.until_ns.map(Duration::from_nanos)?;
        let end = UNIX_EPOCH.checked_add(until)?.checked_add(SETTLED)?;
        Some(end.duration_since(now).unwrap_or_default())
    }
}

/// The output of a main command, in the order in which it arrived.
pub struct Logs {
    stream: Box<dyn Duplex>,
    ended: bool,
}

impl Logs {
    pub(crate) fn new(stream: Box<dyn Duplex>) -> Self {
        Self { stream, ended: false }
    }

    /// Returns the next piece, or `None` at the end. Not cancel safe: a record that is half read is lost.
    ///
    /// # Errors
    /// The log cannot be read any further, for instance because its software host has stopped.
    pub async fn next(&mut self) -> io::Result<Option<LogRecord>> {
        if self.ended {
            return Ok(None);
        }
        self.read().await.map_err(broken_off)
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
