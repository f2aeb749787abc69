//! A Unix socket of frames that never blocks. What waits to be sent is in the session's outbox.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use boxlite_proto::session::{Assembler, Outbox, Violation};
use rustix::event::PollFlags;

/// A peer that does not take what waits for it is not read from either: its requests would only
/// make more of it.
const STOP_READING: usize = 512 << 10;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("it was closed")]
    Closed,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Protocol(#[from] Violation),
    #[error("{0}")]
    Transport(&'static str),
}

/// A connection.
#[derive(Debug)]
pub(super) struct Link {
    socket: UnixStream,
    /// What was read.
    pub(super) input: Assembler,
    /// The other end takes nothing any more; what it sent before can still be read.
    write_closed: bool,
    /// When the other end last sent or took something.
    moved: Instant,
}

impl Link {
    /// Takes a connected socket.
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let (input, moved) = (Assembler::default(), Instant::now());
        Ok(Self { socket, input, write_closed: false, moved })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What to wait for while so many bytes wait to be sent.
    pub(super) fn interest(&self, read: bool, waiting: usize) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, read && waiting < STOP_READING);
        flags.set(PollFlags::OUT, waiting > 0);
        flags
    }

    /// Whether the other end takes nothing any more.
    pub(super) fn is_write_closed(&self) -> bool {
        self.write_closed
    }

    /// When the other end last sent or took something.
    pub(super) fn moved(&self) -> Instant {
        self.moved
    }

    /// Reads one byte; none if none is there.
    pub(super) fn byte(&mut self) -> Result<Option<u8>, Broken> {
        let mut byte = [0];
        let read = (&self.socket).read(&mut byte);
        Ok(self.arrived(read)?.map(|_| byte[0]))
    }

    /// Reads once into [`input`](Self::input).
    pub(super) fn read(&mut self) -> Result<(), Broken> {
        let read = (&self.socket).read(self.input.space());
        if let Some(count) = self.arrived(read)? {
            self.input.filled(count);
        }
        Ok(())
    }

    fn arrived(&mut self, read: io::Result<usize>) -> Result<Option<usize>, Broken> {
        match read {
            Ok(0) => Err(Broken::Closed),
            Ok(n) => {
                self.moved = Instant::now();
                Ok(Some(n))
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Sends what can be sent now.
    pub(super) fn flush(&mut self, outbox: &mut Outbox) {
        let Self { socket, moved, .. } = self;
        let written = outbox.write_with(|slices| {
            loop {
                match (&*socket).write_vectored(slices) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(n) => {
                        *moved = Instant::now();
                        return Ok(n);
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
        });
        // The end of the connection is found by reading, after what comes before it.
        self.write_closed |= written.is_err_and(|e| e.kind() != io::ErrorKind::WouldBlock);
        if self.write_closed {
            outbox.clear();
        }
    }
}
