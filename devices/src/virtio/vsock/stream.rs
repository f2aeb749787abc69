//! The host end of a connection: a Unix stream, and a backlog of bytes that it has no room for yet.

use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::net::send;
use vm_memory::{VolatileSlice, WriteVolatile};

use super::sys;

/// A non-blocking Unix stream.
#[derive(Debug)]
pub(super) struct HostStream {
    stream: UnixStream,
    backlog: Backlog,
    /// The stream may hold bytes, or have ended.
    readable: bool,
    /// The write half is closed, because the peer takes no more bytes: they are discarded.
    write_closed: bool,
    /// The peer closed the stream: only bytes that it sent before can be received.
    hung_up: bool,
    /// The directions that were shut down towards the peer.
    ended_sending: bool,
    ended_receiving: bool,
}

/// The result of [`HostStream::receive`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// This many bytes, at least one.
    Data(usize),
    /// There are no bytes yet.
    Nothing,
    /// The end of the stream.
    End,
    /// The peer closed the stream with unread bytes in it, or the stream failed.
    Broken,
}

impl HostStream {
    pub(super) fn new(stream: UnixStream) -> Self {
        sys::prepare(&stream);
        Self {
            stream,
            backlog: Backlog::default(),
            readable: false,
            write_closed: false,
            hung_up: false,
            ended_sending: false,
            ended_receiving: false,
        }
    }

    /// The stream, for the event loop.
    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The stream, to be closed.
    pub(super) fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Whether there may be something to [`receive`](Self::receive).
    pub(super) fn is_readable(&self) -> bool {
        self.readable
    }

    /// Whether bytes wait for the peer to make room.
    pub(super) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Whether the write half is closed: the peer takes no more bytes.
    pub(super) fn is_write_closed(&self) -> bool {
        self.write_closed
    }

    /// Marks the stream as readable.
    pub(super) fn set_readable(&mut self) {
        self.readable = true;
    }

    /// Handles a stream that the peer closed, or that failed. Returns how many bytes of the backlog are
    /// discarded. Bytes that the peer sent before can still be received.
    pub(super) fn hang_up(&mut self) -> usize {
        self.readable = true;
        self.hung_up = true;
        self.close_write()
    }

    fn close_write(&mut self) -> usize {
        self.write_closed = true;
        std::mem::take(&mut self.backlog).len()
    }

    /// Sends the peer bytes from guest memory. Returns how many of them were sent or discarded; the
    /// rest is added to the backlog.
    pub(super) fn deliver<'m>(
        &mut self,
        payload: impl Iterator<Item = VolatileSlice<'m>> + Clone,
    ) -> usize {
        if self.write_closed {
            return payload.map(|slice| slice.len()).sum();
        }
        let sent = if self.has_backlog() {
            0
        } else {
            match sys::send(self.stream.as_fd(), payload.clone()) {
                Ok(sent) => sent,
                Err(e) if e.kind() == ErrorKind::WouldBlock => 0,
                Err(_) => {
                    self.write_closed = true;
                    return payload.map(|slice| slice.len()).sum();
                }
            }
        };
        self.backlog.append(payload, sent);
        sent
    }

    /// Sends the peer as much of the backlog as it has room for. Returns how many bytes were sent or
    /// discarded.
    pub(super) fn flush(&mut self) -> usize {
        let mut taken = 0;
        while self.has_backlog() {
            match send(&self.stream, self.backlog.bytes(), sys::SEND).map_err(io::Error::from) {
                Ok(sent) => {
                    self.backlog.consume(sent);
                    taken += sent;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => taken += self.close_write(),
            }
        }
        taken
    }

    /// Sends the peer a line from the device, before any byte from the guest. If the stream has no room
    /// for the line, its write half is closed.
    pub(super) fn send_line(&mut self, line: &str) {
        let sent = send(&self.stream, line.as_bytes(), sys::SEND);
        self.write_closed |= sent != Ok(line.len());
    }

    /// Receives up to `room` bytes, at least one, into guest memory.
    pub(super) fn receive<'m>(
        &mut self,
        buffers: impl Iterator<Item = VolatileSlice<'m>>,
        room: usize,
    ) -> Received {
        match sys::receive(self.stream.as_fd(), buffers) {
            Ok(0) => Received::End,
            Ok(count) => {
                // After a short read the stream is most likely empty; if not, the event loop reports
                // it again. After a hang-up, the end of the stream follows.
                self.readable = count == room || self.hung_up;
                Received::Data(count)
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                Received::Nothing
            }
            Err(_) => Received::Broken,
        }
    }

    /// Shuts down the direction to the peer, once. Call it when there is no backlog.
    pub(super) fn end_sending(&mut self) {
        if !std::mem::replace(&mut self.ended_sending, true) {
            // Fails only if the peer has closed its end.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// Shuts down the direction from the peer, once: its further writes fail.
    pub(super) fn end_receiving(&mut self) {
        if !std::mem::replace(&mut self.ended_receiving, true) {
            let _ = self.stream.shutdown(Shutdown::Read);
        }
    }
}

/// A queue of bytes, bounded by the credit that the guest was given.
#[derive(Debug, Default)]
struct Backlog {
    bytes: Vec<u8>,
    /// The number of `bytes` that are consumed.
    start: usize,
}

impl Backlog {
    fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Appends `payload` without its first `skip` bytes.
    fn append<'m>(&mut self, payload: impl Iterator<Item = VolatileSlice<'m>>, mut skip: usize) {
        if self.start > self.len() {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        for slice in payload {
            let skipped = skip.min(slice.len());
            skip -= skipped;
            if let Ok(rest) = slice.offset(skipped)
                && !rest.is_empty()
            {
                // Writing to a `Vec` does not fail.
                let _ = self.bytes.write_volatile(&rest);
            }
        }
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        if self.is_empty() {
            // Idle connections keep no memory.
            *self = Self::default();
        }
    }
}
