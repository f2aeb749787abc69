//! The path of an open file.

use std::fs::File;
use std::path::PathBuf;

/// A path that leads to an open file, whatever its name is.
#[cfg(target_os = "linux")]
pub(crate) fn path_of(file: &File) -> Option<PathBuf> {
    use std::os::fd::AsRawFd;
    Some(format!("/proc/self/fd/{}", file.as_raw_fd()).into())
}

/// The path that an open file has now (`F_GETPATH`).
#[cfg(not(target_os = "linux"))]
pub(crate) fn path_of(file: &File) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let path = rustix::fs::getpath(file).ok()?;
    Some(std::ffi::OsString::from_vec(path.into_bytes()).into())
}
