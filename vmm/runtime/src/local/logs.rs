//! Sends the log of a box's main command in the format of [`logs`](crate::logs).

use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use boxlite_contract::logbook::{self, LogStream};
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::watch::Follower;
use crate::logs::{END, LogQuery};
use crate::{Result, blocking_io};

/// Bytes of the pipe between log and reader.
const BUFFER: usize = 256 << 10;

/// Bytes of records that are read from the log at once.
const BATCH: usize = 64 << 10;

/// Sends the records of the log in `folder`, whose changes `log` follows. A query with `follow` continues until the box
/// has `ended`; without an end of the box that is known, the stream breaks off.
pub(super) fn stream(
    folder: PathBuf,
    query: LogQuery,
    log: Follower,
    ended: impl Future<Output = Result<()>> + Send + 'static,
) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    tokio::spawn(async move {
        // The reader closed the stream, or the log cannot be read any more: the stream breaks off.
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
    ended: impl Future<Output = Result<()>>,
    mut to: DuplexStream,
) -> io::Result<()> {
    let over = match query.left(SystemTime::now()) {
        Some(left) => tokio::time::sleep(left).left_future(),
        None => std::future::pending().right_future(),
    };
    tokio::pin!(ended, over);
    // The log is read once more after the end, so that no output before it is missed.
    let mut last = !query.follow;
    let open = query.query();
    let mut reader = blocking_io(move || logbook::Reader::open(&folder, open)).await?;
    loop {
        loop {
            let next = blocking_io(move || Ok((batch(&mut reader), reader))).await?;
            reader = next.1;
            let (records, result) = next.0;
            to.write_all(&records).await?;
            result?;
            if records.is_empty() {
                break;
            }
        }
        if last {
            to.write_u32_le(END).await?;
            return to.shutdown().await;
        }
        let mut byte = [0];
        tokio::select! {
            // The reader never sends anything: it has closed the stream.
            _ = to.read(&mut byte) => return Ok(()),
            () = log.changed() => {}
            result = &mut ended => {
                result.map_err(io::Error::other)?;
                last = true;
            }
            () = &mut over => last = true,
        }
    }
}

/// Reads and encodes the next records, none if the log has no more now, and returns the error that stopped reading.
/// Reading one record at a time would cost a switch of threads, a write and, in a nested host, a frame for each.
fn batch(reader: &mut logbook::Reader) -> (Vec<u8>, io::Result<()>) {
    let mut batch = Vec::new();
    while batch.len() < BATCH {
        let record = match reader.poll() {
            Ok(Some(record)) => record,
            Ok(None) => break,
            Err(e) => return (batch, Err(e)),
        };
        batch.extend((record.bytes.len() as u32).to_le_bytes());
        batch.push(u8::from(record.stream == LogStream::Stderr));
        batch.extend(record.at_ns.to_le_bytes());
        batch.extend(&record.bytes);
    }
    (batch, Ok(()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use boxlite_contract::logbook::Writer;

    use crate::local::watch::Watcher;
    use crate::{Error, Logs};

    async fn read(stream: DuplexStream) -> Vec<u8> {
        let mut logs = Logs::new(Box::new(stream));
        let mut all = Vec::new();
        while let Some(record) = logs.next().await.unwrap() {
            all.extend(record.bytes);
        }
        all
    }

    #[tokio::test]
    async fn following_until_a_time_ends_then_even_without_output() {
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

    #[tokio::test]
    async fn a_box_whose_end_cannot_be_awaited_breaks_the_stream_off() {
        let folder = tempfile::tempdir().unwrap();
        Writer::open(folder.path()).append_at(LogStream::Stdout, b"before\n", 1);
        let following = |ended| {
            let log = Arc::new(Watcher::default()).follow(folder.path().join(logbook::FILE));
            let query = LogQuery::default().follow(true);
            Logs::new(Box::new(stream(folder.path().into(), query, log, ended)))
        };
        for (ended, is_complete) in [(Ok(()), true), (Err(Error::internal("no descriptor")), false)]
        {
            let mut logs = following(std::future::ready(ended));
            assert_eq!(logs.next().await.unwrap().unwrap().bytes, b"before\n");
            match logs.next().await {
                Ok(None) => assert!(is_complete),
                Ok(Some(record)) => panic!("{record:?}"),
                Err(e) => assert!(!is_complete, "{e}"),
            }
        }
    }
}
