//! Opens directories below another one, safe against symlinks, and against renames by other processes.

use std::os::fd::{AsFd, OwnedFd};

use boxlite_proto::guest::Owner;
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fstat, openat, openat2,
};
use rustix::io::{self, Errno};

/// Limit on attempts: `openat2` returns EAGAIN if a concurrent rename makes the resolved path uncertain.
const TRIES: usize = 32;

/// Limit on the steps from a directory up to the destination.
const MAX_DEPTH: usize = 4096;

const FLAGS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens the directory `path`.
pub(super) fn open_dir(from: impl AsFd, path: &[u8]) -> io::Result<OwnedFd> {
    openat(from, path, FLAGS, Mode::empty())
}

/// Opens the directory `path`, which must be `base` or below it. Symlinks, even absolute ones, may lead out of
/// `base` if they lead back in; otherwise the error is [`Errno::XDEV`].
pub(super) fn open_below(base: &OwnedFd, path: &[u8]) -> io::Result<OwnedFd> {
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..TRIES {
        match openat2(base, path, FLAGS, Mode::empty(), beneath) {
            Err(Errno::AGAIN) => {}
            // The path leaves `base`, but may return to it.
            Err(Errno::XDEV) => {
                let dir = open_dir(base, path)?;
                return if is_below(base, &dir)? { Ok(dir) } else { Err(Errno::XDEV) };
            }
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// Whether going up from `dir` leads to `base`.
fn is_below(base: &OwnedFd, dir: &OwnedFd) -> io::Result<bool> {
    let inode = |dir: &OwnedFd| fstat(dir).map(|stat| (stat.st_dev, stat.st_ino));
    let base = inode(base)?;
    let mut here = inode(dir)?;
    let mut up = None;
    for _ in 0..MAX_DEPTH {
        if here == base {
            return Ok(true);
        }
        let parent = open_dir(up.as_ref().unwrap_or(dir), b"..")?;
        let there = inode(&parent)?;
        if there == here {
            return Ok(false);
        }
        (here, up) = (there, Some(parent));
    }
    Ok(false)
}

/// Makes a directory and its missing parents. New directories belong to `owner`, or to root.
pub(crate) fn make_directories(path: &[u8], owner: Option<Owner>) -> io::Result<()> {
    let ends = path.iter().enumerate().skip(1).filter(|(_, b)| **b == b'/').map(|(i, _)| i);
    for end in ends.chain([path.len()]) {
        let Some(dir) = path.get(..end) else { continue };
        match rustix::fs::mkdir(dir, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                if let Some(Owner { uid, gid }) = owner {
                    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
                    chownat(CWD, dir, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
                }
            }
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
