//! Writing members to the disk.
//!
//! Every system call counts where the guest itself is emulated, so what can be known is not asked:
//! an entry is created as if nothing were there, its owner is set only if it is not already right,
//! and the directory that it goes into is opened once for all entries in a row.

use std::io::BufRead;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat,
    chownat, fchmod, fchown, fsetxattr, fstat, ftruncate, futimens, linkat, lsetxattr, makedev,
    mkdirat, mknodat, openat, readlinkat, statat, symlinkat, utimensat,
};
use rustix::io::{Errno, pwrite, write};

use super::archive::{Archive, Device, Kind, Member, Time};
use super::name;
use super::sparse::SparseMap;
use super::whiteout::{DirRef, Meaning, Own, list, remove, remove_content};
use super::{Problem, cannot};

/// As the kernel does, a chain of more symlinks than this is taken for a loop.
const MAX_SYMLINKS: usize = 40;

/// The disk while a layer is written to it.
pub(super) struct Tree {
    parent: Option<Parent>,
    /// None on an empty disk, where there is nothing below to be told from the layer's own.
    own: Option<Own>,
    /// Directories and their times, to be set once nothing is created in them any more.
    directories: Vec<(Vec<u8>, Time)>,
    /// The entry that is being added took the place of another.
    replaced: bool,
}

/// The directory that was written to last.
struct Parent {
    path: Vec<u8>,
    fd: OwnedFd,
    ino: u64,
    /// New files get the directory's group, new directories the bit as well.
    setgid: bool,
}

impl Parent {
    fn open(path: &[u8]) -> rustix::io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, or_dot(path), flags, Mode::empty())?;
        let stat = fstat(&fd)?;
        let setgid = Mode::from_raw_mode(stat.st_mode).contains(Mode::SGID);
        Ok(Self { path: path.to_vec(), fd, ino: stat.st_ino, setgid })
    }

    fn as_ref(&self) -> DirRef<'_> {
        DirRef { fd: self.fd.as_fd(), ino: self.ino }
    }

    /// Whether what is created here does not simply belong to root.
    fn needs_owner(&self, member: &Member) -> bool {
        self.setgid || member.uid != 0 || member.gid != 0
    }
}

impl Tree {
    /// The working directory must be the root directory.
    pub(super) fn new() -> rustix::io::Result<Self> {
        let root = Parent::open(b"")?;
        let _ = rustix::fs::unlinkat(&root.fd, "lost+found", AtFlags::REMOVEDIR);
        let own = if list(root.fd.as_fd())?.is_empty() { None } else { Some(Own::default()) };
        Ok(Self { parent: None, own, directories: Vec::new(), replaced: false })
    }

    /// Writes a member. Returns the bytes of content written.
    pub(super) fn add<R: BufRead>(
        &mut self,
        member: &Member,
        archive: &mut Archive<R>,
    ) -> Result<u64, Problem> {
        let path = name::normalize(&member.name)?;
        let meaning = Meaning::of(&path)?;
        let (dir, name) = name::split(&path);
        match meaning {
            Meaning::Entry => {}
            Meaning::Nothing => return Ok(0),
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
                self.set_metadata(&path, name, member)?;
            }
            Kind::Character(device) => {
                self.add_node(&path, name, member, FileType::CharacterDevice, Some(device))?;
            }
            Kind::Block(device) => {
                self.add_node(&path, name, member, FileType::BlockDevice, Some(device))?;
            }
            Kind::Fifo => self.add_node(&path, name, member, FileType::Fifo, None)?,
        }
        let ino = self.parent()?.ino;
        if let Some(own) = &mut self.own {
            own.insert(ino, name);
        }
        if std::mem::take(&mut self.replaced) {
            self.forget_below(&path, &member.kind);
            // Its path may have led through what was replaced.
            self.parent = None;
        }
        Ok(bytes)
    }

    /// Sets the times of the directories.
    pub(super) fn finish(self) {
        for (path, time) in self.directories {
            // One that a later entry replaced has none of its own any more.
            let _ = utimensat(CWD, or_dot(&path), &timestamps(time), AtFlags::SYMLINK_NOFOLLOW);
        }
    }

    fn parent(&self) -> Result<&Parent, Problem> {
        self.parent.as_ref().ok_or_else(|| Problem::bad("it has no directory"))
    }

    /// Changes what is in the parent, after which no directory is where it was known to be.
    fn with_parent(
        &mut self,
        change: impl FnOnce(DirRef<'_>, Option<&Own>) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let result = change(self.parent()?.as_ref(), self.own.as_ref());
        self.parent = None;
        result
    }

    /// Opens the directory `path`, if it is one.
    fn find_parent(&mut self, path: &[u8]) -> Result<bool, Problem> {
        if self.parent.as_ref().is_some_and(|parent| parent.path == path) {
            return Ok(true);
        }
        match Parent::open(path) {
            Ok(parent) => {
                self.parent = Some(parent);
                Ok(true)
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(errno) => Err(cannot("open its directory")(errno)),
        }
    }

    /// Opens the directory `path`, and makes it if it is not there.
    fn make_parent(&mut self, path: &[u8]) -> Result<(), Problem> {
        if self.find_parent(path)? {
            return Ok(());
        }
        self.make_directories(path, 0)?;
        match Parent::open(path) {
            Ok(parent) => {
                self.parent = Some(parent);
                Ok(())
            }
            Err(errno) => Err(cannot("open its directory")(errno)),
        }
    }

    /// Makes the missing directories of a path, and those that its dangling symlinks point to.
    fn make_directories(&mut self, path: &[u8], depth: usize) -> Result<(), Problem> {
        if depth > MAX_SYMLINKS {
            return Err(cannot("make its directory")(Errno::LOOP));
        }
        let mut made = Vec::new();
        for component in path.split(|b| *b == b'/') {
            let dir = made.clone();
            if !made.is_empty() {
                made.push(b'/');
            }
            made.extend_from_slice(component);
            match mkdirat(CWD, &made[..], Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    if let (Some(own), Ok(parent)) = (&mut self.own, Parent::open(&dir)) {
                        own.insert(parent.ino, component);
                    }
                }
                Err(Errno::EXIST) => {
                    let Ok(target) = readlinkat(CWD, &made[..], Vec::new()) else { continue };
                    if statat(CWD, &made[..], AtFlags::empty()).is_ok() {
                        continue;
                    }
                    let target = target.to_bytes();
                    let relative_to = if target.starts_with(b"/") { &b""[..] } else { &dir };
                    let target = name::resolve(relative_to, target);
                    self.make_directories(&target, depth + 1)?;
                }
                Err(errno) => return Err(cannot("make its directory")(errno)),
            }
        }
        Ok(())
    }

    /// Creates an entry, in the place of whatever has its name.
    fn create<T>(
        &mut self,
        name: &[u8],
        what: &'static str,
        create: impl Fn(&OwnedFd) -> rustix::io::Result<T>,
    ) -> Result<T, Problem> {
        let parent = self.parent()?;
        match create(&parent.fd) {
            Err(Errno::EXIST) => {}
            result => return result.map_err(cannot(what)),
        }
        remove(parent.as_ref(), name, None)?;
        let result = create(&parent.fd).map_err(cannot(what));
        self.replaced = true;
        result
    }

    /// After something was replaced: directories of that name have no times to be set any more.
    fn forget_below(&mut self, path: &[u8], kind: &Kind) {
        let is_gone = |dir: &[u8]| match dir.strip_prefix(path) {
            Some(b"") => *kind != Kind::Directory,
            Some(below) => below.starts_with(b"/"),
            None => false,
        };
        self.directories.retain(|(dir, _)| !is_gone(dir));
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
        // The setuid and setgid bits come last: changing the owner would take them away.
        let mode = Mode::from_raw_mode(member.mode & 0o777);
        let file = self.create(name, "create it", |dir| openat(dir, name, flags, mode))?;
        let bytes = archive.data_left();
        match sparse {
            None => archive.data(bytes, |data| write_all(&file, data))?,
            Some(map) => write_sparse(&file, map, archive)?,
        }
        if self.parent()?.needs_owner(member) {
            fchown(&file, Some(Uid::from_raw(member.uid)), Some(Gid::from_raw(member.gid)))
                .map_err(cannot("set its owner"))?;
        }
        if member.mode & 0o7000 != 0 {
            fchmod(&file, Mode::from_raw_mode(member.mode)).map_err(cannot("set its mode"))?;
        }
        for (name, value) in &member.xattrs {
            fsetxattr(&file, &name[..], value, XattrFlags::empty())
                .or_else(|errno| xattr_failed(errno, name, value))?;
        }
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
                    .map_err(cannot("look at what is in its place"))?;
                let merged = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                if !merged {
                    self.create(name, "make the directory", make)?;
                }
                !merged
            }
            Err(errno) => return Err(cannot("make the directory")(errno)),
        };
        let parent = self.parent()?;
        if !fresh || parent.needs_owner(member) {
            set_owner(&parent.fd, name, member)?;
        }
        if !fresh || parent.setgid || member.mode & 0o7000 != 0 {
            chmodat(&parent.fd, name, Mode::from_raw_mode(member.mode), AtFlags::empty())
                .map_err(cannot("set its mode"))?;
        }
        set_xattrs(path, member)?;
        self.directories.push((path.to_vec(), member.mtime));
        Ok(())
    }

    fn set_root(&mut self, member: &Member) -> Result<(), Problem> {
        if member.kind != Kind::Directory {
            return Err(Problem::bad("it would replace the root directory"));
        }
        self.parent = None;
        set_owner(CWD, b".", member)?;
        chmodat(CWD, ".", Mode::from_raw_mode(member.mode), AtFlags::empty())
            .map_err(cannot("set its mode"))?;
        set_xattrs(b"", member)?;
        self.directories.push((Vec::new(), member.mtime));
        Ok(())
    }

    fn add_hard_link(&mut self, name: &[u8], target: &[u8]) -> Result<(), Problem> {
        let target = name::normalize(target)?;
        if target.is_empty() {
            return Err(Problem::bad("it is a hard link to a directory"));
        }
        let inode = |dir, path: &[u8]| {
            statat(dir, path, AtFlags::SYMLINK_NOFOLLOW).map(|stat| (stat.st_dev, stat.st_ino))
        };
        let link = |dir: &OwnedFd| linkat(CWD, &target[..], dir, name, AtFlags::empty());
        let parent = self.parent()?;
        let failed = match link(&parent.fd) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {
                // Never remove what is to be linked.
                let ours = inode(parent.fd.as_fd(), name).ok();
                if ours.is_some() && ours == inode(CWD, &target).ok() {
                    return Ok(());
                }
                self.create(name, "link it", link).err()
            }
            Err(errno) => Some(cannot("link it")(errno)),
        };
        failed.map_or(Ok(()), |problem| match problem {
            Problem::System {
                errno: errno @ (Errno::NOENT | Errno::PERM | Errno::NOTDIR), ..
            } => {
                let target = name::shown(&target);
                Err(Problem::bad(format!("its hard link to {target} is impossible: {errno}")))
            }
            problem => Err(problem),
        })
    }

    fn add_node(
        &mut self,
        path: &[u8],
        name: &[u8],
        member: &Member,
        kind: FileType,
        device: Option<&Device>,
    ) -> Result<(), Problem> {
        let number = device.map_or(0, |device| makedev(device.major, device.minor));
        let mode = Mode::from_raw_mode(member.mode & 0o777);
        self.create(name, "make the node", |dir| mknodat(dir, name, kind, mode, number))?;
        self.set_metadata(path, name, member)
    }

    /// Of a new entry that is neither a file nor a directory.
    fn set_metadata(&self, path: &[u8], name: &[u8], member: &Member) -> Result<(), Problem> {
        let parent = self.parent()?;
        if parent.needs_owner(member) {
            set_owner(&parent.fd, name, member)?;
        }
        if member.mode & 0o7000 != 0 && !matches!(member.kind, Kind::Symlink(_)) {
            chmodat(&parent.fd, name, Mode::from_raw_mode(member.mode), AtFlags::empty())
                .map_err(cannot("set its mode"))?;
        }
        set_xattrs(path, member)?;
        utimensat(&parent.fd, name, &timestamps(member.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(cannot("set its time"))
    }
}

fn set_owner(dir: impl AsFd, name: &[u8], member: &Member) -> Result<(), Problem> {
    let (uid, gid) = (Uid::from_raw(member.uid), Gid::from_raw(member.gid));
    chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(cannot("set its owner"))
}

fn set_xattrs(path: &[u8], member: &Member) -> Result<(), Problem> {
    for (name, value) in &member.xattrs {
        lsetxattr(or_dot(path), &name[..], value, XattrFlags::empty())
            .or_else(|errno| xattr_failed(errno, name, value))?;
    }
    Ok(())
}

/// The file system refuses an attribute: because of its kind, or because it is too large.
fn xattr_failed(errno: Errno, name: &[u8], value: &[u8]) -> Result<(), Problem> {
    match errno {
        // `user.` on a symlink or a device; engines go on without it.
        Errno::OPNOTSUPP | Errno::PERM if name.starts_with(b"user.") => Ok(()),
        Errno::NOSPC if disk_is_full() => Err(Problem::Full("set its extended attributes")),
        errno => Err(Problem::bad(format!(
            "its extended attribute {} of {} bytes cannot be stored: {}",
            name::shown(name),
            value.len(),
            // What ext4 says where the attributes of one file do not fit together.
            if errno == Errno::NOSPC { Errno::TOOBIG } else { errno }
        ))),
    }
}

fn disk_is_full() -> bool {
    rustix::fs::statvfs(".").is_ok_and(|fs| fs.f_bavail == 0)
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

/// Writes the pieces where they belong and leaves the rest to be holes.
fn write_sparse<R: BufRead>(
    file: &OwnedFd,
    map: &SparseMap,
    archive: &mut Archive<R>,
) -> Result<(), Problem> {
    ftruncate(file, map.size).map_err(cannot("give it its size"))?;
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
