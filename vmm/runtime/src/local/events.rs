//! Follows the home's event log: for who asked for events, and for who waits for a box that removes itself.

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

/// Bytes under way between log and reader.
const BUFFER: usize = 64 << 10;

/// Longer than it takes to begin a log anew.
const BEGUN_ANEW: Duration = Duration::from_millis(10);

/// The longest line that is an event.
const MAX_LINE: usize = 64 << 10;

/// Sends the events of a log, which `changes` follows, until nobody reads them any more.
pub(super) fn stream(log: PathBuf, query: EventQuery, mut changes: Follower) -> DuplexStream {
    let (ours, mut theirs) = tokio::io::duplex(BUFFER);
    // Where the log ends now; what comes before the task has begun is not to be missed.
    let mut tail = match query.since_ms {
        Some(_) => Tail::of_all(log),
        None => Tail::from_now(log),
    };
    tokio::spawn(async move {
        loop {
            let read = blocking_io(move || {
                let lines = tail.read().unwrap_or_default();
                Ok((tail, lines))
            });
            let Ok(read) = read.await else { return };
            let lines;
            (tail, lines) = read;
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
                // Without it, the reader takes the stream for one that broke off.
                let _ = theirs.write_all(json_lines::END).await;
                return;
            }
            let mut byte = [0];
            tokio::select! {
                // Nothing is ever sent to us: this is the reader hanging up.
                _ = theirs.read(&mut byte) => return,
                () = changes.changed() => {}
            }
        }
    });
    ours
}

/// What the log says from now on of the end of a box: all that is left of one that removes itself.
pub(super) struct LastWords(Tail);

impl LastWords {
    /// Of boxes that live now. Blocks, shortly.
    pub(super) fn from_now(log: PathBuf) -> Self {
        Self(Tail::from_now(log))
    }

    /// The last end of this box that was written down. Blocks, for as long as it takes to read the log.
    pub(super) fn of(mut self, id: &str) -> Option<Event> {
        let (mut end, mut looked_again) = (None, false);
        loop {
            let lines = self.0.read().unwrap_or_default();
            if lines.is_empty() {
                if std::mem::replace(&mut looked_again, true) {
                    return end;
                }
                // Another process may just begin the log anew.
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

/// The growing end of a log, also while it is moved aside: the file at `path` stays the same, and the log
/// before it is beside it.
struct Tail {
    path: PathBuf,
    /// The number of the log that is read; none: whichever comes.
    log: Option<u64>,
    /// Whether the log that is read is known to be the older one.
    in_older: bool,
    at: u64,
    /// The beginning of a line that is not whole yet.
    rest: Vec<u8>,
}

impl Tail {
    /// What comes from now on.
    fn from_now(path: PathBuf) -> Self {
        let now =
            File::open(&path).and_then(|log| Ok((events::number(&log)?, log.metadata()?.len())));
        let (log, at) = match now {
            Ok((Some(log), len)) => (Some(log), len),
            // There is none yet, or it is begun anew just now: then all of it is new.
            _ => (None, 0),
        };
        Self { path, log, in_older: false, at, rest: Vec::new() }
    }

    /// All that is there, and what comes.
    fn of_all(path: PathBuf) -> Self {
        let older = File::open(events::older(&path)).and_then(|log| events::number(&log));
        let log = older.ok().flatten();
        Self { path, log, in_older: log.is_some(), at: 0, rest: Vec::new() }
    }

    /// Whole lines that have come since the last time; none at the end.
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
                // It was moved aside meanwhile: what was read may be of its successor.
                continue;
            }
            let read = bytes.len();
            let lines = self.take(bytes);
            if read == 0 || !lines.is_empty() {
                return Ok(lines);
            }
        }
    }

    /// Reads on in the log before the one of number `newest`; none when another log is to be read now.
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
            // That many were moved aside since the last look.
            Some((_, number)) if number > reading => self.begin(number),
            _ => self.begin(newest),
        }
        Ok(None)
    }

    /// Goes to the beginning of a log.
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

    /// Takes what was read; the lines that are whole with it.
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
    async fn events_are_told_as_they_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("events");
        note(&events::older(&log), 1, "older");
        note(&log, 1, "old");
        let query = EventQuery { id: Some("a".into()), ..EventQuery::follow() };
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

    #[test]
    fn nothing_is_missed_when_the_log_is_moved_aside() {
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
        events::move_aside(&log, 0).unwrap();
        for at in 4..9 {
            note(&log, at, "a");
        }
        assert_eq!(all(&mut tail), [3, 4, 5, 6, 7, 8]);
        assert_eq!(all(&mut Tail::of_all(log.clone())), [1, 2, 3, 4, 5, 6, 7, 8]);
        // A new log that is as long as the old one was.
        events::move_aside(&log, 0).unwrap();
        for at in 4..9 {
            note(&log, at, "b");
        }
        assert_eq!(all(&mut tail), [4, 5, 6, 7, 8]);
        // Moved twice: what is left of it.
        events::move_aside(&log, 0).unwrap();
        note(&log, 10, "a");
        events::move_aside(&log, 0).unwrap();
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
