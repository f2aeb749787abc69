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

/// Opens the directory that `path` leads to, which is a [`join`]ed one: without `..`.
pub(super) fn open_below(base: &OwnedFd, path: &[u8]) -> io::Result<OwnedFd> {
    let mut dir: Option<OwnedFd> = None;
    for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
        dir = Some(open_child(dir.as_ref().unwrap_or(base), name)?);
    }
    match dir {
        Some(dir) => Ok(dir),
        None => dup(base),
    }
}

/// The path of `name` in the directory `path`; an empty one is the base.
pub(super) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    match path.is_empty() {
        true => name.to_vec(),
        false => [path, b"/", name].concat(),
    }
}

/// A path's directory and last component.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}
