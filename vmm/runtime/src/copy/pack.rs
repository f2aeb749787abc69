//! A file or a tree of the host's as a tar.
//!
//! Symlinks below the path are packed as such and never followed, also not where a directory was a
//! moment ago: somebody else may be writing there. What disappears meanwhile is left out; a file keeps the
//! size that its header announced.

use std::collections::HashMap;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use boxlite_proto::archive::{
    Attributes, Device, Entry, EntryType, Piece, Time, holes, name::shown, padding,
};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat, fgetxattr, flistxattr, fstat, openat,
    readlinkat, seek, statat,
};
use rustix::io::Errno;

use super::Copied;
use super::below::{join, open_below, open_dir};
use super::place::Spelling;
use crate::{Error, Result};

/// Files with several names of which not all have been met: more are not remembered, and travel
/// once for each name.
const MAX_LINKED: usize = 1 << 18;

/// Bytes of the names of a file's extended attributes, and of one of their values, that are read.
const MAX_XATTR: usize = 64 << 10;

const BUFFER: usize = 64 << 10;

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// What is to be packed.
pub(super) struct Source {
    /// As the caller wrote it.
    path: PathBuf,
    /// The directory that it is in or, without a name there, that it is.
    dir: OwnedFd,
    in_dir: Option<Vec<u8>>,
    /// Its name, as [`Spelling`] reads it.
    pub(super) name: Option<Vec<u8>>,
    pub(super) is_dir: bool,
}

impl Source {
    /// Looks at the path. A symlink there is followed by `follow`, or where the path must be a
    /// directory.
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

/// How a tree is packed.
#[derive(Clone, Debug, Default)]
pub(super) struct Packing {
    /// What the source is called in the tar; none: what is in it goes to the top.
    pub(super) name: Option<Vec<u8>>,
    /// Whether what only means something together with the owner is kept, too.
    pub(super) archive: bool,
}

/// Writes the tar of `source` to `to`.
pub(super) fn pack(source: &Source, packing: &Packing, to: impl Write) -> Result<Copied> {
    let mut walk = Walk {
        source,
        archive: packing.archive,
        to: io::BufWriter::with_capacity(BUFFER, to),
        links: HashMap::new(),
        waiting: Vec::new(),
        buffer: vec![0; BUFFER],
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
    let end = walk.to.write_all(&[0; 1024]).and_then(|()| walk.to.flush());
    end.map_err(gone)?;
    Ok(walk.copied)
}

fn copy_error(path: &Path, source: io::Error) -> Error {
    Error::copy(path)(source)
}

/// The reader of the tar hung up; it has its own reason.
fn gone(source: io::Error) -> Error {
    Error::copy("-")(source)
}

/// A directory that has not been read yet.
struct Waiting {
    /// From the source's directory.
    path: Vec<u8>,
    /// In the tar, with a slash at its end; none: it is the top.
    shown_as: Option<Vec<u8>>,
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

struct Walk<'a, W: Write> {
    source: &'a Source,
    archive: bool,
    to: io::BufWriter<W>,
    /// The first name of files that have more.
    links: HashMap<Inode, Vec<u8>>,
    waiting: Vec<Waiting>,
    buffer: Vec<u8>,
    copied: Copied,
}

impl<W: Write> Walk<'_, W> {
    /// An error of something in the tree, whose path is from the source's directory.
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

    /// Opens a directory of the tree; none if it is gone or something else by now.
    fn open(&self, path: &[u8]) -> Result<Option<OwnedFd>> {
        match open_below(&self.source.dir, path) {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(self.failed(path, errno)),
        }
    }

    /// Writes the entry of a directory, and those in it.
    fn read_dir(&mut self, waiting: &Waiting) -> Result<()> {
        let Waiting { path, shown_as, inode } = waiting;
        let Some(dir) = self.open(path)? else { return Ok(()) };
        let stat = fstat(&dir).map_err(|e| self.failed(path, e))?;
        if Inode::of(&stat) != *inode {
            return Ok(());
        }
        if let Some(shown_as) = shown_as {
            let xattrs = self.xattrs(&dir);
            self.write_entry(shown_as, EntryType::Directory, b"", &stat, &xattrs)?;
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

    /// Writes the entry of what has this `name` in `dir`, whose path is `parent`, or remembers it.
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
                self.copied.skip(shown(&shown_as), "it is a socket, and a tar has none");
                return Ok(());
            }
        };
        if let Some(first) = self.first_name(&stat, &shown_as) {
            return self.write_entry(&shown_as, EntryType::Link, &first, &stat, &Xattrs::new());
        }
        if kind == EntryType::Regular {
            return self.add_file(dir, name, &path, &shown_as, &stat);
        }
        let link = match kind {
            EntryType::Symlink => match readlinkat(dir, name, Vec::new()) {
                Ok(target) => target.into_bytes(),
                Err(Errno::NOENT | Errno::INVAL) => {
                    self.forget(&stat);
                    return Ok(());
                }
                Err(errno) => return Err(self.failed(&path, errno)),
            },
            _ => Vec::new(),
        };
        self.write_entry(&shown_as, kind, &link, &stat, &Xattrs::new())
    }

    /// The name that the file was packed under already.
    fn first_name(&mut self, stat: &Stat, shown_as: &[u8]) -> Option<Vec<u8>> {
        if stat.st_nlink < 2 {
            return None;
        }
        let inode = Inode::of(stat);
        if let Some(first) = self.links.get(&inode) {
            return Some(first.clone());
        }
        if self.links.len() < MAX_LINKED {
            self.links.insert(inode, shown_as.to_vec());
        }
        None
    }

    /// A file was not packed after all.
    fn forget(&mut self, stat: &Stat) {
        self.links.remove(&Inode::of(stat));
    }

    fn write_entry(
        &mut self,
        name: &[u8],
        kind: EntryType,
        link: &[u8],
        stat: &Stat,
        xattrs: &Xattrs,
    ) -> Result<()> {
        let device = matches!(kind, EntryType::Char | EntryType::Block).then(|| Device {
            major: rustix::fs::major(stat.st_rdev),
            minor: rustix::fs::minor(stat.st_rdev),
        });
        let attributes = attributes(stat);
        let entry =
            Entry { name, kind, link, attributes, device, stored: 0, sparse_size: None, xattrs };
        self.copied.entries += 1;
        entry.write(&mut self.to).map_err(gone)
    }

    fn add_file(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        path: &[u8],
        shown_as: &[u8],
        seen: &Stat,
    ) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(dir, name, flags | OFlags::NOCTTY, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => {
                self.forget(seen);
                return Ok(());
            }
            Err(errno) => return Err(self.failed(path, errno)),
        };
        let stat = fstat(&file).map_err(|e| self.failed(path, e))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
            || Inode::of(&stat) != Inode::of(seen)
        {
            self.forget(seen);
            return Ok(());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(u64::MAX);
        let pieces = holes::pieces(size, blocks, |at| next_data(&file, at));
        let map = pieces.as_ref().map(|pieces| holes::map(pieces, size));
        let pieces = pieces.unwrap_or_else(|| vec![Piece { offset: 0, len: size }]);
        let data: u64 = pieces.iter().map(|piece| piece.len).sum();
        let xattrs = self.xattrs(&file);
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
        self.copied.entries += 1;
        entry.write(&mut self.to).map_err(gone)?;
        if let Some(map) = &map {
            self.to.write_all(map).map_err(gone)?;
        }
        for piece in pieces {
            self.copy(&file, piece, path)?;
        }
        self.to.write_all(padding(data)).map_err(gone)
    }

    /// Writes a piece of a file; zeros for what is not there any more.
    fn copy(&mut self, file: &OwnedFd, piece: Piece, path: &[u8]) -> Result<()> {
        let (mut offset, mut left) = (piece.offset, piece.len);
        while left > 0 {
            let max = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let Some(buffer) = self.buffer.get_mut(..max) else { break };
            let n = match rustix::io::pread(file, &mut *buffer, offset) {
                Ok(0) => {
                    buffer.fill(0);
                    max
                }
                Ok(n) => n,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(self.failed(path, errno)),
            };
            self.to.write_all(buffer.get(..n).unwrap_or_default()).map_err(gone)?;
            self.copied.bytes += n as u64;
            offset += n as u64;
            left -= n as u64;
        }
        Ok(())
    }

    /// The extended attributes that mean the same elsewhere. A file system without any, and an
    /// attribute that cannot be read, have none.
    fn xattrs(&self, file: &OwnedFd) -> Xattrs {
        let mut few = [0; 1024];
        let mut many = Vec::new();
        let names = match flistxattr(file, &mut few) {
            Err(Errno::RANGE) => {
                many.resize(MAX_XATTR, 0);
                flistxattr(file, &mut many[..]).ok().and_then(|len| many.get(..len))
            }
            result => result.ok().and_then(|len| few.get(..len)),
        };
        let travels = |name: &&[u8]| {
            let ours = name.starts_with(b"user.") && !name.contains(&b'=');
            // Labels of the host's security modules are nothing to the box.
            ours || self.archive && *name == b"security.capability"
        };
        let mut xattrs = Xattrs::new();
        for name in names.unwrap_or_default().split(|b| *b == 0).filter(travels) {
            let mut value = vec![0; MAX_XATTR];
            if let Ok(len) = fgetxattr(file, name, &mut value[..]) {
                value.truncate(len);
                xattrs.push((name.to_vec(), value));
            }
        }
        xattrs
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
