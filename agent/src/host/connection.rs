//! A connection to the host: its descriptor and its session, bounded in both directions.

use std::os::fd::OwnedFd;

use boxlite_proto::frame::MAX_DATA;
use boxlite_proto::session::{Assembler, Server, ServerEvent, Violation};
use rustix::io::{Errno, read, retry_on_intr, writev};

use crate::sys::poller::Ready;

/// Nothing is read from the host while this much waits to be sent, which bounds memory for a host that never
/// reads. Far above the session's high-water mark: a host that writes before it reads must not end in a deadlock
/// with an agent that does the same.
const STOP_READING: usize = 4 << 20;

/// Bytes in one read.
pub(crate) const CHUNK: usize = MAX_DATA;

/// What serves a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    /// The exec with this ID.
    Exec(u64),
    /// The job with this ID.
    Job(u64),
    /// The socket with this ID.
    Socket(u64),
}

/// The protocol state of a connection.
pub(crate) type Session = Server<Service>;

/// Destination of an answer: a stream of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReplyTo {
    pub(crate) connection: u64,
    pub(crate) stream: u32,
}

/// Why a connection ended, or must be closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error("the host closed it")]
    Closed,
    #[error(transparent)]
    Io(#[from] Errno),
    #[error(transparent)]
    Protocol(#[from] Violation),
}

pub(crate) struct Connection {
    fd: OwnedFd,
    ready: Ready,
    input: Assembler,
    pub(crate) session: Session,
    /// Whether this is a virtio-serial port, where reads return end of file until the host attaches.
    serial: bool,
}

impl Connection {
    /// `fd` must be non-blocking, and watched by the poller.
    pub(crate) fn new(fd: OwnedFd, serial: bool) -> Self {
        Self {
            fd,
            // Data that arrived before the descriptor was watched causes no edge.
            ready: Ready { read: true, write: true, ..Ready::default() },
            input: Assembler::default(),
            session: Session::default(),
            serial,
        }
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(crate) fn is_serial(&self) -> bool {
        self.serial
    }

    pub(crate) fn notify(&mut self, event: Ready) {
        self.ready.merge(event);
    }

    /// Whether [`receive`](Self::receive) may read data now.
    pub(crate) fn can_receive(&self) -> bool {
        self.ready.read && self.session.waiting() < STOP_READING
    }

    /// Reads once, for [`next_event`](Self::next_event). `scratch` has [`CHUNK`] bytes.
    pub(crate) fn receive(&mut self, scratch: &mut [u8]) -> Result<(), ConnectionError> {
        match read(&self.fd, &mut *scratch) {
            Ok(0) if self.serial && !self.session.is_greeted() => self.ready.read = false,
            Ok(0) => return Err(ConnectionError::Closed),
            Ok(n) => self.input.extend(&scratch[..n]),
            Err(Errno::AGAIN) => self.ready.read = false,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    /// The next event in the received data.
    pub(crate) fn next_event(&mut self) -> Result<Option<ServerEvent>, ConnectionError> {
        let event = self.session.receive(&mut self.input)?;
        if event.is_none() {
            self.input.release();
        }
        Ok(event)
    }

    /// Writes as much as the descriptor takes now.
    pub(crate) fn flush(&mut self) -> Result<(), ConnectionError> {
        if !self.ready.write {
            return Ok(());
        }
        let fd = &self.fd;
        let written =
            self.session.outbox().write_with(|slices| retry_on_intr(|| writev(fd, slices)));
        match written {
            Ok(()) => Ok(()),
            Err(Errno::AGAIN) => {
                self.ready.write = false;
                Ok(())
            }
            Err(e) => Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests;
