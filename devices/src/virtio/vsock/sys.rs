//! Socket calls that read and write guest memory in place, and what the operating systems do differently about
//! sockets.
//!
//! The standard library's vectored I/O takes Rust slices, and guest memory must not be one: the
//! guest may change it at any time.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{SendFlags, SocketAddrUnix, connect};
use vm_memory::VolatileSlice;

/// Sends what a socket has room for, without SIGPIPE. macOS has no such flag: see [`prepare`].
#[cfg(target_os = "linux")]
pub(super) const SEND: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
/// Sends what a socket has room for.
#[cfg(not(target_os = "linux"))]
pub(super) const SEND: SendFlags = SendFlags::DONTWAIT;

/// Makes a stream ready for [`send`]: where no flag of a call does, writes to a closed peer must not raise SIGPIPE.
#[cfg(target_os = "linux")]
pub(super) const fn prepare(_stream: &UnixStream) {}

/// Makes a stream ready for [`send`]: where no flag of a call does, writes to a closed peer must not raise SIGPIPE.
#[cfg(not(target_os = "linux"))]
pub(super) fn prepare(stream: &UnixStream) {
    // macOS refuses this for a stream whose peer has closed. The runtime of Rust's standard library ignores SIGPIPE
    // for the whole process; this is for programs that want the signal.
    let _ = rustix::net::sockopt::set_socket_nosigpipe(stream, true);
}

/// A stream that is connected to a socket in the file system. Never blocks: it fails if the server's backlog of
/// connections is full.
#[cfg(target_os = "linux")]
pub(super) fn connect_to(address: &SocketAddrUnix) -> io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, address)?;
    Ok(socket.into())
}

/// A stream that is connected to a socket in the file system. Never blocks: it fails if the server's backlog of
/// connections is full.
#[cfg(not(target_os = "linux"))]
pub(super) fn connect_to(address: &SocketAddrUnix) -> io::Result<UnixStream> {
    use rustix::io::{FdFlags, fcntl_setfd};
    use rustix::net::{AddressFamily, SocketType, socket};
    // There is a moment in which another thread's `fork` and `exec` inherit the socket; this process starts none.
    let socket = UnixStream::from(socket(AddressFamily::UNIX, SocketType::STREAM, None)?);
    fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    socket.set_nonblocking(true)?;
    connect(&socket, address)?;
    Ok(socket)
}

/// The most pieces of a call (`UIO_MAXIOV`).
const MAX_PIECES: usize = 1024;

/// Sends as many bytes as the socket has room for. Returns their number. Never blocks, never raises
/// SIGPIPE.
pub(super) fn send<'m>(
    socket: BorrowedFd<'_>,
    pieces: impl Iterator<Item = VolatileSlice<'m>>,
) -> io::Result<usize> {
    let mut pieces = pieces.take(MAX_PIECES).map(io_vec).collect::<Vec<_>>();
    let message = message(&mut pieces);
    // SAFETY: `message` points to `pieces`, which point into guest memory: `'m` keeps that mapped
    // during the call, and the kernel only reads it.
    checked(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &message, SEND.bits() as libc::c_int) })
}

/// Receives the bytes that the socket holds, as many as fit into `pieces`. Returns their number, 0 at
/// the end of the stream. Never blocks.
pub(super) fn receive<'m>(
    socket: BorrowedFd<'_>,
    pieces: impl Iterator<Item = VolatileSlice<'m>>,
) -> io::Result<usize> {
    let mut pieces = pieces.take(MAX_PIECES).map(io_vec).collect::<Vec<_>>();
    let mut message = message(&mut pieces);
    // SAFETY: `message` points to `pieces`, which point into guest memory: `'m` keeps that mapped
    // during the call. Guest memory has no Rust references into it that a write could invalidate.
    checked(|| unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) })
}

fn io_vec(slice: VolatileSlice<'_>) -> libc::iovec {
    libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() }
}

fn message(pieces: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: all zeroes is a valid `msghdr`: null pointers with zero lengths.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = pieces.as_mut_ptr();
    message.msg_iovlen = pieces.len() as _;
    message
}

fn checked(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
    }
}
