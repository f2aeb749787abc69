//! What a box's main command wrote.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boxlite_contract::logbook;
use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

pub use boxlite_contract::logbook::{LogStream, Record as LogRecord};

use super::blocking_io;
use super::call::Duplex;
use super::json_lines;
use super::watch::Follower;

/// So long after the end of a query, everything that was written before it is in the log.
const SETTLED: Duration = Duration::from_millis(500);

/// Bytes under way between log and reader.
const BUFFER: usize = 256 << 10;

/// The most bytes of a record.
const MAX_RECORD: u32 = 1 << 20;

/// In place of a record's length: there are no more, as opposed to a stream that broke off.
const END: u32 = u32::MAX;

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

    fn query(&self) -> logbook::Query {
        let mut query = logbook::Query::default();
        query.tail = self.tail;
        query.since_ns = self.since_ms.map(|ms| ms.saturating_mul(1_000_000));
        query.until_ns = self.until_ns;
        query.stream = self.stream;
        query
    }

    /// How long after `now` nothing that comes is wanted any more; none: as long as the box lives.
    fn left(&self, now: SystemTime) -> Option<Duration> {
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
    pub(super) fn new(stream: Box<dyn Duplex>) -> Self {
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

/// Sends the records of the log in `folder`, which `log` follows; until the box has `ended`, if the
/// query follows it.
pub(super) fn stream(
    folder: PathBuf,
    query: LogQuery,
    log: Follower,
    ended: impl Future<Output = ()> + Send + 'static,
) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    tokio::spawn(async move {
        // A reader that hung up, or a log that cannot be read any more: the stream breaks off.
        if let Err(e) = send(folder, query, log, ended, theirs).await {
            tracing::debug!("a log's stream ended: {e}");
        }
    });
    ours
}

async fn send(
    folder: PathBuf,
    query: LogQuery,
    mut log: Follower,
    ended: impl Future<Output = ()>,
    mut to: DuplexStream,
) -> io::Result<()> {
    let over = match query.left(SystemTime::now()) {
        Some(left) => tokio::time::sleep(left).left_future(),
        None => std::future::pending().right_future(),
    };
    tokio::pin!(ended, over);
    // What was written before the end is not missed: the log is looked at once more after it.
    let mut last = !query.follow;
    let open = query.query();
    let mut reader = blocking_io(move || logbook::Reader::open(&folder, open)).await?;
    loop {
        loop {
            let next = blocking_io(move || reader.poll().map(|record| (reader, record))).await?;
            reader = next.0;
            let Some(record) = next.1 else { break };
            to.write_u32_le(record.bytes.len() as u32).await?;
            to.write_u8(u8::from(record.stream == LogStream::Stderr)).await?;
            to.write_u64_le(record.at_ns).await?;
            to.write_all(&record.bytes).await?;
        }
        if last {
            to.write_u32_le(END).await?;
            return to.shutdown().await;
        }
        let mut byte = [0];
        tokio::select! {
            // Nothing is ever sent to us: this is the reader hanging up.
            _ = to.read(&mut byte) => return Ok(()),
            () = log.changed() => {}
            () = &mut ended => last = true,
            () = &mut over => last = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::watch::Watcher;
    use boxlite_contract::logbook::Writer;

    async fn read(stream: DuplexStream) -> Vec<u8> {
        let mut logs = Logs::new(Box::new(stream));
        let mut all = Vec::new();
        while let Some(record) = logs.next().await.unwrap() {
            all.extend(record.bytes);
        }
        all
    }

    #[tokio::test]
    async fn following_until_a_moment_ends_there_in_a_box_that_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(folder.path());
        let now = SystemTime::now();
        let ns = now.duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        writer.append_at(LogStream::Stdout, b"before\n", ns - 1);
        writer.append_at(LogStream::Stdout, b"after\n", ns + 1);
        let query = LogQuery::default().follow(true).until(now);
        let log = Arc::new(Watcher::default()).follow(folder.path().join(logbook::FILE));
        let lives = std::future::pending();
        let following = read(stream(folder.path().into(), query, log, lives));
        let text = tokio::time::timeout(Duration::from_secs(120), following).await.unwrap();
        assert_eq!(text, b"before\n");
    }
}
