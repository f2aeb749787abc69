//! Garbage collection: removes what no record needs and nobody uses.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::draft::{DRAFT_SUFFIX, remove_unlocked};
use super::folders::Folders;
use super::journal;
use super::lock::StoreLock;
use super::partial::{self, PARTIAL_SUFFIX};
use super::record::Records;
use crate::error::{Error, Result};
use crate::sys::{self, Lock};

/// What to do with the remains of interrupted pulls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leftovers {
    /// Keep them for the next attempt, unless they are days old.
    Keep,
    /// Remove them.
    Discard,
}

/// Removes drafts of dead processes, disks without a record, layers of no image, and remains of
/// interrupted pulls; returns the bytes freed. The caller holds the store's lock exclusively.
///
/// While records are damaged, disks and layers stay: they may belong to those.
pub(super) fn sweep(folders: &Folders, leftovers: Leftovers) -> Result<u64> {
    let records = Records::load_all(folders)?;
    let all_known = records.damaged.is_empty();
    let mut freed = 0;
    for path in files_in(&folders.refs())? {
        freed += remove(&path, is_draft(&path))?;
    }

    let disks: HashSet<PathBuf> = records
        .good
        .iter()
        .filter_map(|record| record.disk.as_ref())
        .map(|disk| folders.disk(disk))
        .collect();
    for path in files_in(&folders.disks())? {
        freed += remove(&path, is_draft(&path) || all_known && !disks.contains(&path))?;
    }

    // Layers of imports and pulls in progress have no record yet.
    let Some(_guard) = StoreLock::try_exclusive(&folders.import_lock())? else { return Ok(freed) };
    let mut awaited = HashSet::new();
    for path in files_in(&folders.refs())? {
        if !journal::is_journal(&path) {
            continue;
        }
        match journal::blobs(&path).filter(|_| leftovers == Leftovers::Keep) {
            Some(blobs) => awaited.extend(blobs.iter().map(|digest| folders.blob(digest))),
            None => freed += remove(&path, true)?,
        }
    }
    let partials: HashSet<PathBuf> = awaited.iter().map(|blob| partial::path_of(blob)).collect();
    let imports = records.good.iter().filter_map(|record| record.import.as_ref());
    let needed: HashSet<PathBuf> =
        imports.flat_map(|import| import.blobs()).map(|blob| folders.blob(blob)).collect();
    for folder in entries(&folders.blobs())? {
        if !folder.is_dir() {
            continue;
        }
        for path in files_in(&folder)? {
            let is_garbage = if is_partial(&path) {
                !partials.contains(&path)
            } else {
                let is_blob_needed = needed.contains(&path) || awaited.contains(&path);
                is_draft(&path) || all_known && !is_blob_needed
            };
            freed += remove(&path, is_garbage)?;
        }
    }
    Ok(freed)
}

/// Whether a process has this disk open, or a hard link to it exists.
pub(super) fn is_in_use(disk: &Path) -> Result<bool> {
    match File::open(disk) {
        Ok(file) => {
            let links = file.metadata().map_err(Error::io("read", disk))?.nlink();
            let free = sys::try_lock(&file, Lock::Exclusive).map_err(Error::io("lock", disk))?;
            Ok(!free || links > 1)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("open", disk)(error)),
    }
}

fn is_draft(path: &Path) -> bool {
    path.to_str().is_some_and(|path| path.ends_with(DRAFT_SUFFIX))
}

fn is_partial(path: &Path) -> bool {
    path.to_str().is_some_and(|path| path.ends_with(PARTIAL_SUFFIX))
}

/// Removes a file if `unneeded`, unless it is in use; returns the bytes freed.
fn remove(path: &Path, unneeded: bool) -> Result<u64> {
    if !unneeded {
        return Ok(0);
    }
    let metadata = path.symlink_metadata();
    let size = metadata.map_or(0, |metadata| match metadata.nlink() {
        1 => metadata.blocks().saturating_mul(512),
        _ => 0, // a box has a link to it
    });
    Ok(if remove_unlocked(path)? { size } else { 0 })
}

fn files_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = entries(dir)?;
    files.retain(|path| path.symlink_metadata().is_ok_and(|metadata| metadata.is_file()));
    Ok(files)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let list = fs::read_dir(dir).and_then(|list| {
        list.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()
    });
    list.map_err(Error::io("list", dir))
}
