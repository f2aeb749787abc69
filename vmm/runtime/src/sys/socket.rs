//! Names of Unix sockets: in the abstract namespace, and in folders with long paths.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Listens on a Unix socket with this name in the abstract namespace. The kernel frees the name when the process exits.
#[cfg(target_os = "linux")]
pub(crate) fn listen_abstract(name: &[u8]) -> io::Result<UnixListener> {
    use std::os::linux::net::SocketAddrExt;
    UnixListener::bind_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name)?)
}

/// Only Linux has abstract names, and every nested host runs Linux.
#[cfg(not(target_os = "linux"))]
pub(crate) fn listen_abstract(_: &[u8]) -> io::Result<UnixListener> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The path of a socket in the folder `path`, which is open as `dir`. The address of a socket has at most 107 bytes, and
/// a home's path may have more, so the path goes through the descriptor.
#[cfg(target_os = "linux")]
pub(crate) fn socket_path(dir: &File, _path: &Path, name: &str) -> PathBuf {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()).into()
}

/// Without `/proc`, long paths fail.
#[cfg(not(target_os = "linux"))]
pub(crate) fn socket_path(_dir: &File, path: &Path, name: &str) -> PathBuf {
    path.join(name)
}
