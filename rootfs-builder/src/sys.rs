//! Leaf calls to the operating system.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, SeekFrom};

/// Bytes that an unprivileged user may still write to the file system of `path`.
pub(crate) fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// A lock on an open file description: it goes wherever the descriptor goes, other processes
/// included, and ends with its last copy, however the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lock {
    Shared,
    Exclusive,
}

/// Locks; waits while others hold it.
pub(crate) fn lock(file: &File, lock: Lock) -> io::Result<()> {
    let operation = match lock {
        Lock::Shared => FlockOperation::LockShared,
        Lock::Exclusive => FlockOperation::LockExclusive,
    };
    Ok(rustix::io::retry_on_intr(|| rustix::fs::flock(file, operation))?)
}

/// Locks if nobody is in the way; returns whether it did.
pub(crate) fn try_lock(file: &File, lock: Lock) -> io::Result<bool> {
    let operation = match lock {
        Lock::Shared => FlockOperation::NonBlockingLockShared,
        Lock::Exclusive => FlockOperation::NonBlockingLockExclusive,
    };
    match rustix::io::retry_on_intr(|| rustix::fs::flock(file, operation)) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What `lstat` says, in the same types everywhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeStat {
    pub(crate) kind: FileType,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
    /// Device numbers, (major, minor), where they can be told.
    pub(crate) device: Option<(u32, u32)>,
}

/// `lstat` of a name in an open directory.
#[allow(clippy::unnecessary_cast, clippy::useless_conversion)] // field types differ between systems
pub(crate) fn stat_at(dir: impl AsFd, name: &CStr) -> io::Result<NodeStat> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(NodeStat {
        kind: FileType::from_raw_mode(stat.st_mode),
        mode: u32::from(stat.st_mode) & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: stat.st_mtime as i64,
        device: device_numbers(&stat),
    })
}

#[cfg(target_os = "linux")]
fn device_numbers(stat: &rustix::fs::Stat) -> Option<(u32, u32)> {
    Some((rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)))
}

/// Elsewhere device numbers mean other devices than in a Linux guest.
#[cfg(not(target_os = "linux"))]
fn device_numbers(_: &rustix::fs::Stat) -> Option<(u32, u32)> {
    None
}

/// Opens a name in an open directory for reading, never through a symbolic link and never
/// waiting for the other end of a FIFO.
pub(crate) fn open_at(dir: impl AsFd, name: &CStr) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?))
}

/// Whether a name that was there is gone, or has become a symbolic link.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::LOOP))
}

/// The target of a symbolic link in an open directory.
pub(crate) fn read_link_at(dir: impl AsFd, name: &CStr) -> io::Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes())
}

/// The names in an open directory, without `.` and `..`, in no particular order.
pub(crate) fn names_in(dir: &File) -> io::Result<Vec<std::ffi::CString>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// The next stretch of data at or after `from`, as (start, end); none behind the last.
pub(crate) fn next_data(file: &File, from: u64) -> io::Result<Option<(u64, u64)>> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(start) => start,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(Some((start, rustix::fs::seek(file, SeekFrom::Hole(start))?)))
}

/// The extended attributes of an open file whose names `wanted` likes, sorted by name. None where
/// the file system has no such thing.
pub(crate) fn xattrs(
    file: &File,
    wanted: impl Fn(&[u8]) -> bool,
) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    // The most that Linux allows: XATTR_LIST_MAX, XATTR_SIZE_MAX.
    const LIMIT: usize = 64 << 10;
    let mut list = vec![0u8; LIMIT];
    match rustix::fs::flistxattr(file, &mut list[..]) {
        Ok(count) => list.truncate(count),
        Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    }
    let mut found = Vec::new();
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty() && wanted(name)) {
        let mut value = vec![0u8; LIMIT];
        match rustix::fs::fgetxattr(file, name, &mut value[..]) {
            Ok(count) => {
                value.truncate(count);
                found.push((name.to_owned(), value));
            }
            // Removed since it was listed.
            Err(rustix::io::Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    found.sort();
    Ok(found)
}

/// The user whose files these are.
pub(crate) fn effective_ids() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// Opens a directory for walking.
pub(crate) fn open_dir(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

/// Opens a regular file for reading; symbolic links are followed, FIFOs and devices refused
/// without waiting for them.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
    }
}
