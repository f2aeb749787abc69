//! The file at a path.

use std::ffi::CString;

use boxlite_proto::guest::{FileKind, FileStat, Stat};
use boxlite_proto::message::{Failure, FailureKind};
use rustix::fs::{AtFlags, CWD, FileType, readlinkat, statat};
use rustix::io::Errno;

use boxlite_proto::archive::name::shown;

/// Reads the metadata of a file.
pub(crate) fn stat(request: &Stat) -> Result<FileStat, Failure> {
    let failed = |errno| path_failure("inspect", &request.path, errno);
    let path = from_root(&request.path).map_err(failed)?;
    let flags = if request.follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
    let stat = statat(CWD, &path, flags).map_err(failed)?;
    let kind = kind(FileType::from_raw_mode(stat.st_mode));
    let link_target = match kind {
        FileKind::Symlink => {
            readlinkat(CWD, &path, Vec::new()).map_err(failed)?.to_bytes().to_vec()
        }
        _ => Vec::new(),
    };
    Ok(FileStat {
        kind,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: stat.st_mtime,
        mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        link_target,
    })
}

fn kind(kind: FileType) -> FileKind {
    match kind {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        FileType::CharacterDevice => FileKind::Character,
        FileType::BlockDevice => FileKind::Block,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::Unknown => FileKind::Other,
    }
}

/// A path in a request, for a system call. A relative path starts at the root, too.
pub(crate) fn from_root(path: &[u8]) -> rustix::io::Result<CString> {
    CString::new([b"/", path].concat()).map_err(|_| Errno::INVAL)
}

/// The failure of an operation on a path in a request.
pub(crate) fn path_failure(what: &str, path: &[u8], errno: Errno) -> Failure {
    let (kind, why) = match errno {
        Errno::NOENT => (FailureKind::NoSuchPath, "no such file or directory".to_owned()),
        Errno::NOTDIR => (FailureKind::NotADirectory, "not a directory".to_owned()),
        Errno::NOSPC | Errno::DQUOT => (FailureKind::DiskFull, "the disk is full".to_owned()),
        Errno::INVAL if path.contains(&0) => (FailureKind::Other, "it contains a NUL".to_owned()),
        errno => (FailureKind::Other, errno.to_string()),
    };
    Failure { kind, message: format!("cannot {what} {}: {why}", shown(path)) }
}

#[cfg(test)]
mod tests;
