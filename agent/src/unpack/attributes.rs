//! Extended attributes and access control lists of what is unpacked.
//!
//! Most of these calls take a path. Where a symlink could lead it astray, it is a path of one
//! component, and the thread's working directory is for that long the directory that it is in.

use std::os::fd::{AsFd, OwnedFd};

use boxlite_proto::archive::name;
use rustix::fs::{XattrFlags, fremovexattr, fsetxattr, getxattr, lremovexattr, lsetxattr};
use rustix::io::{self, Errno};
use rustix::process::fchdir;

use super::{Problem, cannot};

const ACCESS_ACL: &str = "system.posix_acl_access";
const DEFAULT_ACL: &str = "system.posix_acl_default";

/// Extended attributes: names and values.
type Attributes = [(Vec<u8>, Vec<u8>)];

/// Whether the directory has a default access control list, which what is created in it gets.
pub(super) fn has_default_acl(path: &[u8]) -> io::Result<bool> {
    match getxattr(path, DEFAULT_ACL, &mut [0_u8; 1]) {
        // It is longer than that.
        Ok(_) | Err(Errno::RANGE) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Runs `f` with `dir` as the working directory, and goes back to `base`.
pub(super) fn within<T>(dir: &OwnedFd, base: &OwnedFd, f: impl FnOnce() -> T) -> Result<T, Errno> {
    fchdir(dir)?;
    let result = f();
    fchdir(base)?;
    Ok(result)
}

/// Takes from a file what it got of its directory's default access control list.
pub(super) fn remove_inherited_acl(file: impl AsFd) -> Result<(), Problem> {
    removed(fremovexattr(file, ACCESS_ACL))
}

/// The same for what has this name in the working directory.
pub(super) fn remove_inherited_acls(name: &[u8]) -> Result<(), Problem> {
    removed(lremovexattr(name, ACCESS_ACL))?;
    removed(lremovexattr(name, DEFAULT_ACL))
}

fn removed(result: io::Result<()>) -> Result<(), Problem> {
    match result {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(errno) => Err(cannot("take an inherited access control list from it")(errno)),
    }
}

/// Sets the extended attributes of a file.
pub(super) fn set_of_file(file: impl AsFd, attributes: &Attributes) -> Result<(), Problem> {
    attributes.iter().try_for_each(|(name, value)| {
        fsetxattr(&file, &name[..], value, XattrFlags::empty())
            .or_else(|errno| failed(errno, name, value))
    })
}

/// Sets those of what has this name in the working directory.
pub(super) fn set(entry: &[u8], attributes: &Attributes) -> Result<(), Problem> {
    attributes.iter().try_for_each(|(name, value)| {
        lsetxattr(entry, &name[..], value, XattrFlags::empty())
            .or_else(|errno| failed(errno, name, value))
    })
}

/// The file system refuses an attribute: because of its kind, or because it is too large.
///
/// As with other engines, what the file system has no place for is left out: a name space of
/// another system (`com.apple.quarantine`) or of a security module that is not there, and `user.`
/// on a symlink or a device.
fn failed(errno: Errno, name: &[u8], value: &[u8]) -> Result<(), Problem> {
    match errno {
        Errno::OPNOTSUPP if name.contains(&b'.') => Ok(()),
        Errno::PERM if name.starts_with(b"user.") => Ok(()),
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
