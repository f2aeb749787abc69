//! Files and folders that survive a loss of power: write, sync, rename, sync the folder.
//!
//! A rename is atomic, but neither the rename nor the file's bytes are on the disk until the file and
//! its folder are synced. Every change that an answer depends on ("the box was created") goes through
//! this crate. On macOS, the standard library's sync is `F_FULLFSYNC`, because `fsync` there leaves the bytes in the
//! drive's cache. With the feature `power-cut`, tests record these calls and replay a loss of power after
//! each of them.

#![forbid(unsafe_code)]

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

#[cfg(any(test, feature = "power-cut"))]
pub mod power_cut;
#[cfg(any(test, feature = "power-cut"))]
mod sys;

/// Whether a change must survive a loss of power, or only the death of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The change survives the death of the process. Costs no sync.
    Process,
    /// The change survives a loss of power once the call returns.
    Power,
}

impl Durability {
    /// [`Power`](Self::Power) if `yes`.
    pub fn power_if(yes: bool) -> Self {
        if yes { Self::Power } else { Self::Process }
    }
}

/// Writes the content and the metadata of a file to stable storage.
///
/// # Errors
/// The system's error; the content may be lost then.
pub fn sync_file(file: &File) -> io::Result<()> {
    file.sync_all()?;
    #[cfg(any(test, feature = "power-cut"))]
    power_cut::on_file_synced(file);
    Ok(())
}

/// Writes the entries of a folder to stable storage.
///
/// # Errors
/// The system's error.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()?;
    #[cfg(any(test, feature = "power-cut"))]
    power_cut::on_dir_synced(dir);
    Ok(())
}

/// Writes the entries of the folder that holds `path` to stable storage.
///
/// # Errors
/// The system's error.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    sync_dir(parent(path))
}

/// Renames durably within a file system. The content must have been synced before.
///
/// # Errors
/// The system's error. After a failed sync the new name is visible, but may not survive a loss of power.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_parent(to)?;
    if parent(from) != parent(to) {
        sync_parent(from)?;
    }
    Ok(())
}

/// Replaces a file atomically; only the owner may read it.
///
/// The bytes are written to `.NAME.new` beside it first. One process at a time may replace a file: the
/// caller needs a lock for that. The next replacement overwrites the left-over of a killed process.
///
/// # Errors
/// The system's error; the old file is still there then, unless only the sync of its folder failed.
pub fn replace(target: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    replace_with(target, durability, |file| file.write_all(bytes)).map(drop)
}

/// As [`replace`], with a file that `write` fills; returns the file, open for reading and writing.
///
/// # Errors
/// Those of `write`, and as [`replace`].
pub fn replace_with(
    target: &Path,
    durability: Durability,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<File> {
    let new = new_name(target)?;
    let replaced = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&new)?;
        write(&mut file)?;
        match durability {
            Durability::Process => fs::rename(&new, target)?,
            Durability::Power => sync_file(&file).and_then(|()| rename(&new, target))?,
        }
        Ok(file)
    };
    replaced().inspect_err(|_| drop(fs::remove_file(&new)))
}

/// Creates a folder with permissions `mode`, and its missing parents, durably.
///
/// # Errors
/// The system's error; an existing folder is no error.
pub fn create_dir_all(dir: &Path, mode: u32) -> io::Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|dir| is_missing(dir)).collect();
    DirBuilder::new().recursive(true).mode(mode).create(dir)?;
    // From the innermost, so that a folder that survives a loss of power is complete.
    missing.into_iter().try_for_each(sync_parent)
}

fn is_missing(dir: &Path) -> bool {
    !dir.as_os_str().is_empty() && !dir.exists()
}

fn new_name(target: &Path) -> io::Result<PathBuf> {
    let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut new = std::ffi::OsString::from(".");
    new.push(name);
    new.push(".new");
    Ok(target.with_file_name(new))
}

/// The folder that holds `path`.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if dir.as_os_str().is_empty() => Path::new("."),
        Some(dir) => dir,
        None => path,
    }
}

#[cfg(test)]
mod tests;
