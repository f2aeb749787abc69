//! What a box's process leaves for others to read: `status.json` in its folder, and events in the
//! home's log. A host that cannot take them must not stop the box, and a file system that hangs must
//! not keep it from its end: a thread of its own changes the folder.

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

/// How long the last events may take to be written when the process ends.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);

/// How long a change of the status is waited for, and the last one or the folder's removal: the host's file system
/// may hang.
const STATUS_LIMIT: Duration = Duration::from_secs(5);
const LAST_LIMIT: Duration = Duration::from_secs(10);

/// Changes that wait for a file system that hangs; more are lost.
const QUEUE: usize = 64;

/// Writes down what happens to a box. Clones write to the same places.
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

/// The way to the thread that changes the box's folder, in order.
#[derive(Clone, Debug)]
struct Changes {
    queue: SyncSender<(Change, SyncSender<()>)>,
    /// A change was waited for in vain, and none has been made since.
    hangs: Arc<AtomicBool>,
}

impl Record {
    pub(super) fn new(spec: &BoxSpec, journal: Journal, threads: &Threads) -> io::Result<Self> {
        let (queue, changes) = sync_channel(QUEUE);
        let hangs = Arc::<AtomicBool>::default();
        let folder = Folder {
            id: spec.id.clone(),
            folder: spec.folder.clone(),
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

    /// Replaces the status. Waits for it a bounded time, and not at all while the file system hangs.
    pub(super) fn status(&self, status: &Status) {
        // After a loss of power the box died with its host, whatever it did last.
        let change = Change::Status(Box::new(status.clone()), Durability::Process);
        let patience = match self.changes.hangs.load(Ordering::SeqCst) {
            true => Duration::ZERO,
            false => STATUS_LIMIT,
        };
        self.changes.make(change, patience);
    }

    /// Appends an event, soon.
    pub(super) fn event(&self, kind: EventKind) {
        self.journal.event(kind);
    }

    /// Waits for the events so far, a bounded time: the process is about to end.
    pub(super) fn flush(&self) {
        self.journal.flush(FLUSH_LIMIT);
    }

    /// The last words, in bounded time; removes the folder of a box that is not to be kept.
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

    /// Removes the box's folder. What is left of it if this process ends meanwhile has a name that
    /// says so.
    pub(super) fn remove(&self) {
        self.changes.make(Change::Remove, LAST_LIMIT);
    }
}

impl Changes {
    /// Asks for a change, and waits until it is made, at most `patience`.
    fn make(&self, change: Change, patience: Duration) {
        let (done, made) = sync_channel(1);
        let sent = self.queue.try_send((change, done)).is_ok();
        if sent && made.recv_timeout(patience).is_ok() {
            return;
        }
        if !self.hangs.swap(true, Ordering::SeqCst) {
            tracing::warn!("the box's folder cannot be changed now: its file system hangs");
        }
    }
}

/// The box's folder, as the thread that changes it has it.
struct Folder {
    id: String,
    folder: PathBuf,
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
            // Nobody may wait for it any more.
            let _ = done.try_send(());
        }
    }

    fn write(&self, status: &Status, durability: Durability) {
        if let Err(e) = status.write(&self.folder, durability) {
            tracing::warn!("{}: the box's status cannot be written: {e}", self.folder.display());
        }
    }

    fn remove(&self) {
        let gone = self.folder.with_file_name(format!("{REMOVED_PREFIX}{}", self.id));
        let removed = match std::fs::rename(&self.folder, &gone) {
            Ok(()) => std::fs::remove_dir_all(&gone),
            Err(e) => Err(e),
        };
        match removed {
            Ok(()) => self.journal.event(EventKind::Removed),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => {
                let folder = self.folder.display();
                tracing::warn!("{folder}: the box's folder cannot be removed: {e}");
            }
        }
    }
}
