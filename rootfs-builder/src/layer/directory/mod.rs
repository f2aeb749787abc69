//! A directory of this machine as a layer: its tar stream, made while it is read.
//!
//! - The order is that of sorted names, times are whole seconds: an unchanged directory always
//!   gives the same stream. Its digest is the identity of the image, so the directory is read
//!   once to learn it and, where the disk is not in the cache, once more to build from; what
//!   changed in between makes the second digest differ and the build fail.
//! - Files belong to whom they belong on disk; for anyone but root, their own files (and group)
//!   become root's: that is what they unpacked a root file system for.
//! - Symbolic links are never followed, other file systems mounted below are left out (their
//!   mount points stay), sockets are skipped. Device nodes are kept.
//! - Extended attributes: `user.*`, file capabilities and ACLs. Labels and signatures of the host
//!   (`security.selinux`, `security.ima`, …) mean nothing in a box.
//! - Memory: the sorted names of the directories on the current path, and one path for each file
//!   of which more hard links are to come.

mod entry;
mod sparse;

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use tar::EntryType;

use crate::error::{Error, Remedy, Result};
use crate::sys::{self, NodeStat};
use entry::Entry;
use sparse::Segment;

/// Maximum depth of nested directories (each keeps a descriptor open).
const MAX_DEPTH: usize = 200;

/// The tar stream of a directory.
pub(crate) struct DirectoryTar {
    root: PathBuf,
    /// Device of the root's file system.
    device: u64,
    owner: Owner,
    walk: Vec<OpenDir>,
    links: HashMap<(u64, u64), Linked>,
    /// Encoded headers or padding, partly read.
    pending: io::Cursor<Vec<u8>>,
    body: Option<Body>,
    ended: bool,
}

/// An open directory of the walk.
struct OpenDir {
    dir: File,
    /// Path in the stream: empty, or ending in a slash.
    path: Vec<u8>,
    /// Remaining names, the next one last.
    names: Vec<CString>,
}

/// A file with further hard links to come.
struct Linked {
    path: Vec<u8>,
    left: u64,
}

impl DirectoryTar {
    /// Opens the directory `root`, which may be a symbolic link.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let dir = sys::open_dir(root).map_err(Error::io("open the directory", root))?;
        let metadata = dir.metadata().map_err(Error::io("read", root))?;
        let mut tar = Self {
            root: root.to_owned(),
            device: metadata.dev(),
            owner: Owner::new(),
            walk: Vec::new(),
            links: HashMap::new(),
            pending: io::Cursor::default(),
            body: None,
            ended: false,
        };
        tar.enter(dir, Vec::new(), &metadata)?;
        Ok(tar)
    }

    /// The path on this machine.
    fn real_path(&self, path: &[u8]) -> PathBuf {
        self.root.join(OsStr::from_bytes(path))
    }

    /// Emits the member of a directory and descends into it.
    fn enter(&mut self, dir: File, path: Vec<u8>, metadata: &Metadata) -> Result<()> {
        let real_path = self.real_path(&path);
        let shown = if path.is_empty() { b"./" } else { path.as_slice() };
        let xattrs =
            sys::xattrs(&dir, is_kept).map_err(Error::io("read attributes of", &real_path))?;
        self.pending = self.member(shown, EntryType::Directory, metadata, 0, &xattrs, None);
        if metadata.dev() != self.device {
            return Ok(());
        }
        if self.walk.len() >= MAX_DEPTH {
            let what = format!("{}: nested directories", real_path.display());
            return Err(Error::TooMany { what, count: self.walk.len() + 1, limit: MAX_DEPTH });
        }
        let mut names = sys::names_in(&dir).map_err(Error::io("list", &real_path))?;
        names.sort_by(|a, b| b.cmp(a));
        self.walk.push(OpenDir { dir, path, names });
        Ok(())
    }

    /// Prepares the next member; false after the last.
    fn advance(&mut self) -> Result<bool> {
        let Some(level) = self.walk.last_mut() else { return Ok(false) };
        let Some(name) = level.names.pop() else {
            self.walk.pop();
            return Ok(true);
        };
        let path = [&level.path, name.to_bytes()].concat();
        let seen = |path: &[u8], error: io::Error, root: &Path| {
            let path = root.join(OsStr::from_bytes(path));
            match sys::is_gone(&error) {
                true => Error::Changed { path },
                false => Error::Io { action: "read", path, source: error },
            }
        };
        let stat = sys::stat_at(&level.dir, &name).map_err(|e| seen(&path, e, &self.root))?;
        if name.to_bytes().starts_with(b".wh.") {
            return Err(Error::Unsupported {
                what: format!("the name of {}", self.real_path(&path).display()),
                remedy: Remedy::Other(
                    "layers use names that begin with .wh. to delete files; rename or remove it",
                ),
            });
        }
        match stat.kind {
            FileType::RegularFile | FileType::Directory => {
                let file =
                    sys::open_at(&level.dir, &name).map_err(|e| seen(&path, e, &self.root))?;
                let metadata = file.metadata().map_err(|e| seen(&path, e, &self.root))?;
                if metadata.is_dir() {
                    self.enter(file, [&path[..], b"/"].concat(), &metadata)?;
                } else if metadata.is_file() {
                    self.add_file(file, path, &metadata)?;
                } else {
                    return Err(Error::Changed { path: self.real_path(&path) });
                }
            }
            FileType::Symlink => {
                let link = sys::read_link_at(&level.dir, &name);
                let link = link.map_err(|e| seen(&path, e, &self.root))?;
                self.add_node(&path, EntryType::Symlink, &stat, &link);
            }
            FileType::Fifo => self.add_node(&path, EntryType::Fifo, &stat, b""),
            FileType::CharacterDevice if stat.device.is_some() => {
                self.add_node(&path, EntryType::Char, &stat, b"");
            }
            FileType::BlockDevice if stat.device.is_some() => {
                self.add_node(&path, EntryType::Block, &stat, b"");
            }
            // Sockets: their listeners are not in the box.
            _ => {}
        }
        Ok(true)
    }

    fn add_file(&mut self, file: File, path: Vec<u8>, metadata: &Metadata) -> Result<()> {
        let identity = (metadata.dev(), metadata.ino());
        if let Some(linked) = self.links.get_mut(&identity) {
            linked.left -= 1;
            let target = linked.path.clone();
            if linked.left == 0 {
                self.links.remove(&identity);
            }
            let entry =
                Entry { link: &target, ..self.owner.entry(&path, EntryType::Link, metadata) };
            self.pending = io::Cursor::new(entry.encode());
            return Ok(());
        }
        if metadata.nlink() > 1 {
            let left = metadata.nlink() - 1;
            self.links.insert(identity, Linked { path: path.clone(), left });
        }
        let real_path = self.real_path(&path);
        let xattrs =
            sys::xattrs(&file, is_kept).map_err(Error::io("read attributes of", &real_path))?;
        let map = sparse::map(&file, metadata).map_err(Error::io("read", &real_path))?;
        let segments = match &map {
            Some(map) => map.clone(),
            None => vec![Segment { start: 0, len: metadata.len() }],
        };
        let size = segments.iter().map(|segment| segment.len).sum();
        let kind = if map.is_some() { EntryType::GNUSparse } else { EntryType::Regular };
        self.pending = self.member(&path, kind, metadata, size, &xattrs, map.as_deref());
        self.body = Some(Body::new(file, real_path, metadata, segments, size));
        Ok(())
    }

    fn add_node(&mut self, path: &[u8], kind: EntryType, stat: &NodeStat, link: &[u8]) {
        let (uid, gid) = self.owner.map(stat.uid, stat.gid);
        let device = stat.device.filter(|_| matches!(kind, EntryType::Char | EntryType::Block));
        let mtime = u64::try_from(stat.mtime).unwrap_or(0);
        let entry = Entry {
            path,
            kind,
            mode: stat.mode,
            uid,
            gid,
            mtime,
            size: 0,
            link,
            device,
            xattrs: &[],
            sparse: None,
        };
        self.pending = io::Cursor::new(entry.encode());
    }

    fn member(
        &self,
        path: &[u8],
        kind: EntryType,
        metadata: &Metadata,
        size: u64,
        xattrs: &[(Vec<u8>, Vec<u8>)],
        sparse: Option<&[Segment]>,
    ) -> io::Cursor<Vec<u8>> {
        let sparse = sparse.map(|segments| (metadata.len(), segments));
        let entry = Entry { size, xattrs, sparse, ..self.owner.entry(path, kind, metadata) };
        io::Cursor::new(entry.encode())
    }

    fn read_some(&mut self, buf: &mut [u8]) -> Result<usize> {
        loop {
            let count = self.pending.read(buf).unwrap_or_default();
            if count > 0 || buf.is_empty() || self.ended {
                return Ok(count);
            }
            if let Some(body) = &mut self.body {
                let count = body.read(buf)?;
                if count > 0 {
                    return Ok(count);
                }
                self.pending = io::Cursor::new(vec![0; body.padding()]);
                self.body = None;
            } else if !self.advance()? {
                // Two zero blocks end an archive.
                self.pending = io::Cursor::new(vec![0; 1024]);
                self.walk.clear();
                self.ended = true;
                return Ok(self.pending.read(buf).unwrap_or_default());
            }
        }
    }
}

impl Read for DirectoryTar {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_some(buf).map_err(Error::into_io)
    }
}

/// Whether an extended attribute means something in a box.
fn is_kept(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || matches!(
            name,
            b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default"
        )
}

/// Maps owners on this machine to owners in the box.
#[derive(Clone, Copy)]
struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    fn new() -> Self {
        let (uid, gid) = sys::effective_ids();
        Self { uid, gid }
    }

    fn map(self, uid: u32, gid: u32) -> (u32, u32) {
        match self.uid {
            0 => (uid, gid),
            me => (if uid == me { 0 } else { uid }, if gid == self.gid { 0 } else { gid }),
        }
    }

    fn entry<'a>(self, path: &'a [u8], kind: EntryType, metadata: &Metadata) -> Entry<'a> {
        let (uid, gid) = self.map(metadata.uid(), metadata.gid());
        Entry {
            path,
            kind,
            mode: metadata.mode() & 0o7777,
            uid,
            gid,
            mtime: u64::try_from(metadata.mtime()).unwrap_or(0),
            size: 0,
            link: b"",
            device: None,
            xattrs: &[],
            sparse: None,
        }
    }
}

/// The content of a file.
struct Body {
    file: File,
    path: PathBuf,
    before: Stamp,
    /// Remaining data, the next segment last.
    segments: Vec<Segment>,
    size: u64,
}

/// What changes when a file is written to.
#[derive(PartialEq)]
struct Stamp {
    len: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            len: metadata.len(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            ctime: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Body {
    fn new(
        file: File,
        path: PathBuf,
        metadata: &Metadata,
        mut segments: Vec<Segment>,
        size: u64,
    ) -> Self {
        segments.reverse();
        Self { file, path, before: Stamp::of(metadata), segments, size }
    }

    /// Zeros after the content, up to a whole block.
    fn padding(&self) -> usize {
        (self.size.next_multiple_of(512) - self.size) as usize
    }

    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        while self.segments.last().is_some_and(|segment| segment.len == 0) {
            self.segments.pop();
        }
        let Some(segment) = self.segments.last_mut() else {
            let now = self.file.metadata().map_err(Error::io("read", &self.path))?;
            if Stamp::of(&now) != self.before {
                return Err(Error::Changed { path: self.path.clone() });
            }
            return Ok(0);
        };
        let wanted = usize::try_from(segment.len).unwrap_or(usize::MAX).min(buf.len());
        let buf = buf.get_mut(..wanted).unwrap_or_default();
        let count = self.file.read_at(buf, segment.start).map_err(Error::io("read", &self.path))?;
        if count == 0 {
            return Err(Error::Changed { path: self.path.clone() });
        }
        segment.start += count as u64;
        segment.len -= count as u64;
        Ok(count)
    }
}
