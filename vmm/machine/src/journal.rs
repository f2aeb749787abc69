//! Appends the box's events to the home's event log. All writers of the log lock it, so a thread of its own waits
//! for the lock: neither the main thread nor the network's does.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use boxlite_contract::events::{Event, EventKind};
use boxlite_contract::status::now_ms;

use super::threads::Threads;

/// The most events in the queue; further ones are dropped, and counted.
const QUEUE: usize = 256;
/// Timeout for the log's lock.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
/// Pause between two tries to enter a full queue.
const PAUSE: Duration = Duration::from_millis(5);

/// A handle to the event writer. Clones write to the same log.
#[derive(Clone, Debug)]
pub(super) struct Journal {
    id: Arc<str>,
    queue: SyncSender<Entry>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Entry {
    Event(Event),
    /// Answered when all entries before it are written.
    Flush(SyncSender<()>),
}

impl Journal {
    /// Starts the thread. `log` is the home's event log, open for appending.
    pub(super) fn start(threads: &Threads, id: &str, log: File) -> io::Result<Self> {
        let (queue, entries) = sync_channel(QUEUE);
        let lost = Arc::<AtomicU64>::default();
        let count = lost.clone();
        threads.spawn("events", move || write(&entries, &log, &count))?;
        Ok(Self { id: id.into(), queue, lost })
    }

    /// Queues an event. Never blocks.
    pub(super) fn event(&self, kind: EventKind) {
        let event = Event::new(now_ms(), &*self.id, kind);
        if self.queue.try_send(Entry::Event(event)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all queued events are written, for `limit` at most.
    pub(super) fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let (done, written) = sync_channel(1);
        while self.queue.try_send(Entry::Flush(done.clone())).is_err() {
            if Instant::now() >= deadline {
                return;
            }
            std::thread::sleep(PAUSE);
        }
        // Events that are not written by then are lost when the process exits.
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
                            "the event log's lock is held by another process: writing events without it"
                        );
                    }
                    // A lock that is held for so long is not waited for again.
                    patience = Duration::ZERO;
                }
                Err(e) => tracing::warn!("cannot write an event of the box: {e}"),
            },
            Entry::Flush(done) => {
                let _ = done.try_send(());
            }
        }
        match lost.swap(0, Ordering::Relaxed) {
            0 => {}
            lost => tracing::warn!("dropped {lost} events of the box: the queue was full"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FlockOperation, flock};

    use super::*;

    #[test]
    fn a_lock_that_another_process_keeps_blocks_nothing() {
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
        // Events are written without the lock, in bounded time: only the first waits for it.
        journal.flush(Duration::from_secs(60));
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines >= QUEUE, "{lines}");
        drop(held);
    }

    #[test]
    fn events_are_written_in_order() {
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
