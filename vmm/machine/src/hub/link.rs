//! A non-blocking Unix socket that carries frames. Unsent frames are in the session's outbox.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use boxlite_proto::session::{Assembler, Outbox, Violation};
use rustix::event::PollFlags;

/// Unsent bytes above which the peer is not read: its requests would only add more.
const STOP_READING: usize = 512 << 10;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
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
    /// Bytes that were read.
    pub(super) input: Assembler,
    /// The other end takes nothing more; what it sent before can still be read.
    write_closed: bool,
    /// When bytes were last read or written.
    last_progress: Instant,
}

impl Link {
    /// Takes a connected socket.
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let (input, last_progress) = (Assembler::default(), Instant::now());
        Ok(Self { socket, input, write_closed: false, last_progress })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The events to poll for while `waiting` bytes are unsent.
    pub(super) fn interest(&self, read: bool, waiting: usize) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, read && waiting < STOP_READING);
        flags.set(PollFlags::OUT, waiting > 0);
        flags
    }

    /// Whether the other end takes nothing more.
    pub(super) fn is_write_closed(&self) -> bool {
        self.write_closed
    }

    /// When bytes were last read or written.
    pub(super) fn last_progress(&self) -> Instant {
        self.last_progress
    }

    /// Reads one byte; `None` if there is none yet.
    pub(super) fn byte(&mut self) -> Result<Option<u8>, LinkError> {
        let mut byte = [0];
        let read = (&self.socket).read(&mut byte);
        Ok(self.arrived(read)?.map(|_| byte[0]))
    }

    /// Reads once into [`input`](Self::input).
    pub(super) fn read(&mut self) -> Result<(), LinkError> {
        let read = (&self.socket).read(self.input.space());
        if let Some(count) = self.arrived(read)? {
            self.input.filled(count);
        }
        Ok(())
    }

    fn arrived(&mut self, read: io::Result<usize>) -> Result<Option<usize>, LinkError> {
        match read {
            Ok(0) => Err(LinkError::Closed),
            Ok(n) => {
                self.last_progress = Instant::now();
                Ok(Some(n))
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Sends what can be sent now.
    pub(super) fn flush(&mut self, outbox: &mut Outbox) {
        let Self { socket, last_progress, .. } = self;
        let written = outbox.write_with(|slices| {
            loop {
                match (&*socket).write_vectored(slices) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(n) => {
                        *last_progress = Instant::now();
                        return Ok(n);
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
        });
        // Reading finds the end of the connection, after the bytes that were sent before it.
        self.write_closed |= written.is_err_and(|e| e.kind() != io::ErrorKind::WouldBlock);
        if self.write_closed {
            outbox.clear();
        }
    }
}
