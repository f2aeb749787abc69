//! Files that appear whole or not at all, made by one process at a time.
//!
//! A draft is a file called `….part` whose maker holds an exclusive lock on it, from creation until it
//! is renamed to its final name. The lock ends with the process, however it ends: a draft that can
//! be locked has been left behind, and is removed by the next process that finds it. After a lock was
//! obtained, the name is looked up again, because its file may have been renamed or removed
//! meanwhile. A left-behind file is never written to again, so that a process that still has it open
//! cannot damage another one's draft.
//!
//! Not tempfile's `persist`: its names are random, and here the one name is where others wait.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::sys::{self, Lock};
use boxlite_durable as durable;

/// Suffix of drafts.
pub(super) const DRAFT_SUFFIX: &str = ".part";

/// A file under construction.
#[derive(Debug)]
pub(super) struct Draft {
    file: File,
    path: PathBuf,
    published: bool,
}

impl Draft {
    /// Creates an empty draft for `target`, beside it. While another process makes one, calls
    /// `on_wait` and waits; so check again afterwards whether the target exists.
    pub(super) fn begin(target: &Path, mut on_wait: impl FnMut()) -> Result<Self> {
        let mut path = target.as_os_str().to_owned();
        path.push(DRAFT_SUFFIX);
        let path = PathBuf::from(path);
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true).mode(0o600);
            match options.clone().create_new(true).open(&path) {
                Ok(file) => {
                    let locked = sys::try_lock(&file, Lock::Exclusive);
                    let locked = locked.map_err(Error::io("lock", &path))?;
                    // Else another process took it for a left-over in between.
                    if locked && is_at(&file, &path)? {
                        return Ok(Self { file, path, published: false });
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    match options.open(&path) {
                        Ok(file) => discard_when_free(&file, &path, &mut on_wait)?,
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        Err(error) => return Err(Error::io("open", &path)(error)),
                    }
                }
                Err(error) => return Err(Error::write(&path, 1)(error)),
            }
        }
    }

    /// Path of the draft, for other writers.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Syncs the draft and makes it read-only.
    pub(super) fn seal(&self) -> Result<()> {
        let len = self.file.metadata().map_err(Error::io("read", &self.path))?.len();
        let seal = || {
            self.file.set_permissions(Permissions::from_mode(0o400))?;
            durable::sync_file(&self.file)
        };
        seal().map_err(Error::write(&self.path, len))
    }

    /// Renames a sealed draft to its final name, replacing an older file.
    pub(super) fn publish(mut self, target: &Path) -> Result<()> {
        if !is_at(&self.file, &self.path)? {
            let reason = "it was replaced while it was being written";
            return Err(Error::corrupt(self.path.display().to_string(), reason));
        }
        fs::rename(&self.path, target).map_err(Error::write(target, 1))?;
        self.published = true;
        durable::sync_parent(target).map_err(Error::io("sync the folder of", target))
    }
}

impl Write for Draft {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.write(buf)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Still locked: no other process has taken the name.
        if !self.published {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Waits until the draft is unlocked, and removes it if it is still there.
fn discard_when_free(file: &File, path: &Path, on_wait: &mut impl FnMut()) -> Result<()> {
    if !sys::try_lock(file, Lock::Exclusive).map_err(Error::io("lock", path))? {
        on_wait();
        sys::lock(file, Lock::Exclusive).map_err(Error::io("lock", path))?;
    }
    remove_if_at(file, path)
}

/// Removes an unlocked file; returns whether the file is gone.
pub(super) fn remove_unlocked(path: &Path) -> Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    if !sys::try_lock(&file, Lock::Exclusive).map_err(Error::io("lock", path))? {
        return Ok(false);
    }
    remove_if_at(&file, path).map(|()| true)
}

fn remove_if_at(file: &File, path: &Path) -> Result<()> {
    if is_at(file, path)? {
        fs::remove_file(path).map_err(Error::io("remove", path))?;
    }
    Ok(())
}

/// Whether the open file is the one that the path names.
pub(super) fn is_at(file: &File, path: &Path) -> Result<bool> {
    let open = file.metadata().map_err(Error::io("read", path))?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((open.dev(), open.ino()) == (named.dev(), named.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// Writes a small file atomically, replacing an older one.
pub(super) fn write_whole(target: &Path, bytes: &[u8]) -> Result<()> {
    let mut draft = Draft::begin(target, || {})?;
    draft.write_all(bytes).map_err(Error::write(target, bytes.len() as u64))?;
    draft.seal()?;
    draft.publish(target)
}

#[cfg(test)]
mod tests;
