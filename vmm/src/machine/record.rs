//! What a box's process leaves for others to read: `status.json` in its folder, and events in the
//! home's log. A host that cannot take them must not stop the box.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use boxlite_rootfs_builder::durable::Durability;

use super::journal::Journal;
use super::spec::BoxSpec;
use super::status::{Ended, Status};
use crate::events::EventKind;

/// How long the last events may take to be written when the process ends.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);

/// What stands before a box's ID in the name of a folder that is being removed.
pub(crate) const GONE: &str = ".gone-";

/// Writes down what happens to a box. Clones write to the same places.
#[derive(Clone, Debug)]
pub(super) struct Record {
    id: String,
    folder: PathBuf,
    remove: bool,
    journal: Journal,
}

impl Record {
    pub(super) fn new(spec: &BoxSpec, journal: Journal) -> Self {
        let (id, folder) = (spec.id.clone(), spec.folder.clone());
        Self { id, folder, remove: spec.remove, journal }
    }

    /// The box's folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Replaces the status.
    pub(super) fn status(&self, status: &Status) {
        // After a loss of power the box died with its host, whatever it did last.
        self.write(status, Durability::Process);
    }

    fn write(&self, status: &Status, durability: Durability) {
        if let Err(e) = status.write(&self.folder, durability) {
            tracing::warn!("{}: the box's status cannot be written: {e}", self.folder.display());
        }
    }

    /// Appends an event, soon.
    pub(super) fn event(&self, kind: EventKind) {
        self.journal.event(kind);
    }

    /// Waits for the events so far, a bounded time: the process is about to end.
    pub(super) fn flush(&self) {
        self.journal.flush(FLUSH_LIMIT);
    }

    /// The last words; removes the folder of a box that is not to be kept.
    pub(super) fn end(&self, status: &Status, ended: &Ended) {
        if !self.remove {
            self.write(status, Durability::Power);
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

    /// Removes the box's folder. What is left of it if this process is killed meanwhile has a name
    /// that says so.
    pub(super) fn remove(&self) {
        let gone = self.folder.with_file_name(format!("{GONE}{}", self.id));
        let removed = match std::fs::rename(&self.folder, &gone) {
            Ok(()) => std::fs::remove_dir_all(&gone),
            Err(e) => Err(e),
        };
        match removed {
            Ok(()) => self.event(EventKind::Removed),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => {
                let folder = self.folder.display();
                tracing::warn!("{folder}: the box's folder cannot be removed: {e}");
            }
        }
    }
}
