//! Follows the home's event log, for subscribers and for callers that wait for the end of a box that removes itself.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use boxlite_contract::events::{self, Event, EventKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::watch::Follower;
use crate::EventQuery;
use crate::blocking_io;
use crate::stream::json_lines;

/// Bytes of the pipe between log and reader.
const BUFFER: usize = 64 << 10;

/// Longer than another process takes to start a new log.
const BEGUN_ANEW: Duration = Duration::from_millis(10);

/// The longest line of an event, in bytes.
const MAX_LINE: usize = 64 << 10;

/// Sends the events of a log, which `changes` follows, until the reader closes the stream. The stream breaks off if the
/// log cannot be read.
pub(super) fn stream(log: PathBuf, query: EventQuery, mut changes: Follower) -> DuplexStream {
    let (ours, mut theirs) = tokio::io::duplex(BUFFER);
    // The current end of the log, found here so that no event is missed before the task starts.
    let mut tail = match query.since_ms {
        Some(_) => Tail::of_all(log),
        None => Tail::from_now(log),
    };
    tokio::spawn(async move {
        loop {
            let read = blocking_io(move || match tail.read() {
                Ok(lines) => Ok((tail, lines)),
                // No event has happened yet.
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok((tail, Vec::new())),
                Err(e) => Err(e),
            });
            let lines;
            (tail, lines) = match read.await {
                Ok(read) => read,
                Err(e) => return tracing::debug!("a stream of events ended: {e}"),
            };
            for line in lines.split_inclusive(|byte| *byte == b'\n') {
                let event = serde_json::from_slice::<Event>(line);
                let wanted = event.is_ok_and(|event| query.wants(&event));
                if wanted && theirs.write_all(line).await.is_err() {
                    return;
                }
            }
            if !lines.is_empty() {
                continue;
            }
            if !query.follow {
                // Without this line, the stream would look as if it had broken off.
                let _ = theirs.write_all(json_lines::END).await;
                return;
            }
            let mut byte = [0];
            tokio::select! {
                // The reader never sends anything: it has closed the stream.
                _ = theirs.read(&mut byte) => return,
                () = changes.changed() => {}
            }
        }
    });
    ours
}

/// Finds the end of a box in the log from now on: the only trace of a box that removes itself.
pub(super) struct LastWords(Tail);

impl LastWords {
    /// For boxes that are live now. Blocks for a short time.
    pub(super) fn from_now(log: PathBuf) -> Self {
        Self(Tail::from_now(log))
    }

    /// The last recorded end of this box. Blocks while it reads the log.
    pub(super) fn of(mut self, id: &str) -> Option<Event> {
        let (mut end, mut looked_again) = (None, false);
        loop {
            let lines = self.0.read().unwrap_or_default();
            if lines.is_empty() {
                if std::mem::replace(&mut looked_again, true) {
                    return end;
                }
                // Another process may just be starting a new log.
                std::thread::sleep(BEGUN_ANEW);
                continue;
            }
            looked_again = false;
            for line in lines.split_inclusive(|byte| *byte == b'\n') {
                if let Ok(event) = serde_json::from_slice::<Event>(line)
                    && event.id == id
                    && matches!(event.kind, EventKind::Stopped { .. } | EventKind::Failed { .. })
                {
                    end = Some(event);
                }
            }
        }
    }
}

/// Reads a log as it grows, across its moves: `path` always names the newest log, with the one before it beside.
struct Tail {
    path: PathBuf,
    /// The number of the log that is read; none: the first log that exists.
    log: Option<u64>,
    /// Whether the log that is read is known to be the older one.
    in_older: bool,
    at: u64,
    /// The start of an incomplete line.
    rest: Vec<u8>,
}

impl Tail {
    /// Reads events from now on.
    fn from_now(path: PathBuf) -> Self {
        let now =
            File::open(&path).and_then(|log| Ok((events::number(&log)?, log.metadata()?.len())));
        let (log, at) = match now {
            Ok((Some(log), len)) => (Some(log), len),
            // There is no log yet, or a new one is being started: all of it will be new.
            _ => (None, 0),
        };
        Self { path, log, in_older: false, at, rest: Vec::new() }
    }

    /// Reads existing events, then new ones.
    fn of_all(path: PathBuf) -> Self {
        let older = File::open(events::older(&path)).and_then(|log| events::number(&log));
        let log = older.ok().flatten();
        Self { path, log, in_older: log.is_some(), at: 0, rest: Vec::new() }
    }

    /// The complete lines since the last call; none at the end.
    fn read(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let log = File::open(&self.path)?;
            let Some(number) = events::number(&log)? else { return Ok(Vec::new()) };
            let reading = *self.log.get_or_insert(number);
            if self.in_older || reading != number {
                match self.read_older(reading, number)? {
                    Some(lines) if !lines.is_empty() => return Ok(lines),
                    _ => continue,
                }
            }
            if log.metadata()?.len() < self.at {
                self.begin(number);
            }
            let bytes = self.read_from(&log)?;
            if events::number(&log)? != Some(number) {
                // The log was moved aside meanwhile, and the read may have been from its successor.
                continue;
            }
            let read = bytes.len();
            let lines = self.take(bytes);
            if read == 0 || !lines.is_empty() {
                return Ok(lines);
            }
        }
    }

    /// Continues in the log before the one of number `newest`. None if another log has to be read now.
    fn read_older(&mut self, reading: u64, newest: u64) -> io::Result<Option<Vec<u8>>> {
        let older = match File::open(events::older(&self.path)) {
            Ok(older) => events::number(&older)?.map(|number| (older, number)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        match older {
            Some((older, number)) if number == reading => {
                let bytes = self.read_from(&older)?;
                if !bytes.is_empty() {
                    return Ok(Some(self.take(bytes)));
                }
                self.begin(reading + 1);
            }
            // More than one log was moved aside since the last call.
            Some((_, number)) if number > reading => self.begin(number),
            _ => self.begin(newest),
        }
        Ok(None)
    }

    /// Moves to the start of a log.
    fn begin(&mut self, number: u64) {
        (self.log, self.in_older, self.at) = (Some(number), false, 0);
        self.rest.clear();
    }

    fn read_from(&self, log: &File) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; BUFFER];
        let read = log.read_at(&mut bytes, self.at)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// Adds read data. Returns the lines that it completes.
    fn take(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        self.at += bytes.len() as u64;
        let mut lines = std::mem::take(&mut self.rest);
        lines.extend(bytes);
        let whole = lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.rest = lines.split_off(whole);
        if self.rest.len() > MAX_LINE {
            self.rest.clear();
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::sync::Arc;

    use super::*;
    use crate::Events;
    use crate::local::watch::Watcher;
    use boxlite_contract::events::EventKind;

    fn note(log: &std::path::Path, at_ms: u64, id: &str) {
        let file = OpenOptions::new().append(true).create(true).open(log).unwrap();
        Event::new(at_ms, id, EventKind::Running).append(&file).unwrap();
    }

    #[tokio::test]
    async fn events_arrive_as_they_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("events");
        note(&events::older(&log), 1, "older");
        note(&log, 1, "old");
        let query = EventQuery { id: Some("a".into()), ..EventQuery::default().follow(true) };
        let watcher = Arc::new(Watcher::default());
        let stream = |query| stream(log.clone(), query, watcher.follow(log.clone()));
        let mut mine = Events::new(Box::new(stream(query)));
        let all = EventQuery { since_ms: Some(1), follow: false, id: None };
        for (at, id) in [(2, "a"), (3, "b"), (4, "a")] {
            note(&log, at, id);
        }
        assert_eq!(mine.next().await.unwrap().unwrap().at_ms, 2);
        assert_eq!(mine.next().await.unwrap().unwrap().at_ms, 4);
        // Half a line is none yet.
        let mut file = OpenOptions::new().append(true).open(&log).unwrap();
        std::io::Write::write_all(&mut file, b"{\"at_ms\":5,").unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(150), mine.next()).await;
        assert!(waited.is_err());
        std::io::Write::write_all(&mut file, b"\"id\":\"a\",\"event\":\"paused\"}\n").unwrap();
        assert_eq!(mine.next().await.unwrap().unwrap().kind, EventKind::Paused);

        let mut events = Events::new(Box::new(stream(all)));
        let mut times = Vec::new();
        while let Some(event) = events.next().await.unwrap() {
            times.push(event.at_ms);
        }
        assert_eq!(times, [1, 1, 2, 3, 4, 5]);
    }

    #[tokio::test]
    async fn a_log_that_cannot_be_read_breaks_the_stream_off() {
        let dir = tempfile::tempdir().unwrap();
        let watcher = Arc::new(Watcher::default());
        let read = async |log: PathBuf, follow| {
            let query = EventQuery { since_ms: Some(0), follow, id: None };
            let changes = watcher.follow(log.clone());
            Events::new(Box::new(stream(log, query, changes))).next().await
        };
        // A folder, which reading reports.
        for follow in [false, true] {
            let error = read(dir.path().into(), follow).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
        // There is none before the first event.
        assert_eq!(read(dir.path().join("events.jsonl"), false).await.unwrap(), None);
    }

    #[test]
    fn no_event_is_missed_when_the_log_is_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("events.jsonl");
        let times = |lines: Vec<u8>| -> Vec<u64> {
            let lines = lines.split_inclusive(|byte| *byte == b'\n');
            lines
                .filter_map(|line| Some(serde_json::from_slice::<Event>(line).ok()?.at_ms))
                .collect()
        };
        let all = |tail: &mut Tail| {
            let mut all = Vec::new();
            loop {
                match tail.read().unwrap() {
                    lines if lines.is_empty() => return times(all),
                    lines => all.extend(lines),
                }
            }
        };
        note(&log, 1, "a");
        let mut tail = Tail::from_now(log.clone());
        note(&log, 2, "a");
        assert_eq!(all(&mut tail), [2]);
        // Between two looks: events before and after the move, and the new log grows beyond the old one.
        note(&log, 3, "a");
        events::rotate(&log, 0).unwrap();
        for at in 4..9 {
            note(&log, at, "a");
        }
        assert_eq!(all(&mut tail), [3, 4, 5, 6, 7, 8]);
        assert_eq!(all(&mut Tail::of_all(log.clone())), [1, 2, 3, 4, 5, 6, 7, 8]);
        // A new log that is as long as the old one was.
        events::rotate(&log, 0).unwrap();
        for at in 4..9 {
            note(&log, at, "b");
        }
        assert_eq!(all(&mut tail), [4, 5, 6, 7, 8]);
        // Moved twice: what is left of it.
        events::rotate(&log, 0).unwrap();
        note(&log, 10, "a");
        events::rotate(&log, 0).unwrap();
        note(&log, 11, "a");
        assert_eq!(all(&mut tail), [10, 11]);
        // As a release without numbers left it.
        std::fs::remove_file(&log).unwrap();
        std::fs::write(events::older(&log), "{\"at_ms\":1,\"id\":\"a\",\"event\":\"running\"}\n")
            .unwrap();
        note(&log, 2, "a");
        assert_eq!(all(&mut Tail::of_all(log)), [1, 2]);
    }
}
