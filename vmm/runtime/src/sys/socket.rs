//! Unix sockets without a file.

use std::io;
use std::os::unix::net::UnixListener;

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
