//! Sockets of the family `AF_VSOCK`, whose addresses rustix lacks.

use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io;
use rustix::ioctl::{Getter, ioctl, opcode};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Limit on connections that wait to be accepted; the kernel refuses more. As many as may arrive at once:
/// the agent may start a command between two accepts.
const BACKLOG: i32 = 1024;

const GET_LOCAL_CID: rustix::ioctl::Opcode = opcode::none(7, 0xb9);

/// The host's context ID.
pub(crate) const HOST: u32 = libc::VMADDR_CID_HOST;

/// Whether this kernel has a vsock device, which gives the guest a context ID of its own.
pub(crate) fn is_available() -> bool {
    let Ok(device) =
        rustix::fs::open("/dev/vsock", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    else {
        return false;
    };
    // SAFETY: IOCTL_VM_SOCKETS_GET_LOCAL_CID writes one u32.
    let cid = unsafe { ioctl(device, Getter::<GET_LOCAL_CID, u32>::new()) };
    cid.is_ok_and(|cid| cid > HOST && cid != libc::VMADDR_CID_ANY)
}

/// A non-blocking socket that listens on `port`.
pub(crate) fn listen(port: u32) -> io::Result<OwnedFd> {
    let socket = stream_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    let address = address(libc::VMADDR_CID_ANY, port);
    // SAFETY: the address is a sockaddr_vm, and its length is passed.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), LEN) })?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// A blocking connection to `port` of `cid`.
pub(crate) fn connect(cid: u32, port: u32) -> io::Result<OwnedFd> {
    let socket = stream_socket(SocketFlags::CLOEXEC)?;
    let address = address(cid, port);
    // SAFETY: the address is a sockaddr_vm, and its length is passed.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), LEN) })?;
    Ok(socket)
}

/// Accepts the next connection of a listener, and returns it, non-blocking, with its peer.
pub(crate) fn accept(listener: impl AsFd) -> io::Result<(OwnedFd, Peer)> {
    // SAFETY: all of sockaddr_vm may be zero.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    let mut len = LEN;
    // SAFETY: the kernel writes at most `len` bytes of the address.
    let fd = unsafe {
        libc::accept4(
            listener.as_fd().as_raw_fd(),
            (&raw mut address).cast(),
            &raw mut len,
            libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
        )
    };
    if fd < 0 {
        return Err(last_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nothing else owns it.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, Peer::at(&address)))
}

/// The peer of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// The host.
    Host,
    /// Another peer, with this context ID: a process of this guest, or a nested VM.
    Cid(u32),
    /// Not a vsock connection: the listener has another family.
    OtherFamily,
}

impl Peer {
    fn at(address: &libc::sockaddr_vm) -> Self {
        match (i32::from(address.svm_family), address.svm_cid) {
            (libc::AF_VSOCK, HOST) => Self::Host,
            (libc::AF_VSOCK, cid) => Self::Cid(cid),
            _ => Self::OtherFamily,
        }
    }
}

const LEN: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

fn stream_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)
}

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: all of sockaddr_vm may be zero.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(last_error()),
    }
}

fn last_error() -> io::Errno {
    io::Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(io::Errno::INVAL)
}

#[cfg(test)]
mod tests;
