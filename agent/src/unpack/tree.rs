//! Writes members to the disk: a layer onto a disk of its own, or a copy into a directory of a running box.
//!
//! The kernel confines a layer's thread to the disk. In a box, other processes change the tree meanwhile, so a
//! copy reaches an entry only through the descriptor of a directory that was checked to be below the
//! destination.
//!
//! Each system call is expensive in an emulated guest, so the common case needs few: an entry is created as if
//! nothing were there, its owner is set only if it differs, and its directory is opened once for all entries in
//! a row.

use std::io::BufRead;
use std::os::fd::{AsFd, OwnedFd};

use boxlite_proto::archive::{Archive, Device, Kind, Member, SparseMap, Time, name};
use boxlite_proto::guest::Owner;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chownat, fchmod,
    fchown, fstat, ftruncate, futimens, linkat, makedev, mkdirat, mknodat, openat, readlinkat,
    statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::{Errno, pwrite, write};

use super::attributes::{self, within};
use super::whiteout::{DirRef, Meaning, OwnEntries, list, remove, remove_content};
use super::{Problem, below, cannot};
use crate::sys::file::chmod_nofollow;

/// Limit on the symlinks of one path, as in the kernel: a longer chain counts as a loop.
const MAX_SYMLINKS: usize = 40;

/// The tree that members are written to.
pub(super) struct Tree {
    /// The root of the disk or the destination; the thread's working directory.
    base: OwnedFd,
    purpose: Purpose,
    parent: Option<Parent>,
    /// None on an empty disk, where every entry is the layer's own.
    own: Option<OwnEntries>,
    /// Directories and their times, which are set after all entries are created.
    directories: Vec<(Vec<u8>, Time)>,
    /// Whether the current entry has replaced another.
    replaced: bool,
}

/// The purpose of the tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// A layer: it may delete entries of the layers below.
    Layer,
    /// A copy of files, which all get this owner if there is one.
    Copy(Option<Owner>),
}

/// The directory of the last entry.
struct Parent {
    path: Vec<u8>,
    fd: OwnedFd,
    ino: u64,
    /// Whether the directory has the setgid bit: new entries inherit its group, and new directories the bit.
    setgid: bool,
    /// Whether the directory has a default access control list, which determines the list and mode of new entries.
    default_acl: bool,
}

impl Parent {
    fn new(path: &[u8], fd: OwnedFd, default_acl: bool) -> rustix::io::Result<Self> {
        let stat = fstat(&fd)?;
        let setgid = Mode::from_raw_mode(stat.st_mode).contains(Mode::SGID);
        Ok(Self { path: path.to_vec(), fd, ino: stat.st_ino, setgid, default_acl })
    }

    fn as_ref(&self) -> DirRef<'_> {
        DirRef { fd: self.fd.as_fd(), ino: self.ino }
    }
}

impl Tree {
    /// The tree for a layer. The working directory must be the root directory.
    pub(super) fn of_layer() -> rustix::io::Result<Self> {
        let base = below::open_dir(CWD, b".")?;
        let _ = unlinkat(&base, "lost+found", AtFlags::REMOVEDIR);
        let own = if list(base.as_fd())?.is_empty() { None } else { Some(OwnEntries::default()) };
        Ok(Self { own, ..Self::new(base, Purpose::Layer) })
    }

    /// The tree for a copy into `base`, which must be the working directory.
    pub(super) fn of_copy(base: OwnedFd, owner: Option<Owner>) -> Self {
        Self::new(base, Purpose::Copy(owner))
    }

    fn new(base: OwnedFd, purpose: Purpose) -> Self {
        let directories = Vec::new();
        Self { base, purpose, parent: None, own: None, directories, replaced: false }
    }

    /// Writes a member. Returns the bytes of content written.
    pub(super) fn add<R: BufRead>(
        &mut self,
        member: &Member,
        archive: &mut Archive<R>,
    ) -> Result<u64, Problem> {
        let path = name::normalize(&member.name)?;
        let meaning = match self.purpose {
            Purpose::Layer => Meaning::of(&path)?,
            Purpose::Copy(_) => Meaning::Entry,
        };
        let (dir, name) = name::split(&path);
        match meaning {
            Meaning::Entry => {}
            Meaning::Ignored => return Ok(0),
            Meaning::Whiteout(name) => {
                if self.own.is_some() && self.find_parent(dir)? {
                    self.with_parent(|parent, own| remove(parent, name, own))?;
                }
                return Ok(0);
            }
            Meaning::Opaque => {
                if self.own.is_some() && self.find_parent(dir)? {
                    self.with_parent(remove_content)?;
                }
                return Ok(0);
            }
        }
        if path.is_empty() {
            return self.set_root(member).map(|()| 0);
        }
        self.make_parent(dir)?;
        let mut bytes = 0;
        self.replaced = false;
        match &member.kind {
            Kind::File(sparse) => {
                bytes = self.add_file(name, member, sparse.as_ref(), archive)?;
            }
            Kind::Directory => self.add_directory(&path, name, member)?,
            Kind::HardLink(target) => self.add_hard_link(name, target)?,
            Kind::Symlink(target) => {
                self.create(name, "make a symlink", |dir| symlinkat(&target[..], dir, name))?;
                self.set_metadata(name, member)?;
            }
            Kind::Character(device) => {
                self.add_node(name, member, FileType::CharacterDevice, Some(device))?;
            }
            Kind::Block(device) => {
                self.add_node(name, member, FileType::BlockDevice, Some(device))?;
            }
            Kind::Fifo => self.add_node(name, member, FileType::Fifo, None)?,
        }
        let ino = self.parent()?.ino;
        if let Some(own) = &mut self.own {
            own.insert(ino, name);
        }
        if std::mem::take(&mut self.replaced) {
            self.forget_below(&path, &member.kind);
            // The path of the directory may have led through the replaced entry.
            self.parent = None;
        }
        Ok(bytes)
    }

    /// Sets the times of the directories.
    pub(super) fn finish(self) {
        for (path, time) in &self.directories {
            let (path, time) = (or_dot(path), timestamps(*time));
            // Fails for a directory that a later entry has replaced.
            let _ = match self.purpose {
                Purpose::Layer => utimensat(CWD, path, &time, AtFlags::SYMLINK_NOFOLLOW),
                Purpose::Copy(_) => below::open_below(&self.base, path)
                    .and_then(|dir| utimensat(dir, ".", &time, AtFlags::SYMLINK_NOFOLLOW)),
            };
        }
    }

    fn parent(&self) -> Result<&Parent, Problem> {
        self.parent.as_ref().ok_or_else(|| Problem::bad("it has no directory"))
    }

    /// Changes the content of the parent, after which the path of the open directory may be invalid.
    fn with_parent(
        &mut self,
        change: impl FnOnce(DirRef<'_>, Option<&OwnEntries>) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let result = change(self.parent()?.as_ref(), self.own.as_ref());
        self.parent = None;
        result
    }

    /// Opens the directory `path`.
    fn open(&self, path: &[u8]) -> rustix::io::Result<Parent> {
        let (fd, default_acl) = match self.purpose {
            Purpose::Layer => {
                let fd = below::open_dir(CWD, or_dot(path))?;
                (fd, attributes::has_default_acl(or_dot(path))?)
            }
            Purpose::Copy(_) => {
                let fd = below::open_below(&self.base, or_dot(path))?;
                let default_acl = within(&fd, &self.base, || attributes::has_default_acl(b"."))??;
                (fd, default_acl)
            }
        };
        Parent::new(path, fd, default_acl)
    }

    /// Makes the directory `path` the parent, if it exists.
    fn find_parent(&mut self, path: &[u8]) -> Result<bool, Problem> {
        if self.parent.as_ref().is_some_and(|parent| parent.path == path) {
            return Ok(true);
        }
        match self.open(path) {
            Ok(parent) => {
                self.parent = Some(parent);
                Ok(true)
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(errno) => Err(cannot_open(errno)),
        }
    }

    /// Makes the directory `path` the parent, and creates it if it is missing.
    fn make_parent(&mut self, path: &[u8]) -> Result<(), Problem> {
        if self.find_parent(path)? {
            return Ok(());
        }
        self.make_directories(path, 0)?;
        self.parent = Some(self.open(path).map_err(cannot_open)?);
        Ok(())
    }

    /// Makes the missing directories of a path. A layer also replaces entries that are not directories.
    fn make_directories(&mut self, path: &[u8], depth: usize) -> Result<(), Problem> {
        if depth > MAX_SYMLINKS {
            return Err(cannot("make its directory")(Errno::LOOP));
        }
        let mut made = Vec::new();
        for component in path.split(|b| *b == b'/') {
            let parent = self.open(&made).map_err(cannot_open)?;
            if !made.is_empty() {
                made.push(b'/');
            }
            made.extend_from_slice(component);
            match self.make_directory(&parent, component) {
                Err(Problem::System { errno: Errno::EXIST, .. }) => {
                    if self.purpose == Purpose::Layer {
                        self.ensure_directory(&parent, component, depth)?;
                    }
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// Makes a directory whose own entry is missing, or comes later.
    fn make_directory(&mut self, parent: &Parent, name: &[u8]) -> Result<(), Problem> {
        let mode = Mode::from_raw_mode(0o755);
        mkdirat(&parent.fd, name, mode).map_err(cannot("make its directory"))?;
        if let Some(own) = &mut self.own {
            own.insert(parent.ino, name);
        }
        if let Purpose::Copy(Some(Owner { uid, gid })) = self.purpose {
            set_owner(&parent.fd, name, uid, gid)?;
        }
        if parent.default_acl {
            self.remove_inherited_acls(parent, name)?;
            chmod_nofollow(&parent.fd, name, mode.bits()).map_err(cannot("set its mode"))?;
        }
        Ok(())
    }

    /// Ensures that an existing entry is a directory or leads to one: creates the target of a dangling symlink,
    /// and replaces any other entry with a directory, as an overlay of layers does.
    fn ensure_directory(
        &mut self,
        parent: &Parent,
        name: &[u8],
        depth: usize,
    ) -> Result<(), Problem> {
        match statat(&parent.fd, name, AtFlags::empty()) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => Ok(()),
            Ok(_) => {
                remove(parent.as_ref(), name, None)?;
                self.make_directory(parent, name)
            }
            Err(errno) => {
                let Ok(target) = readlinkat(&parent.fd, name, Vec::new()) else {
                    return Err(cannot("open its directory")(errno));
                };
                let target = target.to_bytes();
                let relative_to = if target.starts_with(b"/") { &b""[..] } else { &parent.path };
                self.make_directories(&name::resolve(relative_to, target), depth + 1)
            }
        }
    }

    /// Creates an entry, and replaces an existing one.
    fn create<T>(
        &mut self,
        name: &[u8],
        what: &'static str,
        create: impl Fn(&OwnedFd) -> rustix::io::Result<T>,
    ) -> Result<T, Problem> {
        match create(&self.parent()?.fd) {
            Err(Errno::EXIST) => {}
            result => return result.map_err(cannot(what)),
        }
        let created = self.replace(name, what, create)?;
        self.replaced = true;
        Ok(created)
    }

    /// Removes the existing entry, and creates the new one.
    fn replace<T>(
        &self,
        name: &[u8],
        what: &'static str,
        create: impl Fn(&OwnedFd) -> rustix::io::Result<T>,
    ) -> Result<T, Problem> {
        let parent = self.parent()?;
        match self.purpose {
            Purpose::Layer => remove(parent.as_ref(), name, None)?,
            Purpose::Copy(_) => remove_for_copy(&parent.fd, name)?,
        }
        create(&parent.fd).map_err(cannot(what))
    }

    /// Drops the times of directories that were replaced: of `path` and those below it.
    fn forget_below(&mut self, path: &[u8], kind: &Kind) {
        let is_replaced = |dir: &[u8]| match dir.strip_prefix(path) {
            Some(b"") => *kind != Kind::Directory,
            Some(below) => below.starts_with(b"/"),
            None => false,
        };
        self.directories.retain(|(dir, _)| !is_replaced(dir));
    }

    fn add_file<R: BufRead>(
        &mut self,
        name: &[u8],
        member: &Member,
        sparse: Option<&SparseMap>,
        archive: &mut Archive<R>,
    ) -> Result<u64, Problem> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // The setuid and setgid bits are set last: a change of the owner would clear them.
        let mode = Mode::from_raw_mode(member.mode & 0o777);
        let file = self.create(name, "create it", |dir| openat(dir, name, flags, mode))?;
        let bytes = archive.data_left();
        match sparse {
            None => archive.data(bytes, |data| write_all(&file, data))?,
            Some(map) => write_sparse(&file, map, archive)?,
        }
        if let Some(Owner { uid, gid }) = self.owner_to_set(member)? {
            fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(cannot("set its owner"))?;
        }
        let default_acl = self.parent()?.default_acl;
        if default_acl && self.purpose == Purpose::Layer {
            attributes::remove_inherited_acl(&file)?;
        }
        if default_acl || member.mode & 0o7000 != 0 {
            fchmod(&file, Mode::from_raw_mode(member.mode)).map_err(cannot("set its mode"))?;
        }
        attributes::set_of_file(&file, &member.xattrs)?;
        futimens(&file, &timestamps(member.mtime)).map_err(cannot("set its time"))?;
        Ok(bytes)
    }

    fn add_directory(&mut self, path: &[u8], name: &[u8], member: &Member) -> Result<(), Problem> {
        let parent = self.parent()?;
        let mode = Mode::from_raw_mode(member.mode & 0o777);
        let make = |dir: &OwnedFd| mkdirat(dir, name, mode);
        let fresh = match make(&parent.fd) {
            Ok(()) => true,
            Err(Errno::EXIST) => {
                let stat = statat(&parent.fd, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(cannot("inspect the existing entry"))?;
                let merged = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                if !merged {
                    self.create(name, "make the directory", make)?;
                }
                !merged
            }
            Err(errno) => return Err(cannot("make the directory")(errno)),
        };
        let parent = self.parent()?;
        let owner = if fresh { self.owner_to_set(member)? } else { Some(self.owner(member)) };
        if let Some(Owner { uid, gid }) = owner {
            set_owner(&parent.fd, name, uid, gid)?;
        }
        if fresh {
            self.remove_inherited_acls(parent, name)?;
        }
        if !fresh || parent.setgid || parent.default_acl || member.mode & 0o7000 != 0 {
            chmod_nofollow(&parent.fd, name, member.mode).map_err(cannot("set its mode"))?;
        }
        self.set_xattrs(&parent.fd, name, member)?;
        self.directories.push((path.to_vec(), member.mtime));
        Ok(())
    }

    fn set_root(&mut self, member: &Member) -> Result<(), Problem> {
        if member.kind != Kind::Directory {
            return Err(Problem::bad("it would replace the root directory"));
        }
        self.parent = None;
        let Owner { uid, gid } = self.owner(member);
        set_owner(&self.base, b".", uid, gid)?;
        chmod_nofollow(&self.base, b".", member.mode).map_err(cannot("set its mode"))?;
        self.set_xattrs(&self.base, b".", member)?;
        self.directories.push((Vec::new(), member.mtime));
        Ok(())
    }

    fn add_hard_link(&mut self, name: &[u8], target: &[u8]) -> Result<(), Problem> {
        let target = name::normalize(target)?;
        if target.is_empty() {
            return Err(Problem::bad("it is a hard link to a directory"));
        }
        let inode = |dir: &OwnedFd, name: &[u8]| {
            let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
            stat.map(|Stat { st_dev, st_ino, .. }| (st_dev, st_ino))
        };
        let (target_dir, target_name) = name::split(&target);
        let parent = self.parent()?;
        let other_dir = (parent.path != target_dir).then(|| self.open(target_dir)).transpose();
        let linked = other_dir.map_err(cannot("link it")).and_then(|other_dir| {
            let target_dir = other_dir.as_ref().map_or(&parent.fd, |dir| &dir.fd);
            let link = |dir: &OwnedFd| linkat(target_dir, target_name, dir, name, AtFlags::empty());
            match link(&parent.fd) {
                Ok(()) => Ok(false),
                Err(Errno::EXIST) => {
                    // Never remove the target of the link.
                    let ours = inode(&parent.fd, name).ok();
                    if ours.is_some() && ours == inode(target_dir, target_name).ok() {
                        return Ok(false);
                    }
                    self.replace(name, "link it", link).map(|()| true)
                }
                Err(errno) => Err(cannot("link it")(errno)),
            }
        });
        self.replaced |= matches!(linked, Ok(true));
        linked.map(drop).map_err(|problem| match problem {
            Problem::System {
                errno:
                    errno @ (Errno::NOENT | Errno::PERM | Errno::NOTDIR | Errno::XDEV | Errno::LOOP),
                ..
            } => {
                let target = name::shown(&target);
                Problem::bad(format!("its hard link to {target} is impossible: {errno}"))
            }
            problem => problem,
        })
    }

    fn add_node(
        &mut self,
        name: &[u8],
        member: &Member,
        kind: FileType,
        device: Option<&Device>,
    ) -> Result<(), Problem> {
        let number = device.map_or(0, |device| makedev(device.major, device.minor));
        let mode = Mode::from_raw_mode(member.mode & 0o777);
        self.create(name, "make the node", |dir| mknodat(dir, name, kind, mode, number))?;
        self.set_metadata(name, member)
    }

    /// Sets the metadata of a new entry that is neither a file nor a directory.
    fn set_metadata(&self, name: &[u8], member: &Member) -> Result<(), Problem> {
        let parent = self.parent()?;
        if let Some(Owner { uid, gid }) = self.owner_to_set(member)? {
            set_owner(&parent.fd, name, uid, gid)?;
        }
        if !matches!(member.kind, Kind::Symlink(_)) {
            self.remove_inherited_acls(parent, name)?;
            if parent.default_acl || member.mode & 0o7000 != 0 {
                chmod_nofollow(&parent.fd, name, member.mode).map_err(cannot("set its mode"))?;
            }
        }
        self.set_xattrs(&parent.fd, name, member)?;
        utimensat(&parent.fd, name, &timestamps(member.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(cannot("set its time"))
    }

    /// The owner that the member should have.
    fn owner(&self, member: &Member) -> Owner {
        match self.purpose {
            Purpose::Copy(Some(owner)) => owner,
            _ => Owner { uid: member.uid, gid: member.gid },
        }
    }

    /// The owner to set, unless a new entry in the parent has it already.
    fn owner_to_set(&self, member: &Member) -> Result<Option<Owner>, Problem> {
        let owner = self.owner(member);
        let is_default = owner == Owner { uid: 0, gid: 0 } && !self.parent()?.setgid;
        Ok((!is_default).then_some(owner))
    }

    /// Sets the extended attributes of an entry that is not a file.
    fn set_xattrs(&self, dir: &OwnedFd, name: &[u8], member: &Member) -> Result<(), Problem> {
        if member.xattrs.is_empty() {
            return Ok(());
        }
        within(dir, &self.base, || attributes::set(name, &member.xattrs))
            .map_err(cannot("enter its directory"))?
    }

    /// Removes inherited access control lists in a layer, which states the attributes of each entry. In a box,
    /// entries inherit as usual.
    fn remove_inherited_acls(&self, parent: &Parent, name: &[u8]) -> Result<(), Problem> {
        if !parent.default_acl || self.purpose != Purpose::Layer {
            return Ok(());
        }
        within(&parent.fd, &self.base, || attributes::remove_inherited_acls(name))
            .map_err(cannot("enter its directory"))?
    }
}

fn cannot_open(errno: Errno) -> Problem {
    match errno {
        Errno::XDEV => Problem::bad("a symlink leads its directory out of the destination"),
        errno => cannot("open its directory")(errno),
    }
}

/// Removes the entry that a copy replaces. As with `tar -x`, a directory must be empty.
fn remove_for_copy(dir: &OwnedFd, name: &[u8]) -> Result<(), Problem> {
    let removed = match unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => unlinkat(dir, name, AtFlags::REMOVEDIR),
        result => result,
    };
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::NOTEMPTY) => Err(Problem::bad(
            "it would replace a directory that is not empty; remove the directory first",
        )),
        Err(errno) => Err(cannot("remove the existing entry")(errno)),
    }
}

fn set_owner(dir: impl AsFd, name: &[u8], uid: u32, gid: u32) -> Result<(), Problem> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(cannot("set its owner"))
}

fn write_all(file: &OwnedFd, mut data: &[u8]) -> Result<(), Problem> {
    while !data.is_empty() {
        match write(file, data) {
            Ok(n) => data = data.get(n..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(cannot("write it")(errno)),
        }
    }
    Ok(())
}

/// Writes the pieces at their offsets, and leaves holes between them.
fn write_sparse<R: BufRead>(
    file: &OwnedFd,
    map: &SparseMap,
    archive: &mut Archive<R>,
) -> Result<(), Problem> {
    ftruncate(file, map.size).map_err(cannot("set its size"))?;
    for piece in &map.pieces {
        let mut offset = piece.offset;
        archive.data(piece.len, |mut data| {
            while !data.is_empty() {
                match pwrite(file, data, offset) {
                    Ok(n) => {
                        data = data.get(n..).unwrap_or_default();
                        offset += n as u64;
                    }
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(cannot("write it")(errno)),
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn or_dot(path: &[u8]) -> &[u8] {
    if path.is_empty() { b"." } else { path }
}

fn timestamps(time: Time) -> Timestamps {
    let time = Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}
