//! Events of the boxes of a home, as they happen, whoever makes them happen.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::call::Duplex;
use super::json_lines::JsonLines;
use crate::events::{self, Event};

/// Between two looks at the log.
const PAUSE: Duration = Duration::from_millis(50);

/// Bytes under way between log and reader.
const BUFFER: usize = 64 << 10;

/// The longest line that is an event.
const MAX_LINE: usize = 64 << 10;

/// Which events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EventQuery {
    /// From this time on (milliseconds since the Unix epoch); none: from now on.
    pub since_ms: Option<u64>,
    /// Whether to wait for more at the end.
    pub follow: bool,
    /// Of this box alone, by its ID.
    pub id: Option<String>,
}

impl EventQuery {
    /// All events from now on, as they happen.
    pub fn follow() -> Self {
        Self { since_ms: None, follow: true, id: None }
    }

    /// Also those since then.
    pub fn since(mut self, time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.since_ms = Some(since.as_millis().try_into().unwrap_or(u64::MAX));
        self
    }

    /// Whether to wait for more at the end.
    pub fn following(mut self, yes: bool) -> Self {
        self.follow = yes;
        self
    }

    fn wants(&self, event: &Event) -> bool {
        self.since_ms.is_none_or(|since| event.at_ms >= since)
            && self.id.as_ref().is_none_or(|id| event.id == *id)
    }
}

/// Events, in the order in which they were written down.
#[derive(Debug)]
pub struct Events(JsonLines<Event>);

impl Events {
    pub(super) fn new(stream: Box<dyn Duplex>) -> Self {
        Self(JsonLines::new(stream))
    }

    /// The next event; none at the end, which a subscription that follows does not have. Cancel safe.
    pub async fn next(&mut self) -> io::Result<Option<Event>> {
        self.0.next().await
    }
}

/// Sends the events of a log until nobody reads them any more.
pub(super) fn stream(log: PathBuf, query: EventQuery) -> DuplexStream {
    let (ours, mut theirs) = tokio::io::duplex(BUFFER);
    // Where the log ends now; what comes before the task has begun is not to be missed.
    let end = std::fs::metadata(&log).map_or(0, |log| log.len());
    let start = if query.since_ms.is_some() { 0 } else { end };
    tokio::spawn(async move {
        let mut older = query.since_ms.map(|_| Tail::new(events::older(&log), 0));
        let mut tail = Tail::new(log, start);
        loop {
            let lines = older.as_mut().unwrap_or(&mut tail).read().unwrap_or_default();
            for line in lines.split_inclusive(|byte| *byte == b'\n') {
                let event = serde_json::from_slice::<Event>(line);
                let wanted = event.is_ok_and(|event| query.wants(&event));
                if wanted && theirs.write_all(line).await.is_err() {
                    return;
                }
            }
            if !lines.is_empty() || older.take().is_some() {
                continue;
            }
            if !query.follow {
                return;
            }
            let mut byte = [0];
            tokio::select! {
                // Nothing is ever sent to us: this is the reader hanging up.
                _ = theirs.read(&mut byte) => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    });
    ours
}

/// The growing end of a file of lines.
struct Tail {
    path: PathBuf,
    at: u64,
    /// The beginning of a line that is not whole yet.
    rest: Vec<u8>,
}

impl Tail {
    fn new(path: PathBuf, at: u64) -> Self {
        Self { path, at, rest: Vec::new() }
    }

    /// Whole lines that have come since the last time; none at the end.
    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut file = File::open(&self.path)?;
        if file.metadata()?.len() < self.at {
            // Begun anew.
            self.at = 0;
            self.rest.clear();
        }
        file.seek(SeekFrom::Start(self.at))?;
        let mut bytes = std::mem::take(&mut self.rest);
        let read = file.take(BUFFER as u64).read_to_end(&mut bytes)?;
        self.at += read as u64;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.rest = bytes.split_off(whole);
        if self.rest.len() > MAX_LINE {
            self.rest.clear();
        }
        if bytes.is_empty() && read > 0 { self.read() } else { Ok(bytes) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;
    use crate::events::EventKind;

    fn note(log: &std::path::Path, at_ms: u64, id: &str) {
        let file = OpenOptions::new().append(true).create(true).open(log).unwrap();
        Event { at_ms, id: id.into(), kind: EventKind::Running }.append(&file).unwrap();
    }

    #[tokio::test]
    async fn events_are_told_as_they_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("events");
        note(&events::older(&log), 1, "older");
        note(&log, 1, "old");
        let query = EventQuery { id: Some("a".into()), ..EventQuery::follow() };
        let mut mine = Events::new(Box::new(stream(log.clone(), query)));
        let all = EventQuery { since_ms: Some(1), follow: false, id: None };
        for (at, id) in [(2, "a"), (3, "b"), (4, "a")] {
            note(&log, at, id);
        }
        assert_eq!(mine.next().await.unwrap().unwrap().at_ms, 2);
        assert_eq!(mine.next().await.unwrap().unwrap().at_ms, 4);
        // Half a line is none yet.
        let mut file = OpenOptions::new().append(true).open(&log).unwrap();
        std::io::Write::write_all(&mut file, b"{\"at_ms\":5,").unwrap();
        let waited = tokio::time::timeout(PAUSE * 3, mine.next()).await;
        assert!(waited.is_err());
        std::io::Write::write_all(&mut file, b"\"id\":\"a\",\"event\":\"paused\"}\n").unwrap();
        assert_eq!(mine.next().await.unwrap().unwrap().kind, EventKind::Paused);

        let mut events = Events::new(Box::new(stream(log, all)));
        let mut times = Vec::new();
        while let Some(event) = events.next().await.unwrap() {
            times.push(event.at_ms);
        }
        assert_eq!(times, [1, 1, 2, 3, 4, 5]);
    }
}
