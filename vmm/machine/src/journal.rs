//! The box's events, on their way to the home's log. That log is locked by all who write to it, so a
//! thread of its own waits for the lock: neither the box nor its network does.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use boxlite_contract::events::{Event, EventKind};
use boxlite_contract::status::now_ms;

use super::threads::Threads;

/// Events that wait at most; more are lost, and counted.
const QUEUE: usize = 256;
/// How long the log's lock is waited for.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
/// Between two tries to find room in a full queue.
const PAUSE: Duration = Duration::from_millis(5);

/// Writes a box's events down. Clones write to the same log.
#[derive(Clone, Debug)]
pub(super) struct Journal {
    id: Arc<str>,
    queue: SyncSender<Entry>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Entry {
    Event(Event),
    /// Answered when what came before it is written.
    Flush(SyncSender<()>),
}

impl Journal {
    /// `log` is the home's event log, open for appending.
    pub(super) fn start(threads: &Threads, id: &str, log: File) -> io::Result<Self> {
        let (queue, entries) = sync_channel(QUEUE);
        let lost = Arc::<AtomicU64>::default();
        let count = lost.clone();
        threads.spawn("events", move || write(&entries, &log, &count))?;
        Ok(Self { id: id.into(), queue, lost })
    }

    /// Appends an event, soon. Never waits.
    pub(super) fn event(&self, kind: EventKind) {
        let event = Event::new(now_ms(), &*self.id, kind);
        if self.queue.try_send(Entry::Event(event)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until the events so far are written, at most so long.
    pub(super) fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let (done, written) = sync_channel(1);
        while self.queue.try_send(Entry::Flush(done.clone())).is_err() {
            if Instant::now() >= deadline {
                return;
            }
            std::thread::sleep(PAUSE);
        }
        // What is not written by then is lost with the process.
        let _ = written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

fn write(entries: &Receiver<Entry>, log: &File, lost: &AtomicU64) {
    let mut patience = LOCK_LIMIT;
    for entry in entries {
        match entry {
            Entry::Event(event) => match event.append_within(log, patience) {
                Ok(true) => patience = LOCK_LIMIT,
                Ok(false) => {
                    if !patience.is_zero() {
                        tracing::warn!(
                            "the event log is locked by others: events are written all the same"
                        );
                    }
                    // Whoever holds it for so long does not let go of it for the next one.
                    patience = Duration::ZERO;
                }
                Err(e) => tracing::warn!("an event of the box cannot be written: {e}"),
            },
            Entry::Flush(done) => {
                let _ = done.try_send(());
            }
        }
        match lost.swap(0, Ordering::Relaxed) {
            0 => {}
            lost => tracing::warn!("{lost} events of the box are lost: they came too fast"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FlockOperation, flock};

    use super::*;

    #[test]
    fn nobody_waits_for_a_lock_that_another_process_keeps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let open = || File::options().append(true).create(true).open(&path).unwrap();
        let held = open();
        flock(&held, FlockOperation::LockExclusive).unwrap();
        let journal = Journal::start(&Threads::new(|_| {}), "abc", open()).unwrap();
        let started = Instant::now();
        (0..10 * QUEUE).for_each(|_| journal.event(EventKind::Running));
        assert!(started.elapsed() < Duration::from_secs(60), "events wait for the lock");
        journal.flush(Duration::ZERO);
        // It is written all the same, in bounded time, and the lock is waited for once.
        journal.flush(Duration::from_secs(60));
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines >= QUEUE, "{lines}");
        drop(held);
    }

    #[test]
    fn events_are_written_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let log = File::options().append(true).create(true).open(&path).unwrap();
        let journal = Journal::start(&Threads::new(|_| {}), "abc", log).unwrap();
        let kinds = [EventKind::Starting, EventKind::Running, EventKind::Stopping];
        kinds.iter().for_each(|kind| journal.clone().event(kind.clone()));
        journal.flush(Duration::from_secs(60));
        let text = std::fs::read_to_string(&path).unwrap();
        let read: Vec<Event> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert!(read.iter().all(|event| event.id == "abc"));
        assert_eq!(read.into_iter().map(|event| event.kind).collect::<Vec<_>>(), kinds);
    }
}
