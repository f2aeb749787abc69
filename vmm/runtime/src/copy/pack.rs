//! Packs a file or a tree of the host as a tar.
//!
//! Symlinks below the path are packed as such and never followed, even if one has just replaced a directory: other
//! processes may write to the tree. Files that disappear are left out. A file is padded or cut to the size in its
//! header.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use boxlite_proto::archive::name::shown;
use boxlite_proto::archive::pack::{self, Inode, PackError, Packer};
use boxlite_proto::archive::{EntryType, Xattrs};
use rustix::fs::{AtFlags, Dir, FileType, fgetxattr, flistxattr, fstat, readlinkat, statat};
use rustix::io::Errno;

use super::Copied;
use super::below::{join, open_below, open_dir};
use super::destination::Spelling;
use crate::{Error, Result};

const BUFFER: usize = 64 << 10;

/// The source of a tar.
pub(super) struct Source {
    /// The path as the caller gave it.
    path: PathBuf,
    /// The directory that contains the source; without a name there, the source itself.
    dir: OwnedFd,
    in_dir: Option<Vec<u8>>,
    /// The source's name, as in [`Spelling`].
    pub(super) name: Option<Vec<u8>>,
    pub(super) is_dir: bool,
}

impl Source {
    /// Opens the path. A symlink is followed if `follow` is set, or if the path must be a directory.
    pub(super) fn find(path: &Path, follow: bool) -> Result<Self> {
        let failed = |errno: Errno| copy_error(path, errno.into());
        let spelling = Spelling::of(path.as_os_str().as_bytes());
        let name = spelling.name.map(<[u8]>::to_vec);
        let Some(bare) = &name else {
            let dir = open_dir(path).map_err(failed)?;
            return Ok(Self { path: path.into(), dir, in_dir: None, name, is_dir: true });
        };
        let (parent, in_dir) = if follow || spelling.is_dir {
            let real = path.canonicalize().map_err(|e| copy_error(path, e))?;
            match (real.parent(), real.file_name()) {
                (Some(parent), Some(name)) => (parent.to_owned(), name.as_bytes().to_vec()),
                _ => (real, b".".to_vec()),
            }
        } else {
            let parent = match spelling.parent {
                b"" => Path::new("."),
                parent => Path::new(std::ffi::OsStr::from_bytes(parent)),
            };
            (parent.to_owned(), bare.clone())
        };
        let dir = open_dir(&parent).map_err(failed)?;
        let stat = statat(&dir, &in_dir[..], AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let is_dir = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => true,
            FileType::RegularFile | FileType::Symlink if spelling.is_dir => {
                return Err(failed(Errno::NOTDIR));
            }
            FileType::RegularFile | FileType::Symlink => false,
            _ => {
                let reason = "it is a device, a pipe or a socket";
                return Err(Error::copy_refused(path.display(), reason));
            }
        };
        Ok(Self { path: path.into(), dir, in_dir: Some(in_dir), name, is_dir })
    }
}

/// Options of packing.
#[derive(Clone, Debug, Default)]
pub(super) struct Packing {
    /// The name of the source in the tar; none: its content is at the top.
    pub(super) name: Option<Vec<u8>>,
    /// Whether to keep file capabilities, which are useful only with the owner.
    pub(super) archive: bool,
}

/// Writes the tar of `source` to `to`.
pub(super) fn pack(source: &Source, packing: &Packing, to: impl Write) -> Result<Copied> {
    let mut walk = Walk {
        source,
        archive: packing.archive,
        to: Packer::new(io::BufWriter::with_capacity(BUFFER, to)),
        waiting: Vec::new(),
        copied: Copied::default(),
    };
    match (&packing.name, &source.in_dir) {
        (Some(shown_as), Some(name)) if !source.is_dir => {
            walk.add(&source.dir, name, b"", shown_as.clone())?;
        }
        (shown_as, in_dir) => {
            let path = in_dir.clone().unwrap_or_default();
            let Some(dir) = walk.open(&path)? else {
                return Err(copy_error(&source.path, Errno::NOTDIR.into()));
            };
            let stat = fstat(&dir).map_err(|e| copy_error(&source.path, e.into()))?;
            let shown_as = shown_as.as_ref().map(|name| [&name[..], b"/"].concat());
            walk.waiting.push(Waiting { path, shown_as, inode: Inode::of(&stat) });
        }
    }
    while let Some(waiting) = walk.waiting.pop() {
        walk.read_dir(&waiting)?;
    }
    walk.to.finish().map_err(gone)?;
    let (entries, bytes) = (walk.to.entries(), walk.to.bytes());
    Ok(Copied { entries, bytes, ..walk.copied })
}

fn copy_error(path: &Path, source: io::Error) -> Error {
    Error::copy(path)(source)
}

/// The reader of the tar stopped. Its own error says why.
fn gone(source: io::Error) -> Error {
    Error::copy("-")(source)
}

/// A directory that has not been read yet.
struct Waiting {
    /// Relative to the source's directory.
    path: Vec<u8>,
    /// The name in the tar, with a slash at its end; none: the top.
    shown_as: Option<Vec<u8>>,
    inode: Inode,
}

struct Walk<'a, W: Write> {
    source: &'a Source,
    archive: bool,
    to: Packer<io::BufWriter<W>>,
    waiting: Vec<Waiting>,
    /// The result so far, with skipped entries.
    copied: Copied,
}

impl<W: Write> Walk<'_, W> {
    /// An error of a file in the tree, whose path is relative to the source's directory.
    fn failed(&self, path: &[u8], errno: Errno) -> Error {
        let below = match &self.source.in_dir {
            Some(top) => path.get(top.len() + 1..).unwrap_or_default(),
            None => path,
        };
        let path = match below.is_empty() {
            true => self.source.path.clone(),
            false => self.source.path.join(std::ffi::OsStr::from_bytes(below)),
        };
        Error::copy(path)(errno.into())
    }

    /// Opens a directory of the tree; none if it was removed or replaced.
    fn open(&self, path: &[u8]) -> Result<Option<OwnedFd>> {
        match open_below(&self.source.dir, path) {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(self.failed(path, errno)),
        }
    }

    /// Writes the entry of a directory, and those of its content.
    fn read_dir(&mut self, waiting: &Waiting) -> Result<()> {
        let Waiting { path, shown_as, inode } = waiting;
        let Some(dir) = self.open(path)? else { return Ok(()) };
        let stat = fstat(&dir).map_err(|e| self.failed(path, e))?;
        if Inode::of(&stat) != *inode {
            return Ok(());
        }
        if let Some(shown_as) = shown_as {
            let xattrs = self.xattrs(&dir);
            self.to.entry(shown_as, EntryType::Directory, b"", &stat, &xattrs).map_err(gone)?;
        }
        for entry in Dir::read_from(&dir).map_err(|e| self.failed(path, e))? {
            let entry = entry.map_err(|e| self.failed(path, e))?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let shown_as = [shown_as.as_deref().unwrap_or_default(), name].concat();
            self.add(&dir, name, path, shown_as)?;
        }
        Ok(())
    }

    /// Writes the entry of `name` in `dir`, whose path is `parent`; a directory is queued instead.
    fn add(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        parent: &[u8],
        mut shown_as: Vec<u8>,
    ) -> Result<()> {
        let path = join(parent, name);
        let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(self.failed(&path, errno)),
        };
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                shown_as.push(b'/');
                let inode = Inode::of(&stat);
                self.waiting.push(Waiting { path, shown_as: Some(shown_as), inode });
                return Ok(());
            }
            FileType::RegularFile => EntryType::Regular,
            FileType::Symlink => EntryType::Symlink,
            FileType::CharacterDevice => EntryType::Char,
            FileType::BlockDevice => EntryType::Block,
            FileType::Fifo => EntryType::Fifo,
            FileType::Socket | FileType::Unknown => {
                self.copied.skip(shown(&shown_as), "it is a socket, which a tar cannot have");
                return Ok(());
            }
        };
        let none = Xattrs::new();
        if let Some(first) = self.to.first_name(&stat, &shown_as) {
            return self.to.entry(&shown_as, EntryType::Link, &first, &stat, &none).map_err(gone);
        }
        if kind == EntryType::Regular {
            return self.add_file(dir, name, &path, &shown_as, &stat);
        }
        let link = match kind {
            EntryType::Symlink => match readlinkat(dir, name, Vec::new()) {
                Ok(target) => target.into_bytes(),
                Err(Errno::NOENT | Errno::INVAL) => {
                    self.to.forget(&stat);
                    return Ok(());
                }
                Err(errno) => return Err(self.failed(&path, errno)),
            },
            _ => Vec::new(),
        };
        self.to.entry(&shown_as, kind, &link, &stat, &none).map_err(gone)
    }

    fn add_file(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        path: &[u8],
        shown_as: &[u8],
        seen: &rustix::fs::Stat,
    ) -> Result<()> {
        let opened = pack::open(dir, name, seen).map_err(|e| self.failed(path, e))?;
        let Some((file, stat)) = opened else {
            self.to.forget(seen);
            return Ok(());
        };
        let xattrs = self.xattrs(&file);
        self.to.file(shown_as, &file, &stat, true, &xattrs).map_err(|failed| match failed {
            PackError::Read(errno) => self.failed(path, errno),
            PackError::Write(e) => gone(e),
        })
    }

    /// The extended attributes that have the same meaning in a box.
    fn xattrs(&self, file: &OwnedFd) -> Xattrs {
        let list = |names: &mut [u8]| flistxattr(file, names);
        let get = |key: &[u8], value: &mut [u8]| fgetxattr(file, key, value);
        // Labels of the host's security modules have no meaning in a box.
        pack::xattrs(list, get, |name| {
            name.starts_with(b"user.") || self.archive && name == b"security.capability"
        })
    }
}
