//! Opens directories below another one, safe against symlinks and concurrent moves.
//!
//! Each component is opened relative to the descriptor of its directory, and never through a symlink, so that no path
//! leads outside, on any operating system.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{self, dup};

const FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// Opens a directory of the caller. Follows symlinks.
pub(super) fn open_dir(path: &std::path::Path) -> io::Result<OwnedFd> {
    openat(CWD, path, FLAGS, Mode::empty())
}

/// Opens the directory `name` in `dir`. Fails for a symlink.
pub(super) fn open_child(dir: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    openat(dir, name, FLAGS | OFlags::NOFOLLOW, Mode::empty())
}

/// Opens the directory at `path`, which is a result of [`join`] and has no `..`.
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

/// The path of `name` in the directory `path`, which is the base if empty.
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
