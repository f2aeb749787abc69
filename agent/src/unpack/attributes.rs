//! Sets extended attributes and access control lists.
//!
//! Most of these system calls take a path. Where a symlink could redirect the path, it has one component only,
//! and its directory is the thread's working directory for the duration of the call.

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

/// Whether the directory has a default access control list, which new entries in it inherit.
pub(super) fn has_default_acl(path: &[u8]) -> io::Result<bool> {
    match getxattr(path, DEFAULT_ACL, &mut [0_u8; 1]) {
        // The list is longer than one byte.
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

/// Removes the access control list that a file has inherited from its directory.
pub(super) fn remove_inherited_acl(file: impl AsFd) -> Result<(), Problem> {
    removed(fremovexattr(file, ACCESS_ACL))
}

/// Removes the access control lists that an entry of the working directory has inherited.
pub(super) fn remove_inherited_acls(name: &[u8]) -> Result<(), Problem> {
    removed(lremovexattr(name, ACCESS_ACL))?;
    removed(lremovexattr(name, DEFAULT_ACL))
}

fn removed(result: io::Result<()>) -> Result<(), Problem> {
    match result {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(errno) => Err(cannot("remove its inherited access control list")(errno)),
    }
}

/// Sets the extended attributes of a file.
pub(super) fn set_of_file(file: impl AsFd, attributes: &Attributes) -> Result<(), Problem> {
    attributes.iter().try_for_each(|(name, value)| {
        fsetxattr(&file, &name[..], value, XattrFlags::empty())
            .or_else(|errno| failed(errno, name, value))
    })
}

/// Sets the extended attributes of an entry of the working directory.
pub(super) fn set(entry: &[u8], attributes: &Attributes) -> Result<(), Problem> {
    attributes.iter().try_for_each(|(name, value)| {
        lsetxattr(entry, &name[..], value, XattrFlags::empty())
            .or_else(|errno| failed(errno, name, value))
    })
}

/// Handles an attribute that the file system refuses, because of its kind or its size.
///
/// As with other engines, an attribute that the file system does not support is left out: a namespace of
/// another system (`com.apple.quarantine`) or of an absent security module, and `user.` on a symlink or a
/// device.
fn failed(errno: Errno, name: &[u8], value: &[u8]) -> Result<(), Problem> {
    match errno {
        Errno::OPNOTSUPP if name.contains(&b'.') => Ok(()),
        Errno::PERM if name.starts_with(b"user.") => Ok(()),
        Errno::NOSPC if disk_is_full() => Err(Problem::Full("set its extended attributes")),
        errno => Err(Problem::bad(format!(
            "its extended attribute {} of {} bytes cannot be stored: {}",
            name::shown(name),
            value.len(),
            // Ext4 returns ENOSPC if the attributes of one file do not fit together.
            if errno == Errno::NOSPC { Errno::TOOBIG } else { errno }
        ))),
    }
}

fn disk_is_full() -> bool {
    rustix::fs::statvfs(".").is_ok_and(|fs| fs.f_bavail == 0)
}
