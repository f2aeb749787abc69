//! The cache on disk: kernel sources and finished kernels, shared by all clones.
//!
//! ```text
//! sources/   NAME.tar.xz with NAME.json beside it
//! kernels/   KEY/{vmlinux, System.map, config, kernel.json}
//! build/     KEY/ while KEY is being built
//! locks/     one empty file for each key, held by flock
//! apt/       package lists of Debian's archive; apt-ARCH/ for another architecture
//! sysroots/  Rust's standard library for a target, by `cargo xtask`
//! ```
//!
//! A file or folder with its final name is finished: it is made under a temporary name in the same
//! file system and renamed. The remains of a killed builder are removed by the next one.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use boxlite_kernel::sha256_file;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::Serialize;
use tempfile::TempDir;

use crate::error::{BuildError, IoContext};

/// Names the cache folder.
const CACHE_DIR_VARIABLE: &str = "BOXLITE_CACHE_DIR";

/// The cache folder.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// A lock held while something is built; released when dropped or when the process dies.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Cache {
    /// The user's cache: `$BOXLITE_CACHE_DIR`, else `$XDG_CACHE_HOME/boxlite-vmm`, else
    /// `~/.cache/boxlite-vmm`.
    pub fn open() -> Result<Self, BuildError> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = set(CACHE_DIR_VARIABLE)
            .or_else(|| {
                set("XDG_CACHE_HOME").filter(|dir| dir.is_absolute()).map(|d| d.join("boxlite-vmm"))
            })
            .or_else(|| set("HOME").map(|home| home.join(".cache/boxlite-vmm")))
            .ok_or(BuildError::NoCacheDir)?;
        Self::at(&root)
    }

    /// Opens the cache in `root`; creates the folder if missing.
    pub fn at(root: &Path) -> Result<Self, BuildError> {
        fs::create_dir_all(root).context("make", root)?;
        let root = root.canonicalize().context("find", root)?;
        Ok(Self { root })
    }

    /// The folder `name` of the cache; created if missing.
    pub fn dir(&self, name: &str) -> Result<PathBuf, BuildError> {
        let dir = self.root.join(name);
        fs::create_dir_all(&dir).context("make", &dir)?;
        Ok(dir)
    }

    /// Takes the lock `key`; calls `waiting` first if another process holds it.
    ///
    /// # Errors
    /// The lock's file cannot be made or locked.
    pub fn lock(&self, key: &str, waiting: impl FnOnce()) -> Result<Lock, BuildError> {
        let path = self.dir("locks")?.join(key);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .context("open", &path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                waiting();
                loop {
                    match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
                        Err(Errno::INTR) => {}
                        result => break result,
                    }
                }
            }
            result => result,
        }
        .map_err(Into::into)
        .context("lock", &path)?;
        Ok(Lock { _file: file })
    }
}

/// Creates a temporary folder in `parent`, removed when dropped.
pub(crate) fn temp_dir(parent: &Path) -> Result<TempDir, BuildError> {
    tempfile::Builder::new().prefix(".tmp-").tempdir_in(parent).context("make a folder in", parent)
}

/// Renames a finished folder to its final name, replacing an older one.
pub(crate) fn publish_dir(dir: TempDir, path: &Path) -> Result<(), BuildError> {
    remove(path)?;
    fs::rename(dir.path(), path).context("rename to", path)?;
    // Renamed: nothing to remove any more.
    let _renamed = dir.keep();
    Ok(())
}

/// Writes `contents` to `path` atomically.
pub(crate) fn write(path: &Path, contents: &[u8]) -> Result<(), BuildError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .permissions(PermissionsExt::from_mode(0o644))
        .tempfile_in(parent)
        .context("write in", parent)?;
    file.write_all(contents).context("write", file.path())?;
    file.persist(path).map_err(|error| error.error).context("write", path)?;
    Ok(())
}

/// Writes `value` as JSON to `path` atomically.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), BuildError> {
    let json = serde_json::to_vec_pretty(value).map_err(io::Error::from);
    write(path, &json.context("describe", path)?)
}

/// Removes a file or folder; a missing one is no error.
pub(crate) fn remove(path: &Path) -> Result<(), BuildError> {
    let result = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
    };
    result.context("remove", path)
}

/// Fails unless the file at `path` has the SHA-256 `expected`.
pub(crate) fn check_hash(path: &Path, expected: &str) -> Result<(), BuildError> {
    let actual = sha256_file(path).context("read", path)?;
    if actual == expected {
        return Ok(());
    }
    let expected = expected.to_owned();
    Err(BuildError::WrongHash { path: path.to_owned(), expected, actual })
}

#[cfg(test)]
mod tests;
