//! Copies of descriptors in flight, for kernels that drop them otherwise.
//!
//! When any Unix socket is closed, XNU (`unp_gc` in bsd/kern/uipc_usrreq.c) looks for sockets in flight that no process
//! has open. It only follows messages of sockets that are in flight themselves, so it also finds those in the buffer of
//! an ordinary socket, and shuts them down before they are received. Hence the sender keeps copies until the receiver
//! has its own.
//!
//! The receiver acknowledges by closing the *receipt*: the write end of a pipe, sent as the last descriptor. XNU shuts
//! down sockets only, so a pipe survives the flight without a copy, and is closed as well when the receiver exits.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

/// The least number of a copy: none of the standard streams.
const LEAST: i32 = 3;

/// Has `send` send `files` and a receipt. Copies of the files stay open until the receiver acknowledges, on a
/// thread that ends then.
pub(super) fn send<T>(
    files: &[BorrowedFd<'_>],
    send: impl FnOnce(&[BorrowedFd<'_>]) -> io::Result<T>,
) -> io::Result<T> {
    let copies: Vec<OwnedFd> = files
        .iter()
        .map(|file| fcntl_dupfd_cloexec(file, LEAST))
        .collect::<rustix::io::Result<_>>()?;
    let (acknowledged, receipt) = rustix::pipe::pipe()?;
    for end in [&acknowledged, &receipt] {
        fcntl_setfd(end, FdFlags::CLOEXEC)?;
    }
    // If sending fails, the receipt is closed here.
    std::thread::Builder::new()
        .name("in-flight".into())
        .spawn(move || keep(copies, acknowledged))?;
    let mut all = files.to_vec();
    all.push(receipt.as_fd());
    send(&all)
}

/// Keeps `copies` open until the other end of a pipe is closed.
fn keep(copies: Vec<OwnedFd>, acknowledged: OwnedFd) {
    // It ends at the end of the file; after another error, too, as nothing else says when the receiver is done.
    let _ = std::fs::File::from(acknowledged).read_exact(&mut [0]);
    drop(copies);
}

/// Acknowledges the descriptors of a message: closes the receipt, the last of them.
pub(super) fn acknowledge(files: &mut Vec<OwnedFd>) {
    drop(files.pop());
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    /// Reads to the end of a stream, which no copy of its other end may keep open.
    fn end(mut stream: UnixStream) {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }

    fn is_open(stream: &UnixStream) -> bool {
        stream.set_nonblocking(true).unwrap();
        let read = (&*stream).read(&mut [0]);
        stream.set_nonblocking(false).unwrap();
        read.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
    }

    #[test]
    fn copies_are_kept_until_the_receiver_has_its_own() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut received = send(&[theirs.as_fd()], |files| {
            assert_eq!(files.len(), 2);
            Ok(files.iter().map(|file| file.try_clone_to_owned().unwrap()).collect::<Vec<_>>())
        })
        .unwrap();
        drop(theirs);
        let receipt = received.pop().unwrap();
        drop(received);
        assert!(is_open(&ours), "the copy is open");
        let mut received = vec![receipt];
        acknowledge(&mut received);
        assert!(received.is_empty());
        end(ours);
    }

    #[test]
    fn no_copy_is_left_of_what_is_not_sent() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let failed = send(&[theirs.as_fd()], |_| Err::<(), _>(io::ErrorKind::BrokenPipe.into()));
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        drop(theirs);
        end(ours);
    }
}
