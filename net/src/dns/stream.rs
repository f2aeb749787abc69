//! DNS over TCP (RFC 7766): messages with their lengths in front, in any order of answers.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::quota::Place;
use crate::sockets;

/// Answers that wait for the guest; then no more is read.
const MAX_UNSENT: usize = 64 << 10;
/// A stream on which nothing happens for so long is closed.
const IDLE: Duration = Duration::from_secs(60);

/// Our end of a stream that the guest asks over.
pub(super) struct Stream {
    socket: OwnedFd,
    /// Tells it from others that had its place in the table.
    pub(super) number: u64,
    received: Vec<u8>,
    unsent: Vec<u8>,
    heard: Instant,
    /// The guest asks no more: what it asked is answered, then the stream ends.
    asked_all: bool,
    _place: Place,
}

/// What has come over a stream.
#[derive(Default)]
pub(super) struct Asked {
    pub(super) messages: Vec<Vec<u8>>,
    /// Nothing follows.
    pub(super) ended: bool,
}

impl Stream {
    pub(super) fn new(socket: OwnedFd, place: Place, number: u64, now: Instant) -> Self {
        let (received, unsent) = (Vec::new(), Vec::new());
        Self { socket, number, received, unsent, heard: now, asked_all: false, _place: place }
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    pub(super) fn is_idle(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heard) >= IDLE
    }

    /// The guest has shut its half, and all that it asked was taken.
    pub(super) fn end(&mut self) {
        self.asked_all = true;
    }

    /// Nobody waits for anything, unless questions are on their way still.
    pub(super) fn is_over(&self) -> bool {
        self.asked_all && self.unsent.is_empty()
    }

    /// Sends what waits, and returns the messages that have come. None if the stream is broken.
    pub(super) fn exchange(&mut self, buffer: &mut [u8], now: Instant) -> Option<Asked> {
        self.flush().ok()?;
        let mut asked = Asked::default();
        while self.unsent.len() <= MAX_UNSENT {
            let Some(n) = sockets::receive(&self.socket, buffer).ok()? else { break };
            if n == 0 {
                asked.ended = true;
                break;
            }
            self.heard = now;
            self.received.extend(buffer.get(..n)?);
            let mut rest = &self.received[..];
            while let [a, b, after @ ..] = rest
                && let Some((message, next)) =
                    after.split_at_checked(u16::from_be_bytes([*a, *b]).into())
            {
                asked.messages.push(message.to_vec());
                rest = next;
            }
            self.received = rest.to_vec();
        }
        Some(asked)
    }

    /// Sends an answer, now or later.
    pub(super) fn answer(&mut self, message: &[u8]) -> Result<(), Errno> {
        let Ok(len) = u16::try_from(message.len()) else { return Ok(()) };
        self.unsent.extend(len.to_be_bytes());
        self.unsent.extend(message);
        // A guest that asks and asks, and does not listen.
        if self.unsent.len() > 4 * MAX_UNSENT {
            return Err(Errno::NOBUFS);
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<(), Errno> {
        if !self.unsent.is_empty() {
            let sent = sockets::send(&self.socket, &self.unsent)?.unwrap_or(0);
            self.unsent.drain(..sent);
        }
        Ok(())
    }
}
