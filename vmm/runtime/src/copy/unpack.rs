//! Unpacks a tar from a guest, which is hostile, on the host.
//!
//! - A name may neither be absolute nor contain `..`, and must be the requested one or below it.
//! - Directories are opened one component at a time, never through a symlink, so that a symlink's target is harmless.
//! - A file is written under an unpredictable name, and renamed when it is complete. Existing files are replaced, never
//!   written to.
//! - Devices and pipes are not created; setuid, setgid and sticky bits are dropped; only `user.*` extended attributes
//!   are kept.
//! - An existing directory keeps its owner, mode and time.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use boxlite_proto::archive::{Archive, ArchiveError, Kind, Member, SparseMap, Time, name::shown};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod,
    fchown, fsetxattr, ftruncate, futimens, linkat, mkdirat, openat, renameat, statat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::{Errno, pwrite};

use super::Copied;
use super::below::{join, open_below, open_child, split};

/// The owner of unpacked files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ownership {
    /// The calling user.
    Caller,
    /// The owner in the tar. Requires root on the host.
    Tar,
}

/// The destination of a tar.
pub(super) struct Target {
    /// An existing directory.
    pub(super) dir: OwnedFd,
    /// The directory's path, for messages.
    pub(super) path: PathBuf,
    /// The name in the directory; none: the content of the tar's top goes into the directory itself.
    pub(super) name: Option<Vec<u8>>,
    /// The requested name, which the tar's top must have; none: `.`.
    pub(super) asked: Option<Vec<u8>>,
    pub(super) ownership: Ownership,
}

/// A tar could not be unpacked completely.
#[derive(Debug, thiserror::Error)]
#[error("entry {}: {problem}", shown(.entry))]
pub(super) struct UnpackError {
    /// The name of the entry in the tar.
    pub(super) entry: Vec<u8>,
    /// The path of the file on the host.
    pub(super) path: PathBuf,
    pub(super) problem: Problem,
}

/// Why an entry could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// An existing file is in the way.
    #[error("{0}")]
    InTheWay(&'static str),
    #[error("{0}")]
    System(#[from] Errno),
}

impl Problem {
    fn bad(what: &str) -> Self {
        Self::Archive(ArchiveError::bad(what))
    }
}

/// The longest path of an entry, in bytes.
const MAX_PATH: usize = 8192;

type Result<T, E = Problem> = std::result::Result<T, E>;

/// Unpacks `tar` to its end.
pub(super) fn unpack(target: Target, tar: impl BufRead) -> Result<Copied, UnpackError> {
    let mut archive = Archive::new(tar);
    let mut tree = Tree::new(target);
    let mut unpack = || -> Result<()> {
        while let Some(member) = archive.next_member()? {
            tree.add(&member, &mut archive)?;
            tree.copied.entries += 1;
        }
        Ok(archive.drain()?)
    };
    let result = unpack();
    // In any case, even after an error.
    tree.leave(b"");
    match result {
        Ok(()) => Ok(tree.copied),
        Err(problem) => {
            let path = tree.shown_path();
            Err(UnpackError { entry: archive.last_name().to_vec(), path, problem })
        }
    }
}

struct Tree {
    target: Target,
    /// The path of the current entry, relative to the target's directory.
    current: Vec<u8>,
    /// The directory of the last written entry.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Created directories, each within the one before. They get their modes and times with the first entry outside of
    /// them, after which nothing is created in them.
    made: Vec<Made>,
    names: TemporaryNames,
    copied: Copied,
}

struct Made {
    path: Vec<u8>,
    mode: u32,
    mtime: Time,
}

impl Tree {
    fn new(target: Target) -> Self {
        Self {
            target,
            current: Vec::new(),
            parent: None,
            made: Vec::new(),
            names: TemporaryNames(RandomState::new(), 0),
            copied: Copied::default(),
        }
    }

    /// The path of the current entry, for messages.
    fn shown_path(&self) -> PathBuf {
        self.target.path.join(std::ffi::OsStr::from_bytes(&self.current))
    }

    /// The path of a name in the tar, relative to the target's directory.
    fn resolve(&self, name: &[u8]) -> Result<Vec<u8>> {
        if name.len() > MAX_PATH {
            return Err(Problem::bad("its name is too long"));
        }
        if name.starts_with(b"/") {
            return Err(Problem::bad("its name is absolute"));
        }
        let mut names = name.split(|b| *b == b'/').filter(|name| !matches!(*name, b"" | b"."));
        if names.clone().any(|name| name == b"..") {
            return Err(Problem::bad("its name contains '..'"));
        }
        if let Some(asked) = &self.target.asked
            && names.next() != Some(asked)
        {
            return Err(Problem::bad("it is neither the requested path nor below it"));
        }
        let top = self.target.name.clone().unwrap_or_default();
        Ok(names.fold(top, |path, name| join(&path, name)))
    }

    /// Opens the directory of the entry.
    fn open(&mut self, path: &[u8]) -> Result<()> {
        if self.parent.as_ref().is_some_and(|(open, _)| open == path) {
            return Ok(());
        }
        let (above, name) = split(path);
        let dir = match &self.parent {
            Some((open, dir)) if open == above && !name.is_empty() => open_child(dir, name),
            _ => open_below(&self.target.dir, path),
        };
        let dir = dir.map_err(not_a_directory)?;
        self.parent = Some((path.to_vec(), dir));
        Ok(())
    }

    fn dir(&self) -> Result<&OwnedFd> {
        self.parent.as_ref().map(|(_, dir)| dir).ok_or_else(|| Problem::bad("it has no directory"))
    }

    fn add<R: BufRead>(&mut self, member: &Member, archive: &mut Archive<R>) -> Result<()> {
        self.current.clear();
        let path = self.resolve(&member.name)?;
        self.current.clone_from(&path);
        self.leave(&path);
        if path.is_empty() {
            return match member.kind {
                // The target's directory itself, which exists.
                Kind::Directory => Ok(()),
                _ => Err(Problem::bad("it would replace the destination")),
            };
        }
        let (parent, name) = split(&path);
        self.open(parent)?;
        match &member.kind {
            Kind::File(map) => self.add_file(name, member, map.as_ref(), archive),
            Kind::Directory => self.add_directory(&path, name, member),
            Kind::Symlink(target) => self.add_symlink(name, target, member),
            Kind::HardLink(target) => self.add_hard_link(name, target),
            Kind::Character(_) | Kind::Block(_) => self.skip(member, "devices are not copied"),
            Kind::Fifo => self.skip(member, "named pipes are not copied"),
        }
    }

    fn skip(&mut self, member: &Member, why: &str) -> Result<()> {
        self.copied.skip(shown(&member.name), why);
        Ok(())
    }

    fn add_file<R: BufRead>(
        &mut self,
        name: &[u8],
        member: &Member,
        map: Option<&SparseMap>,
        archive: &mut Archive<R>,
    ) -> Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let private = Mode::RUSR | Mode::WUSR;
        let temporary = self.names.next();
        let dir = self.dir()?;
        let file = openat(dir, &temporary[..], flags, private)?;
        let unfinished = Unfinished { dir, name: &temporary };
        let bytes = archive.data_left();
        let whole = [boxlite_proto::archive::Piece { offset: 0, len: bytes }];
        let pieces = map.map_or(&whole[..], |map| &map.pieces);
        if let Some(map) = map {
            ftruncate(&file, map.size)?;
        }
        for piece in pieces {
            let mut offset = piece.offset;
            archive.data(piece.len, |data| write_at(&file, data, &mut offset))?;
        }
        if self.target.ownership == Ownership::Tar {
            let (uid, gid) = (Uid::from_raw(member.uid), Gid::from_raw(member.gid));
            fchown(&file, Some(uid), Some(gid))?;
        }
        let lost = set_xattrs(&file, member)?;
        fchmod(&file, permissions(member.mode))?;
        futimens(&file, &timestamps(member.mtime))?;
        unfinished.rename(name)?;
        self.copied.bytes += bytes;
        if lost {
            self.copied
                .skip(shown(&member.name), "an extended attribute of it cannot be kept here");
        }
        Ok(())
    }

    fn add_directory(&mut self, path: &[u8], name: &[u8], member: &Member) -> Result<()> {
        let ownership = self.target.ownership;
        let dir = self.dir()?;
        match mkdirat(dir, name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let there = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                return match FileType::from_raw_mode(there.st_mode) {
                    FileType::Directory => Ok(()),
                    _ => Err(Problem::InTheWay("a file that is not a directory has its name")),
                };
            }
            Err(errno) => return Err(errno.into()),
        }
        let made = open_child(dir, name)?;
        if ownership == Ownership::Tar {
            let (uid, gid) = (Uid::from_raw(member.uid), Gid::from_raw(member.gid));
            fchown(&made, Some(uid), Some(gid))?;
        }
        let lost = set_xattrs(&made, member)?;
        self.made.push(Made { path: path.to_vec(), mode: member.mode, mtime: member.mtime });
        if lost {
            self.copied
                .skip(shown(&member.name), "an extended attribute of it cannot be kept here");
        }
        Ok(())
    }

    fn add_symlink(&mut self, name: &[u8], target: &[u8], member: &Member) -> Result<()> {
        let temporary = self.names.next();
        let dir = self.dir()?;
        symlinkat(target, dir, &temporary[..])?;
        let unfinished = Unfinished { dir, name: &temporary };
        if self.target.ownership == Ownership::Tar {
            let (uid, gid) = (Uid::from_raw(member.uid), Gid::from_raw(member.gid));
            chownat(dir, &temporary[..], Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        let times = timestamps(member.mtime);
        utimensat(dir, &temporary[..], &times, AtFlags::SYMLINK_NOFOLLOW)?;
        unfinished.rename(name)
    }

    fn add_hard_link(&mut self, name: &[u8], target: &[u8]) -> Result<()> {
        let path = self.resolve(target)?;
        let (target_dir, target) = split(&path);
        if target.is_empty() {
            return Err(Problem::bad("it is a hard link to a directory"));
        }
        let target_dir = open_below(&self.target.dir, target_dir).map_err(not_a_directory)?;
        let temporary = self.names.next();
        let dir = self.dir()?;
        match linkat(&target_dir, target, dir, &temporary[..], AtFlags::empty()) {
            Ok(()) => Unfinished { dir, name: &temporary }.rename(name),
            Err(Errno::NOENT) => Err(Problem::bad("it is a hard link to a missing file")),
            Err(Errno::PERM) => {
                Err(Problem::bad("it is a hard link to a file that cannot be linked"))
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Sets the modes and times of created directories that do not contain `path`, innermost first, since a mode may
    /// make its directory inaccessible.
    fn leave(&mut self, path: &[u8]) {
        let leads_there = |made: &Made| match path.strip_prefix(&made.path[..]) {
            Some(below) => below.is_empty() || below.starts_with(b"/"),
            None => false,
        };
        while let Some(Made { path, mode, mtime }) = self.made.pop_if(|made| !leads_there(made)) {
            // Another process may have removed or replaced the directory.
            if let Ok(dir) = open_below(&self.target.dir, &path) {
                let _ = futimens(&dir, &timestamps(mtime));
                let _ = fchmod(&dir, permissions(mode));
            }
        }
    }
}

/// An entry under its temporary name. Removed on drop.
struct Unfinished<'a> {
    dir: &'a OwnedFd,
    name: &'a [u8],
}

impl Unfinished<'_> {
    /// Renames it to its own name, and replaces an existing file.
    fn rename(self, name: &[u8]) -> Result<()> {
        match renameat(self.dir, self.name, self.dir, name) {
            // rename(2) keeps both names if they are of the same file.
            Ok(()) => Ok(()),
            Err(Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY) => {
                Err(Problem::InTheWay("a directory has its name"))
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let _ = unlinkat(self.dir, self.name, AtFlags::empty());
    }
}

/// Temporary names that a tar cannot predict.
struct TemporaryNames(RandomState, u64);

impl TemporaryNames {
    fn next(&mut self) -> Vec<u8> {
        self.1 += 1;
        format!(".boxlite-copy-{:016x}", self.0.hash_one(self.1)).into_bytes()
    }
}

fn not_a_directory(errno: Errno) -> Problem {
    match errno {
        Errno::LOOP | Errno::NOTDIR => {
            Problem::InTheWay("its parent is a symlink or not a directory")
        }
        Errno::NOENT => Problem::bad("its directory is not before it in the archive"),
        errno => errno.into(),
    }
}

fn write_at(file: &OwnedFd, mut data: &[u8], offset: &mut u64) -> Result<()> {
    while !data.is_empty() {
        match pwrite(file, data, *offset) {
            Ok(n) => {
                data = data.get(n..).unwrap_or_default();
                *offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Sets the `user.*` extended attributes, which the system does not interpret. True if one could not be set.
fn set_xattrs(file: &OwnedFd, member: &Member) -> Result<bool> {
    let mut lost = false;
    for (name, value) in member.xattrs.iter().filter(|(name, _)| name.starts_with(b"user.")) {
        match fsetxattr(file, &name[..], value, XattrFlags::empty()) {
            Ok(()) => {}
            Err(errno @ (Errno::IO | Errno::DQUOT)) => return Err(errno.into()),
            // The file system has no extended attributes, or no room for this one.
            Err(_) => lost = true,
        }
    }
    Ok(lost)
}

/// The mode without setuid, setgid and sticky bits.
fn permissions(mode: u32) -> Mode {
    // Not every system has 32 bits for it.
    Mode::from_raw_mode((mode & 0o777) as _)
}

fn timestamps(time: Time) -> Timestamps {
    let time = Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

impl From<&UnpackError> for io::Error {
    fn from(error: &UnpackError) -> Self {
        match &error.problem {
            Problem::System(errno) => (*errno).into(),
            other => Self::other(other.to_string()),
        }
    }
}
