//! DNS over TCP (RFC 7766): messages behind their lengths; answers in any order.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::quota::Permit;
use crate::sockets;

/// The most bytes of unsent answers at which queries are still read.
const MAX_UNSENT: usize = 64 << 10;
/// Idle timeout of a stream.
const IDLE: Duration = Duration::from_secs(60);

/// The resolver's end of a stream of the guest.
pub(super) struct Stream {
    socket: OwnedFd,
    /// Distinguishes this stream from earlier ones with the same index.
    pub(super) number: u64,
    received: Vec<u8>,
    unsent: Vec<u8>,
    last_active: Instant,
    /// The guest has closed its write half: the stream closes once all queries are answered.
    eof: bool,
    _permit: Permit,
}

/// What was received on a stream.
#[derive(Default)]
pub(super) struct Received {
    pub(super) messages: Vec<Vec<u8>>,
    /// The guest has closed its write half.
    pub(super) eof: bool,
}

impl Stream {
    pub(super) fn new(socket: OwnedFd, permit: Permit, number: u64, now: Instant) -> Self {
        let (received, unsent) = (Vec::new(), Vec::new());
        Self { socket, number, received, unsent, last_active: now, eof: false, _permit: permit }
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    pub(super) fn is_idle(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_active) >= IDLE
    }

    /// The guest has closed its write half, and all its queries were taken.
    pub(super) fn set_eof(&mut self) {
        self.eof = true;
    }

    /// True if no more queries follow and all answers are sent; queries may still be open.
    pub(super) fn is_over(&self) -> bool {
        self.eof && self.unsent.is_empty()
    }

    /// Sends unsent answers and receives queries. None if the stream is broken.
    pub(super) fn exchange(&mut self, buffer: &mut [u8], now: Instant) -> Option<Received> {
        self.flush().ok()?;
        let mut received = Received::default();
        while self.unsent.len() <= MAX_UNSENT {
            let Some(n) = sockets::receive(&self.socket, buffer).ok()? else { break };
            if n == 0 {
                received.eof = true;
                break;
            }
            self.last_active = now;
            self.received.extend(buffer.get(..n)?);
            let mut rest = &self.received[..];
            while let [a, b, after @ ..] = rest
                && let Some((message, next)) =
                    after.split_at_checked(u16::from_be_bytes([*a, *b]).into())
            {
                received.messages.push(message.to_vec());
                rest = next;
            }
            self.received = rest.to_vec();
        }
        Some(received)
    }

    /// Sends an answer, or keeps it until there is room.
    pub(super) fn answer(&mut self, message: &[u8]) -> Result<(), Errno> {
        let Ok(len) = u16::try_from(message.len()) else { return Ok(()) };
        self.unsent.extend(len.to_be_bytes());
        self.unsent.extend(message);
        // The guest sends queries and does not read the answers.
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
