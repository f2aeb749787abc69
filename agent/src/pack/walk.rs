//! Walks a tree and writes its tar entries.
//!
//! The directory being read is the thread's working directory, so that each system call gets a name and not a
//! path. Its subdirectories are queued by path, so only one directory is open at a time, however deep and wide
//! the tree is. The entry of a directory comes right before those of its files: tar programs set the time of a
//! directory when they leave it.

use std::io::Write;
use std::os::fd::OwnedFd;

use boxlite_proto::archive::pack::{self, Inode, Packer, xattrs};
use boxlite_proto::archive::{EntryType, Xattrs};
use boxlite_proto::guest::CopyOut;
use boxlite_proto::message::{Failure, FailureKind};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fgetxattr, flistxattr, fstat,
    lgetxattr, llistxattr, openat, openat2, readlinkat, statat,
};
use rustix::io::Errno;
use rustix::process::fchdir;

use super::mounts::KernelFileSystems;
use super::{PackError, cannot};
use crate::inspect::{from_root, path_failure};
use boxlite_proto::archive::name::shown;

/// Writes the entries of the requested file or tree.
pub(super) fn walk(request: &CopyOut, to: &mut Packer<impl Write>) -> Result<(), PackError> {
    let failed = |errno| PackError::Path(path_failure("copy", &request.path, errno));
    let start = Start::find(request).map_err(failed)?;
    fchdir(&start.dir).map_err(failed)?;
    let stat = statat(CWD, &start.name[..], AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
    let kernel = KernelFileSystems::mounted();
    if kernel.contain(&stat) {
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
    let mut walk = Walk { to, kernel, pending: Vec::new() };
    walk.add(&start.name, &start.name_in_tar, &stat)?;
    while let Some(directory) = walk.pending.pop() {
        walk.read_dir(&start, &directory)?;
    }
    Ok(())
}

/// The start of a walk.
struct Start {
    /// The directory that contains the path, or the path itself if it has no last component.
    dir: OwnedFd,
    /// Its name there.
    name: Vec<u8>,
    /// Its name in the tar.
    name_in_tar: Vec<u8>,
}

impl Start {
    fn find(request: &CopyOut) -> rustix::io::Result<Self> {
        let path = from_root(&request.path)?;
        let name_in_tar = last_component(path.to_bytes()).to_vec();
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
        Ok(Self { dir, name: name.to_vec(), name_in_tar })
    }
}

/// The last component of an absolute path, or `.` if that names no entry of a directory.
fn last_component(path: &[u8]) -> &[u8] {
    let end = path.len() - path.iter().rev().take_while(|b| **b == b'/').count();
    let name = path.get(..end).and_then(|path| path.rsplit(|b| *b == b'/').next());
    match name.unwrap_or_default() {
        b"" | b"." | b".." => b".",
        name => name,
    }
}

/// The path of an open file.
fn path_of(file: &OwnedFd) -> rustix::io::Result<Vec<u8>> {
    use std::os::fd::AsRawFd;
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(readlinkat(CWD, link, Vec::new())?.into_bytes())
}

/// A directory that has not been read yet.
struct PendingDirectory {
    /// Its path from the start's directory.
    path: Vec<u8>,
    /// Its name in the tar, which ends in a slash.
    name_in_tar: Vec<u8>,
    inode: Inode,
}

struct Walk<'a, W> {
    to: &'a mut Packer<W>,
    kernel: KernelFileSystems,
    pending: Vec<PendingDirectory>,
}

impl<W: Write> Walk<'_, W> {
    /// Writes the entry of a directory and of its files, and queues its subdirectories.
    fn read_dir(&mut self, start: &Start, directory: &PendingDirectory) -> Result<(), PackError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_SYMLINKS;
        let dir = match openat2(&start.dir, &directory.path[..], flags, Mode::empty(), resolve) {
            Ok(dir) => dir,
            // The directory was removed or replaced meanwhile.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(errno) => return Err(cannot("open", &directory.name_in_tar)(errno)),
        };
        let cannot_read = |errno| cannot("read the directory", &directory.name_in_tar)(errno);
        // Another directory is there now, or a file system was mounted there.
        let stat = fstat(&dir).map_err(cannot_read)?;
        if Inode::of(&stat) != directory.inode {
            return Ok(());
        }
        let xattrs = xattrs_of(&dir);
        self.to.entry(&directory.name_in_tar, EntryType::Directory, b"", &stat, &xattrs)?;
        fchdir(&dir).map_err(cannot_read)?;
        for entry in Dir::new(dir).map_err(cannot_read)? {
            let entry = entry.map_err(cannot_read)?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let name_in_tar = [&directory.name_in_tar, name].concat();
            let stat = match statat(CWD, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(cannot("inspect", &name_in_tar)(errno)),
            };
            let path = [&directory.path, &b"/"[..], name].concat();
            self.add_at(name, path, name_in_tar, &stat)?;
        }
        Ok(())
    }

    /// Writes the first entry.
    fn add(&mut self, name: &[u8], name_in_tar: &[u8], stat: &Stat) -> Result<(), PackError> {
        self.add_at(name, name.to_vec(), name_in_tar.to_vec(), stat)
    }

    /// Writes the entry of `name` in the working directory; queues it if it is a directory.
    fn add_at(
        &mut self,
        name: &[u8],
        path: Vec<u8>,
        mut name_in_tar: Vec<u8>,
        stat: &Stat,
    ) -> Result<(), PackError> {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => EntryType::Directory,
            FileType::RegularFile => EntryType::Regular,
            FileType::Symlink => EntryType::Symlink,
            FileType::CharacterDevice => EntryType::Char,
            FileType::BlockDevice => EntryType::Block,
            FileType::Fifo => EntryType::Fifo,
            // A tar has no entries for sockets.
            FileType::Socket | FileType::Unknown => return Ok(()),
        };
        if kind == EntryType::Directory {
            name_in_tar.push(b'/');
            if !self.kernel.contain(stat) {
                let inode = Inode::of(stat);
                self.pending.push(PendingDirectory { path, name_in_tar, inode });
                return Ok(());
            }
        } else if let Some(first) = self.to.first_name(stat, &name_in_tar) {
            return Ok(self.to.entry(
                &name_in_tar,
                EntryType::Link,
                &first,
                stat,
                &Xattrs::new(),
            )?);
        } else if kind == EntryType::Regular {
            return self.add_file(name, &name_in_tar, stat);
        }
        let link = match kind {
            EntryType::Symlink => match readlinkat(CWD, name, Vec::new()) {
                Ok(target) => target.into_bytes(),
                Err(Errno::NOENT | Errno::INVAL) => return Ok(()),
                Err(errno) => return Err(cannot("read the link", &name_in_tar)(errno)),
            },
            _ => Vec::new(),
        };
        let (list, get) = (
            |names: &mut [u8]| llistxattr(name, names),
            |key: &[u8], value: &mut [u8]| lgetxattr(name, key, value),
        );
        let xattrs = xattrs(list, get, |_| true);
        Ok(self.to.entry(&name_in_tar, kind, &link, stat, &xattrs)?)
    }

    fn add_file(&mut self, name: &[u8], name_in_tar: &[u8], seen: &Stat) -> Result<(), PackError> {
        let Some((file, stat)) =
            pack::open(CWD, name, seen).map_err(cannot("open", name_in_tar))?
        else {
            self.to.forget(seen);
            return Ok(());
        };
        let sparse = !self.kernel.contain(&stat);
        self.to.file(name_in_tar, &file, &stat, sparse, &xattrs_of(&file)).map_err(|failed| {
            match failed {
                pack::PackError::Read(errno) => cannot("read", name_in_tar)(errno),
                pack::PackError::Write(e) => e.into(),
            }
        })
    }
}

fn xattrs_of(file: &OwnedFd) -> Xattrs {
    let list = |names: &mut [u8]| flistxattr(file, names);
    let get = |key: &[u8], value: &mut [u8]| fgetxattr(file, key, value);
    xattrs(list, get, |_| true)
}

#[cfg(test)]
mod tests;
