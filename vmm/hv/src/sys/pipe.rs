//! An event by a pipe: signalled while there are bytes in it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, FdFlags, fcntl_setfd, ioctl_fionbio, read, write};
use rustix::pipe::pipe;

/// A non-blocking event.
#[derive(Debug)]
pub(crate) struct Event {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Event {
    /// There is a moment in which another thread's `fork` and `exec` inherit the descriptors: macOS has no `pipe2`.
    pub(crate) fn new() -> io::Result<Self> {
        let (reader, writer) = pipe()?;
        for end in [&reader, &writer] {
            fcntl_setfd(end, FdFlags::CLOEXEC)?;
            ioctl_fionbio(end, true)?;
        }
        Ok(Self { reader, writer })
    }

    pub(crate) fn signal(&self) -> io::Result<()> {
        match write(&self.writer, &[1]) {
            // The pipe is full: the event is signalled already.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    pub(crate) fn clear(&self) -> io::Result<bool> {
        // Where more bytes are left, the event is found signalled once more, which is harmless; another thread that
        // signals all the time cannot keep this one here. Larger than this, the buffer would cost more than the call.
        let mut bytes = [0; 1 << 10];
        match read(&self.reader, &mut bytes) {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { reader: self.reader.try_clone()?, writer: self.writer.try_clone()? })
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_signalled_until_it_is_cleared() {
        let event = Event::new().unwrap();
        let second = event.try_clone().unwrap();
        assert!(!event.clear().unwrap());
        event.signal().unwrap();
        second.signal().unwrap();
        assert!(second.clear().unwrap());
        assert!(!event.clear().unwrap());
    }

    #[test]
    fn a_full_pipe_is_signalled() {
        let event = Event::new().unwrap();
        for _ in 0..100_000 {
            event.signal().unwrap();
        }
        while event.clear().unwrap() {}
        event.signal().unwrap();
        assert!(event.clear().unwrap());
    }
}
