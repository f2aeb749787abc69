//! Whiteouts: deletes entries of the layers below a layer, and keeps the layer's own.
//!
//! `.wh.NAME` deletes NAME, and `.wh..wh..opq` everything in its directory (OCI image specification,
//! "Whiteouts"), but only *of the layers below*. An entry of this layer stays, whether it comes before or after
//! the whiteout. So the directory entries that a layer adds are recorded. An inode would not identify them,
//! because a layer may hard-link a file of another one; nor would a path, because a symlink gives one directory
//! several paths.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use super::{Problem, cannot};

const PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const META_PREFIX: &[u8] = b".wh..wh.";

/// Limit on the depth of directories that are removed: each level holds a file descriptor.
const MAX_DEPTH: usize = 512;

/// The meaning of an entry's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning<'a> {
    /// An ordinary entry.
    Entry,
    /// Deletes this name from its directory.
    Whiteout(&'a [u8]),
    /// Deletes everything from its directory.
    Opaque,
    /// Metadata of aufs, which old images contain and engines skip.
    Ignored,
}

impl<'a> Meaning<'a> {
    /// The meaning of an entry with this normalized path.
    pub(super) fn of(path: &'a [u8]) -> Result<Self, Problem> {
        let mut components = path.split(|b| *b == b'/').rev();
        let name = components.next().unwrap_or_default();
        for component in components {
            if component.starts_with(META_PREFIX) {
                return Ok(Self::Ignored);
            }
            if component.starts_with(PREFIX) {
                return Err(Problem::bad("it is inside a whiteout"));
            }
        }
        match name.strip_prefix(PREFIX) {
            None => Ok(Self::Entry),
            Some(_) if name == OPAQUE => Ok(Self::Opaque),
            Some(_) if name.starts_with(META_PREFIX) => Ok(Self::Ignored),
            Some(b"" | b"." | b"..") => Err(Problem::bad("it is a whiteout of no file")),
            Some(name) => Ok(Self::Whiteout(name)),
        }
    }
}

/// The directory entries that this layer has added.
#[derive(Default)]
pub(super) struct OwnEntries {
    /// Hashes of (inode of the directory, name), with a random key: an image cannot choose names that collide.
    hashes: HashSet<u64>,
    hasher: RandomState,
}

impl OwnEntries {
    pub(super) fn insert(&mut self, dir: u64, name: &[u8]) {
        self.hashes.insert(self.hasher.hash_one((dir, name)));
    }

    fn contains(&self, dir: u64, name: &[u8]) -> bool {
        self.hashes.contains(&self.hasher.hash_one((dir, name)))
    }
}

/// A directory and its inode number.
#[derive(Clone, Copy)]
pub(super) struct DirRef<'a> {
    pub(super) fd: BorrowedFd<'a>,
    pub(super) ino: u64,
}

/// Removes `name` from `dir`, with all of its content, except for entries in `keep`.
pub(super) fn remove(
    dir: DirRef<'_>,
    name: &[u8],
    keep: Option<&OwnEntries>,
) -> Result<(), Problem> {
    remove_at_depth(dir, name, keep, 0)
}

/// Removes all content of `dir`, except for entries in `keep`.
pub(super) fn remove_content(dir: DirRef<'_>, keep: Option<&OwnEntries>) -> Result<(), Problem> {
    remove_content_at_depth(dir, keep, 0)
}

fn remove_at_depth(
    dir: DirRef<'_>,
    name: &[u8],
    keep: Option<&OwnEntries>,
    depth: usize,
) -> Result<(), Problem> {
    let kept = keep.is_some_and(|own| own.contains(dir.ino, name));
    let what = cannot("remove an entry of a lower layer");
    if !kept {
        match unlinkat(dir.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(errno) => return Err(what(errno)),
        }
    }
    let child = match open_dir(dir.fd, name) {
        Ok(child) => child,
        // An entry of this layer that is not a directory.
        Err(Errno::NOTDIR | Errno::LOOP | Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(what(errno)),
    };
    use std::os::fd::AsFd;
    let ino = rustix::fs::fstat(&child).map_err(&what)?.st_ino;
    remove_content_at_depth(DirRef { fd: child.as_fd(), ino }, keep, depth + 1)?;
    if kept {
        return Ok(());
    }
    match unlinkat(dir.fd, name, AtFlags::REMOVEDIR) {
        // An entry of this layer is in it.
        Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY) => Ok(()),
        Err(errno) => Err(what(errno)),
    }
}

fn remove_content_at_depth(
    dir: DirRef<'_>,
    keep: Option<&OwnEntries>,
    depth: usize,
) -> Result<(), Problem> {
    if depth > MAX_DEPTH {
        return Err(Problem::bad(format!(
            "it replaces or removes directories that are nested more than {MAX_DEPTH} deep"
        )));
    }
    let what = cannot("read a directory of a lower layer");
    for (name, kind) in list(dir.fd).map_err(&what)? {
        let is_dir = matches!(kind, FileType::Directory | FileType::Unknown);
        let kept = keep.is_some_and(|own| own.contains(dir.ino, &name));
        if is_dir || !kept {
            remove_at_depth(dir, &name, keep, depth)?;
        }
    }
    Ok(())
}

/// The names in a directory.
pub(super) fn list(dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<(Vec<u8>, FileType)>> {
    let mut names = Vec::new();
    for entry in Dir::new(open_dir(dir, b".")?)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push((name.to_vec(), entry.file_type()));
        }
    }
    Ok(names)
}

fn open_dir(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests;
