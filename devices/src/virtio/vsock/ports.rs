//! Ports of the host, which the guest can connect to.

use std::ffi::OsString;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::net::SocketAddrUnix;

use super::sys;

/// Connects the guest to servers of the host's ports.
pub trait HostPorts: Send + Sync + 'static {
    /// Connects to the server of `port`. An error refuses the guest's connection.
    ///
    /// Called on the device's event loop, so it must not block.
    fn connect(&self, port: u32) -> io::Result<UnixStream>;
}

impl<F: Fn(u32) -> io::Result<UnixStream> + Send + Sync + 'static> HostPorts for F {
    fn connect(&self, port: u32) -> io::Result<UnixStream> {
        self(port)
    }
}

/// Host ports as Unix sockets in the file system: port 52 of `/run/box/vsock.sock` is
/// `/run/box/vsock.sock_52`.
#[derive(Clone, Debug)]
pub struct SocketPorts {
    base: PathBuf,
}

impl SocketPorts {
    /// The ports whose sockets are at `base`, each with its number appended.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        Self { base: base.into() }
    }

    /// The path of the socket that serves `port`.
    pub fn path(&self, port: u32) -> PathBuf {
        let mut path = OsString::from(&self.base);
        path.push(format!("_{port}"));
        path.into()
    }
}

impl HostPorts for SocketPorts {
    /// Fails if the server's backlog of connections is full, and never waits for room in it.
    fn connect(&self, port: u32) -> io::Result<UnixStream> {
        sys::connect_to(&SocketAddrUnix::new(self.path(port))?)
    }
}
