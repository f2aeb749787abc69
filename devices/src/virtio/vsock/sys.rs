//! Socket calls that read and write guest memory in place.
//!
//! The standard library's vectored I/O takes Rust slices, and guest memory must not be one: the
//! guest may change it at any time.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;

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
    checked(|| unsafe {
        libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    })
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
