//! Directories below another one, whatever symlinks are there and whoever moves them meanwhile.
//!
//! Every step is taken from the descriptor of a directory to a name in it, and never through a
//! symlink; so there is no way out, on any operating system.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{self, dup};

const FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// Opens a directory of the caller's, through any symlinks.
pub(super) fn open_dir(path: &std::path::Path) -> io::Result<OwnedFd> {
    openat(CWD, path, FLAGS, Mode::empty())
}

/// Opens the directory `name` in `dir`; a symlink is none.
pub(super) fn open_child(dir: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    openat(dir, name, FLAGS | OFlags::NOFOLLOW, Mode::empty())
}

/// Opens the directory that the names lead to, one in the other. None of them may be `..`.
pub(super) fn open_below<N: AsRef<[u8]>>(base: &OwnedFd, names: &[N]) -> io::Result<OwnedFd> {
    let mut dir: Option<OwnedFd> = None;
    for name in names {
        dir = Some(open_child(dir.as_ref().unwrap_or(base), name.as_ref())?);
    }
    match dir {
        Some(dir) => Ok(dir),
        None => dup(base),
    }
}
