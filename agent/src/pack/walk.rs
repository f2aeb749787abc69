//! From a path to the entries of a tar.
//!
//! The directory being read is the thread's working directory, so that every call gets a name and
//! not a path. Directories below it wait for their turn by their path: however deep and wide a tree
//! is, one directory is open at a time. Its own entry comes right before those in it: tar programs
//! set the time of a directory when they leave it.

use std::collections::HashMap;
use std::io::Write;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use boxlite_proto::archive::{Attributes, Device, Entry, EntryType, Piece, Time, holes, padding};
use boxlite_proto::guest::CopyOut;
use boxlite_proto::message::{Failure, FailureKind};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, SeekFrom, Stat, fgetxattr, flistxattr,
    fstat, lgetxattr, llistxattr, openat, openat2, readlinkat, seek, statat,
};
use rustix::io::Errno;
use rustix::process::fchdir;

use super::mounts::KernelFileSystems;
use super::{PackError, cannot};
use crate::inspect::{from_root, path_failure};
use boxlite_proto::archive::name::shown;

/// Files with several names of which not all have been met: more are not remembered, and travel
/// once for each name.
const MAX_LINKED: usize = 1 << 18;

/// The kernel's limit on the names of a file's attributes, and on one of their values.
const MAX_XATTR: usize = 64 << 10;

/// Attributes of one file that are taken along, together.
const MAX_XATTRS: usize = 512 << 10;

const BUFFER: usize = 64 << 10;

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Writes the entries of what `request` names.
pub(super) fn walk(request: &CopyOut, to: &mut impl Write) -> Result<(), PackError> {
    let failed = |errno| PackError::Path(path_failure("copy", &request.path, errno));
    let start = Start::find(request).map_err(failed)?;
    fchdir(&start.dir).map_err(failed)?;
    let stat = statat(CWD, &start.name[..], AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
    let kernel = KernelFileSystems::mounted();
    if kernel.have(&stat) {
        return Err(PackError::Path(Failure {
            kind: FailureKind::Other,
            message: format!(
                "cannot copy {}: it is on a file system of the kernel's own; read it with a command",
                shown(&request.path)
            ),
        }));
    }
    if FileType::from_raw_mode(stat.st_mode) == FileType::Socket {
        return Err(PackError::Path(Failure {
            kind: FailureKind::Other,
            message: format!("cannot copy {}: it is a socket", shown(&request.path)),
        }));
    }
    let mut walk =
        Walk { to, kernel, links: HashMap::new(), waiting: Vec::new(), buffer: vec![0; BUFFER] };
    walk.add(&start.name, &start.shown_as, &stat)?;
    while let Some(waiting) = walk.waiting.pop() {
        walk.read_dir(&start, &waiting)?;
    }
    Ok(())
}

/// Where a walk begins.
struct Start {
    /// The directory that the path is in, or, where it has no last component, is.
    dir: OwnedFd,
    /// Its name there.
    name: Vec<u8>,
    /// Its name in the tar.
    shown_as: Vec<u8>,
}

impl Start {
    fn find(request: &CopyOut) -> rustix::io::Result<Self> {
        let path = from_root(&request.path)?;
        let shown_as = last_component(path.to_bytes()).to_vec();
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let mut path = path.into_bytes();
        if request.follow {
            let there = openat(CWD, &path[..], flags, Mode::empty())?;
            path = path_of(&there)?;
        }
        let (dir, name) = match last_component(&path) {
            b"." => (&path[..], &b"."[..]),
            name => {
                let end = path.len() - path.iter().rev().take_while(|b| **b == b'/').count();
                (path.get(..end - name.len()).unwrap_or_default(), name)
            }
        };
        let dir = openat(CWD, dir, flags | OFlags::DIRECTORY, Mode::empty())?;
        Ok(Self { dir, name: name.to_vec(), shown_as })
    }
}

/// The last component of an absolute path, or `.` where that names no entry of a directory.
fn last_component(path: &[u8]) -> &[u8] {
    let end = path.len() - path.iter().rev().take_while(|b| **b == b'/').count();
    let name = path.get(..end).and_then(|path| path.rsplit(|b| *b == b'/').next());
    match name.unwrap_or_default() {
        b"" | b"." | b".." => b".",
        name => name,
    }
}

/// Where an open file is.
fn path_of(file: &OwnedFd) -> rustix::io::Result<Vec<u8>> {
    use std::os::fd::AsRawFd;
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(readlinkat(CWD, link, Vec::new())?.into_bytes())
}

/// A directory that has not been read yet.
struct Waiting {
    /// From the start's directory.
    path: Vec<u8>,
    /// In the tar, with a slash at its end.
    shown_as: Vec<u8>,
    inode: Inode,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Inode {
    device: u64,
    number: u64,
}

impl Inode {
    fn of(stat: &Stat) -> Self {
        Self { device: stat.st_dev, number: stat.st_ino }
    }
}

struct Walk<'a, W> {
    to: &'a mut W,
    kernel: KernelFileSystems,
    /// The first name of files that have more, and how many of those are still to come.
    links: HashMap<Inode, (Vec<u8>, u128)>,
    waiting: Vec<Waiting>,
    buffer: Vec<u8>,
}

impl<W: Write> Walk<'_, W> {
    /// Writes the entry of a directory, and those in it.
    fn read_dir(&mut self, start: &Start, waiting: &Waiting) -> Result<(), PackError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_SYMLINKS;
        let dir = match openat2(&start.dir, &waiting.path[..], flags, Mode::empty(), resolve) {
            Ok(dir) => dir,
            // Removed or replaced meanwhile.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(errno) => return Err(cannot("open", &waiting.shown_as)(errno)),
        };
        let cannot_read = |errno| cannot("read the directory", &waiting.shown_as)(errno);
        // Something else is there now, or mounted there.
        let stat = fstat(&dir).map_err(cannot_read)?;
        if Inode::of(&stat) != waiting.inode {
            return Ok(());
        }
        let xattrs =
            xattrs(|names| flistxattr(&dir, names), |key, value| fgetxattr(&dir, key, value));
        self.write_header(&waiting.shown_as, EntryType::Directory, b"", &stat, &xattrs)?;
        fchdir(&dir).map_err(cannot_read)?;
        for entry in Dir::new(dir).map_err(cannot_read)? {
            let entry = entry.map_err(cannot_read)?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let shown_as = [&waiting.shown_as, name].concat();
            let stat = match statat(CWD, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(cannot("look at", &shown_as)(errno)),
            };
            let path = [&waiting.path, &b"/"[..], name].concat();
            self.add_at(name, path, shown_as, &stat)?;
        }
        Ok(())
    }

    /// Writes the first entry.
    fn add(&mut self, name: &[u8], shown_as: &[u8], stat: &Stat) -> Result<(), PackError> {
        self.add_at(name, name.to_vec(), shown_as.to_vec(), stat)
    }

    /// Writes the entry of what has this `name` in the working directory.
    fn add_at(
        &mut self,
        name: &[u8],
        path: Vec<u8>,
        mut shown_as: Vec<u8>,
        stat: &Stat,
    ) -> Result<(), PackError> {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => EntryType::Directory,
            FileType::RegularFile => EntryType::Regular,
            FileType::Symlink => EntryType::Symlink,
            FileType::CharacterDevice => EntryType::Char,
            FileType::BlockDevice => EntryType::Block,
            FileType::Fifo => EntryType::Fifo,
            // There is no such thing in a tar.
            FileType::Socket | FileType::Unknown => return Ok(()),
        };
        if kind == EntryType::Directory {
            shown_as.push(b'/');
            if !self.kernel.have(stat) {
                self.waiting.push(Waiting { path, shown_as, inode: Inode::of(stat) });
                return Ok(());
            }
        } else if let Some(first) = self.first_name(stat, &shown_as) {
            return self.write_header(&shown_as, EntryType::Link, &first, stat, &Vec::new());
        } else if kind == EntryType::Regular {
            return self.add_file(name, &shown_as, stat);
        }
        let link = match kind {
            EntryType::Symlink => match readlinkat(CWD, name, Vec::new()) {
                Ok(target) => target.into_bytes(),
                Err(Errno::NOENT | Errno::INVAL) => return Ok(()),
                Err(errno) => return Err(cannot("read the link", &shown_as)(errno)),
            },
            _ => Vec::new(),
        };
        let xattrs =
            xattrs(|names| llistxattr(name, names), |key, value| lgetxattr(name, key, value));
        self.write_header(&shown_as, kind, &link, stat, &xattrs)
    }

    /// The name that the file was packed under already.
    fn first_name(&mut self, stat: &Stat, shown_as: &[u8]) -> Option<Vec<u8>> {
        if stat.st_nlink < 2 {
            return None;
        }
        let inode = Inode::of(stat);
        match self.links.get_mut(&inode) {
            Some((first, left)) => {
                *left = left.saturating_sub(1);
                if *left > 0 {
                    return Some(first.clone());
                }
                self.links.remove(&inode).map(|(first, _)| first)
            }
            None => {
                if self.links.len() < MAX_LINKED {
                    // Its type depends on the architecture.
                    let left = u128::from(stat.st_nlink) - 1;
                    self.links.insert(inode, (shown_as.to_vec(), left));
                }
                None
            }
        }
    }

    fn write_header(
        &mut self,
        name: &[u8],
        kind: EntryType,
        link: &[u8],
        stat: &Stat,
        xattrs: &Xattrs,
    ) -> Result<(), PackError> {
        let device = matches!(kind, EntryType::Char | EntryType::Block).then(|| Device {
            major: rustix::fs::major(stat.st_rdev),
            minor: rustix::fs::minor(stat.st_rdev),
        });
        let attributes = attributes(stat);
        let entry =
            Entry { name, kind, link, attributes, device, stored: 0, sparse_size: None, xattrs };
        Ok(entry.write(self.to)?)
    }

    fn add_file(&mut self, name: &[u8], shown_as: &[u8], seen: &Stat) -> Result<(), PackError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let gone = |walk: &mut Self| drop(walk.links.remove(&Inode::of(seen)));
        let file = match openat(CWD, name, flags | OFlags::NOCTTY, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => {
                gone(self);
                return Ok(());
            }
            Err(errno) => return Err(cannot("open", shown_as)(errno)),
        };
        let stat = fstat(&file).map_err(cannot("look at", shown_as))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
            || Inode::of(&stat) != Inode::of(seen)
        {
            gone(self);
            return Ok(());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let blocks = if self.kernel.have(&stat) { u64::MAX } else { stat.st_blocks as u64 };
        let pieces = holes::pieces(size, blocks, |at| next_data(&file, at));
        let map = pieces.as_ref().map(|pieces| holes::map(pieces, size));
        let pieces = pieces.unwrap_or_else(|| vec![Piece { offset: 0, len: size }]);
        let data: u64 = pieces.iter().map(|piece| piece.len).sum();
        let xattrs =
            xattrs(|names| flistxattr(&file, names), |key, value| fgetxattr(&file, key, value));
        let entry = Entry {
            name: shown_as,
            kind: EntryType::Regular,
            link: b"",
            attributes: attributes(&stat),
            device: None,
            stored: data + map.as_ref().map_or(0, |map| map.len() as u64),
            sparse_size: map.is_some().then_some(size),
            xattrs: &xattrs,
        };
        entry.write(self.to)?;
        if let Some(map) = &map {
            self.to.write_all(map)?;
        }
        for piece in pieces {
            self.copy(&file, piece).map_err(|failed| match failed {
                CopyError::Read(errno) => cannot("read", shown_as)(errno),
                CopyError::Write(e) => e.into(),
            })?;
        }
        Ok(self.to.write_all(padding(data))?)
    }

    /// Writes a piece of a file; zeros for what is not there any more.
    fn copy(&mut self, file: impl AsFd, piece: Piece) -> Result<(), CopyError> {
        let (mut offset, mut left) = (piece.offset, piece.len);
        while left > 0 {
            let max = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let Some(buffer) = self.buffer.get_mut(..max) else { break };
            let n = match rustix::io::pread(&file, &mut *buffer, offset) {
                Ok(0) => {
                    buffer.fill(0);
                    max
                }
                Ok(n) => n,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(CopyError::Read(errno)),
            };
            let read = buffer.get(..n).unwrap_or_default();
            self.to.write_all(read).map_err(CopyError::Write)?;
            offset += n as u64;
            left -= n as u64;
        }
        Ok(())
    }
}

/// What all kinds of entries have.
fn attributes(stat: &Stat) -> Attributes {
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: Time { seconds: stat.st_mtime, nanoseconds },
    }
}

/// The first data of a file at or after an offset.
fn next_data(file: &OwnedFd, at: u64) -> rustix::io::Result<Option<Range<u64>>> {
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    Ok(Some(start..seek(file, SeekFrom::Hole(start))?))
}

enum CopyError {
    Read(Errno),
    Write(std::io::Error),
}

/// The extended attributes that a tar can hold. A file system without any, a file that is gone, and
/// an attribute that cannot be read have none.
fn xattrs(
    list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
    get: impl Fn(&[u8], &mut [u8]) -> rustix::io::Result<usize>,
) -> Xattrs {
    let mut few = [0; 1024];
    let mut many = Vec::new();
    let names = match list(&mut few) {
        Err(Errno::RANGE) => {
            many.resize(MAX_XATTR, 0);
            list(&mut many).ok().and_then(|len| many.get(..len))
        }
        result => result.ok().and_then(|len| few.get(..len)),
    };
    let names = names.filter(|names| !names.is_empty());
    let Some(names) = names else { return Xattrs::new() };
    let mut total = 0;
    let mut value = vec![0; MAX_XATTR];
    let mut xattrs = Xattrs::new();
    for name in names.split(|b| *b == 0).filter(|name| !name.is_empty() && !name.contains(&b'=')) {
        let Ok(len) = get(name, &mut value) else { continue };
        total += name.len() + len;
        if total > MAX_XATTRS {
            break;
        }
        xattrs.push((name.to_vec(), value.get(..len).unwrap_or_default().to_vec()));
    }
    xattrs
}

#[cfg(test)]
mod tests;
