//! Bytes with file descriptors on a Unix socket (`SCM_RIGHTS`), which operating systems treat differently.

#[cfg(any(test, not(target_os = "linux")))]
mod receipt;

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::control::MAX_FILES;

/// The most descriptors of a call: those of a message, and a receipt.
const MAX_SENT: usize = MAX_FILES + 1;

pub(crate) use system::{receive, send};

#[cfg(target_os = "linux")]
mod system {
    use super::*;

    /// Sends the first of `bytes` with `files`; returns their number. Raises no signal.
    pub(crate) fn send(
        to: &UnixStream,
        bytes: &[u8],
        files: &[BorrowedFd<'_>],
    ) -> io::Result<usize> {
        send_with(to, bytes, files, SendFlags::NOSIGNAL)
    }

    /// Receives bytes, none at the end of the stream, and the descriptors with them, which are closed on exec.
    pub(crate) fn receive(
        from: &UnixStream,
        buffer: &mut [u8],
    ) -> io::Result<(usize, Vec<OwnedFd>)> {
        receive_with(from, buffer, RecvFlags::CMSG_CLOEXEC)
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use rustix::io::{Errno, FdFlags, fcntl_setfd};
    use rustix::net::sockopt::set_socket_nosigpipe;

    use super::*;

    /// Sends the first of `bytes` with `files`; returns their number. Raises no signal.
    pub(crate) fn send(
        to: &UnixStream,
        bytes: &[u8],
        files: &[BorrowedFd<'_>],
    ) -> io::Result<usize> {
        // No option of a socket can be set once its peer has closed it.
        set_socket_nosigpipe(to, true)
            .map_err(|e| if e == Errno::INVAL { Errno::PIPE } else { e })?;
        let send = |files: &[BorrowedFd<'_>]| send_with(to, bytes, files, SendFlags::empty());
        if files.is_empty() { send(files) } else { receipt::send(files, send) }
    }

    /// Receives bytes, none at the end of the stream, and the descriptors with them, which are closed on exec: as soon
    /// as possible, since no flag does it in the same call.
    pub(crate) fn receive(
        from: &UnixStream,
        buffer: &mut [u8],
    ) -> io::Result<(usize, Vec<OwnedFd>)> {
        let (count, mut files) = receive_with(from, buffer, RecvFlags::empty())?;
        for file in &files {
            fcntl_setfd(file, FdFlags::CLOEXEC)?;
        }
        receipt::acknowledge(&mut files);
        Ok((count, files))
    }
}

fn send_with(
    to: &UnixStream,
    bytes: &[u8],
    files: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SENT))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("too many descriptors"));
    }
    let send = || sendmsg(to, &[IoSlice::new(bytes)], &mut ancillary, flags);
    Ok(rustix::io::retry_on_intr(send)?)
}

fn receive_with(
    from: &UnixStream,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SENT))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut buffers = [IoSliceMut::new(buffer)];
        recvmsg(from, &mut buffers, &mut ancillary, flags)
    })?;
    let files = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    Ok((received.bytes, files.flatten().collect()))
}
