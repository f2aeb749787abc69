//! Journals, `refs/<hash of name>.pull`: the blobs that a pull in progress needs.
//!
//! Without a journal, blobs of no image are garbage; with one, they are kept for a while, for the
//! next attempt.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::draft::write_whole;
use super::folders::{Folders, record_stem};
use crate::error::{Error, Result};
use crate::file::read_small;
use crate::format::Digest;

/// Extension of journals.
pub(super) const JOURNAL_SUFFIX: &str = "pull";

/// Age limit of an interrupted pull's remains.
const MAX_AGE: Duration = Duration::from_hours(72);
const MAX_BYTES: u64 = 1 << 20;

/// The journal of a pull in progress.
pub(super) struct Journal(PathBuf);

impl Journal {
    /// Records what the pull of this image needs.
    pub(super) fn write(folders: &Folders, name: &str, blobs: &[&Digest]) -> Result<Self> {
        let stem = record_stem(name);
        let path = folders.refs().join(format!("{stem}.{JOURNAL_SUFFIX}"));
        let json = serde_json::to_vec(blobs)
            .map_err(|error| Error::corrupt(path.display().to_string(), error))?;
        write_whole(&path, &json)?;
        Ok(Self(path))
    }

    /// Ends the journal: the image has a record now.
    pub(super) fn end(self) {
        // If the file stays, it keeps only what is needed anyway, and not for long.
        let _ = fs::remove_file(self.0);
    }
}

/// Whether a file in `refs/` is a journal.
pub(super) fn is_journal(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == JOURNAL_SUFFIX)
}

/// The blobs that a journal names; none if it is too old or unreadable.
pub(super) fn blobs(path: &Path) -> Option<HashSet<Digest>> {
    let time = path.symlink_metadata().ok()?.modified().ok()?;
    // A time in the future is from before the clock was set.
    let age = SystemTime::now().duration_since(time).unwrap_or_default();
    if age > MAX_AGE {
        return None;
    }
    serde_json::from_slice(&read_small(path, MAX_BYTES).ok()?).ok()
}
