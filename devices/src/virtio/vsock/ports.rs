//! Where connections come from and go to on the host.

use std::ffi::OsString;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Answers the guest's connections to ports of the host.
pub trait HostPorts: Send + Sync + 'static {
    /// A stream to what serves `port`. An error refuses the connection.
    ///
    /// It is called on the device's event loop, so it must not block.
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
    /// The ports beside the socket at `base`.
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
    /// Fails with `WouldBlock` where the server's backlog of connections is full.
    fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let address = SocketAddrUnix::new(self.path(port))?;
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            None,
        )?;
        connect(&socket, &address)?;
        Ok(socket.into())
    }
}
