//! Locks of the whole store.

use std::fs::{File, OpenOptions};
use std::path::Path;

use crate::error::{Error, Result};
use crate::sys::{self, Lock};

/// A lock of the store, held until dropped.
#[derive(Debug)]
pub(super) struct StoreLock(#[expect(dead_code, reason = "holds the lock")] File);

impl StoreLock {
    /// Waits for the lock.
    pub(super) fn take(path: &Path, lock: Lock) -> Result<Self> {
        let file = Self::open(path)?;
        sys::lock(&file, lock).map_err(Error::io("lock", path))?;
        Ok(Self(file))
    }

    /// Takes the exclusive lock unless another process holds one.
    pub(super) fn try_exclusive(path: &Path) -> Result<Option<Self>> {
        let file = Self::open(path)?;
        let locked = sys::try_lock(&file, Lock::Exclusive).map_err(Error::io("lock", path))?;
        Ok(locked.then_some(Self(file)))
    }

    fn open(path: &Path) -> Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.open(path).map_err(Error::io("open", path))
    }
}
