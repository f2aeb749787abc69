//! The box's record on disk: `status.json` in its folder, and events in the home's log. A write error must not stop
//! the box, and a file system that hangs must not delay its end: a thread of its own changes the folder.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use boxlite_contract::events::EventKind;
use boxlite_contract::spec::{BoxSpec, REMOVED_PREFIX};
use boxlite_contract::status::{BoxEnd, Status};
use boxlite_durable::Durability;

use super::journal::Journal;
use super::threads::Threads;

/// Timeout for the last events when the process exits.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);

/// Timeout for a change of the status: the host's file system may hang.
const STATUS_LIMIT: Duration = Duration::from_secs(5);
/// Timeout for the last status, or for the removal of the folder.
const LAST_LIMIT: Duration = Duration::from_secs(10);

/// The most changes in the queue, while a file system hangs; further ones are dropped.
const QUEUE: usize = 64;

/// A handle to a box's record. Clones write to the same places.
#[derive(Clone, Debug)]
pub(super) struct Record {
    folder: PathBuf,
    remove: bool,
    journal: Journal,
    changes: Changes,
}

/// A change of the box's folder.
#[derive(Debug)]
enum Change {
    /// Replace the status.
    Status(Box<Status>, Durability),
    /// Remove the folder.
    Remove,
}

/// The queue of the thread that changes the box's folder, in order.
#[derive(Clone, Debug)]
struct Changes {
    queue: SyncSender<(Change, SyncSender<()>)>,
    /// A change timed out, and none has been made since.
    hangs: Arc<AtomicBool>,
}

impl Record {
    pub(super) fn new(spec: &BoxSpec, journal: Journal, threads: &Threads) -> io::Result<Self> {
        let (queue, changes) = sync_channel(QUEUE);
        let hangs = Arc::<AtomicBool>::default();
        let folder = Folder {
            folder: spec.folder.clone(),
            removed: removed_folder(spec),
            journal: journal.clone(),
            hangs: hangs.clone(),
        };
        threads.spawn("record", move || folder.change(&changes))?;
        let (folder, changes) = (spec.folder.clone(), Changes { queue, hangs });
        Ok(Self { folder, remove: spec.remove, journal, changes })
    }

    /// The box's folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Replaces the status. Waits for a bounded time, and not at all while the file system hangs.
    pub(super) fn status(&self, status: &Status) {
        // After a loss of power the box has died with its host, whatever this status says.
        let change = Change::Status(Box::new(status.clone()), Durability::Process);
        let patience = match self.changes.hangs.load(Ordering::SeqCst) {
            true => Duration::ZERO,
            false => STATUS_LIMIT,
        };
        self.changes.make(change, patience);
    }

    /// Queues an event.
    pub(super) fn event(&self, kind: EventKind) {
        self.journal.event(kind);
    }

    /// Waits until queued events are written, for a bounded time, before the process exits.
    pub(super) fn flush(&self) {
        self.journal.flush(FLUSH_LIMIT);
    }

    /// Records how the box ended, or removes its folder if the box is not kept; in bounded time.
    pub(super) fn end(&self, status: &Status, ended: &BoxEnd) {
        if !self.remove {
            let change = Change::Status(Box::new(status.clone()), Durability::Power);
            self.changes.make(change, LAST_LIMIT);
        }
        self.event(match ended.failure() {
            None => EventKind::Stopped { code: ended.code() },
            Some(reason) => EventKind::Failed { reason },
        });
        if self.remove {
            self.remove();
        }
        self.flush();
    }

    /// Removes the box's folder. If this process exits meanwhile, the rest of the folder has a name that
    /// marks it as removed.
    pub(super) fn remove(&self) {
        self.changes.make(Change::Remove, LAST_LIMIT);
    }
}

impl Changes {
    /// Queues a change, and waits until it is made, for `patience` at most.
    fn make(&self, change: Change, patience: Duration) {
        let (done, made) = sync_channel(1);
        let sent = self.queue.try_send((change, done)).is_ok();
        if sent && made.recv_timeout(patience).is_ok() {
            return;
        }
        if !self.hangs.swap(true, Ordering::SeqCst) {
            tracing::warn!("cannot change the box's folder: its file system hangs");
        }
    }
}

/// The name that a box's folder has while it is removed.
pub(super) fn removed_folder(spec: &BoxSpec) -> PathBuf {
    spec.folder.with_file_name(format!("{REMOVED_PREFIX}{}", spec.id))
}

/// The state of the thread that changes the box's folder.
struct Folder {
    folder: PathBuf,
    removed: PathBuf,
    journal: Journal,
    hangs: Arc<AtomicBool>,
}

impl Folder {
    fn change(&self, changes: &Receiver<(Change, SyncSender<()>)>) {
        for (change, done) in changes {
            match change {
                Change::Status(status, durability) => self.write(&status, durability),
                Change::Remove => self.remove(),
            }
            self.hangs.store(false, Ordering::SeqCst);
            // The waiter may have timed out.
            let _ = done.try_send(());
        }
    }

    fn write(&self, status: &Status, durability: Durability) {
        if let Err(e) = status.write(&self.folder, durability) {
            tracing::warn!("{}: cannot write the box's status: {e}", self.folder.display());
        }
    }

    fn remove(&self) {
        let removed = match std::fs::rename(&self.folder, &self.removed) {
            Ok(()) => std::fs::remove_dir_all(&self.removed),
            Err(e) => Err(e),
        };
        match removed {
            Ok(()) => self.journal.event(EventKind::Removed),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => {
                let folder = self.folder.display();
                tracing::warn!("{folder}: cannot remove the box's folder: {e}");
            }
        }
    }
}
