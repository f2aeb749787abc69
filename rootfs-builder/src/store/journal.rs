//! Journals: which blobs a pull that has not ended yet will need, `refs/<hash of its name>.pull`.
//!
//! Without one, blobs that belong to no image are garbage; with one, they wait for the pull to be
//! begun again, for a while.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::draft::write_whole;
use super::folders::{Folders, record_stem};
use crate::error::{Error, Result};
use crate::file::read_small;
use crate::format::Digest;

/// The ending of a journal's name.
pub(super) const JOURNAL_SUFFIX: &str = "pull";

/// What an interrupted pull left is kept for so long.
const MAX_AGE: Duration = Duration::from_hours(72);
const MAX_BYTES: u64 = 1 << 20;

/// The journal of a pull under way.
pub(super) struct Journal(PathBuf);

impl Journal {
    /// Notes what the pull of this image will need.
    pub(super) fn write(folders: &Folders, name: &str, blobs: &[&Digest]) -> Result<Self> {
        let stem = record_stem(name);
        let path = folders.refs().join(format!("{stem}.{JOURNAL_SUFFIX}"));
        let json = serde_json::to_vec(blobs)
            .map_err(|error| Error::corrupt(path.display().to_string(), error))?;
        write_whole(&path, &json)?;
        Ok(Self(path))
    }

    /// The pull is done: its image has a record now.
    pub(super) fn end(self) {
        // If it stays, it only keeps what is needed anyway, and that not for long.
        let _ = fs::remove_file(self.0);
    }
}

/// Whether a file in `refs/` is a journal.
pub(super) fn is_journal(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == JOURNAL_SUFFIX)
}

/// The blobs that a journal names; none where it is too old or says nothing.
pub(super) fn blobs(path: &Path) -> Option<HashSet<Digest>> {
    let time = path.symlink_metadata().ok()?.modified().ok()?;
    // One from the future was written before the clock was set right.
    let age = SystemTime::now().duration_since(time).unwrap_or_default();
    if age > MAX_AGE {
        return None;
    }
    serde_json::from_slice(&read_small(path, MAX_BYTES).ok()?).ok()
}
