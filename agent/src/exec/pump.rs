//! Moves bytes between the host and the stdio of a command, or a socket.
//!
//! **Back-pressure.** Output is read from its pipe only while the session has room for its channel
//! ([`Session::output_room`]): credit that the host granted, and space in the outbox. Without room the pipe
//! is left alone, fills up, and the command blocks in `write`. The host grants credit as the reader at its end
//! takes the data, so a slow reader slows the command down, and the agent buffers no output beyond its outbox.
//! Input works the other way round: the agent grants credit for the bytes that it has written to the command's
//! pipe, so at most a window waits in the queue.

use std::os::fd::{AsFd, OwnedFd};

use boxlite_proto::frame::Channel;
use boxlite_proto::session::Chunks;
use bytes::{Buf, Bytes};
use rustix::io::{Errno, read, write};
use rustix::termios::{LocalModes, SpecialCodeIndex, tcgetattr};

use crate::host::connection::{CHUNK, Session};
use crate::sys::poller::Ready;

/// Bytes that are still read from a terminal that other processes hold open after the command has exited: as
/// many as a terminal can buffer.
const TERMINAL_BUFFER: u64 = 128 << 10;

/// The input of a command or a socket, with the data of the host.
pub(crate) struct Input {
    fd: OwnedFd,
    terminal: bool,
    writable: bool,
    /// Data that has arrived and is not written; at most a window of credit.
    queue: Chunks,
    /// The host has sent everything.
    ended: bool,
}

/// The state of a channel after its data was moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChannelState {
    Open,
    /// The channel is to be dropped, which closes its descriptor.
    Closed,
}

impl Input {
    pub(crate) fn new(fd: OwnedFd, terminal: bool) -> Self {
        Self { fd, terminal, writable: true, queue: Chunks::default(), ended: false }
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(crate) fn notify(&mut self, event: Ready) {
        self.writable |= event.write;
    }

    /// Takes data from the host.
    pub(crate) fn receive(&mut self, data: Bytes) {
        self.queue.push(data);
    }

    /// Records that the host sends no more.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    pub(crate) fn can_pump(&self) -> bool {
        self.writable && (!self.queue.is_empty() || self.ended)
    }

    /// Writes as much as the command's end takes now.
    pub(crate) fn pump(&mut self, stream: u32, session: &mut Session) -> ChannelState {
        while self.writable && !self.queue.is_empty() {
            match write(&self.fd, self.queue.chunk()) {
                Ok(n) => {
                    self.queue.advance(n);
                    session.input_taken(stream, n);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.writable = false,
                Err(_) => {
                    // The input has no reader any more. The host is informed, and stops sending.
                    session.close_input(stream);
                    return ChannelState::Closed;
                }
            }
        }
        if !self.queue.is_empty() || !self.ended {
            return ChannelState::Open;
        }
        if self.terminal {
            self.type_end_of_file();
        }
        ChannelState::Closed
    }

    /// Writes Ctrl-D if the terminal is in line mode, as a user would type it: a terminal has no other end of
    /// input.
    fn type_end_of_file(&self) {
        if let Ok(modes) = tcgetattr(&self.fd)
            && modes.local_modes.contains(LocalModes::ICANON)
        {
            let _ = write(&self.fd, &[modes.special_codes[SpecialCodeIndex::VEOF]]);
        }
    }
}

/// An output of a command or a socket, whose data goes to the host.
pub(crate) struct Output {
    fd: OwnedFd,
    channel: Channel,
    terminal: bool,
    ready: Ready,
    /// Bytes left to read, once the command has exited and the grace period is over.
    remaining: Option<u64>,
}

impl Output {
    pub(crate) fn new(fd: OwnedFd, channel: Channel, terminal: bool) -> Self {
        Self { fd, channel, terminal, ready: Ready::default(), remaining: None }
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(crate) fn notify(&mut self, event: Ready) {
        self.ready.merge(event);
    }

    /// Limits further reads to what is buffered now: the processes that hold the other end are not the command.
    pub(crate) fn limit_to_buffered(&mut self) {
        if self.remaining.is_none() {
            let buffered = rustix::io::ioctl_fionread(self.fd.as_fd()).unwrap_or(0);
            self.remaining = Some(if self.terminal { TERMINAL_BUFFER } else { buffered });
            self.ready.read = true;
        }
    }

    pub(crate) fn can_pump(&self, room: impl FnOnce(Channel) -> usize) -> bool {
        self.remaining == Some(0) || self.ready.read && room(self.channel) > 0
    }

    /// Reads once, at most as much as there is room for, and sends it.
    pub(crate) fn pump(&mut self, to: &mut Sink<'_>, scratch: &mut [u8]) -> ChannelState {
        let mut limit = to.room(self.channel).min(scratch.len());
        if let Some(remaining) = self.remaining {
            limit = limit.min(usize::try_from(remaining).unwrap_or(limit));
            if remaining == 0 {
                return self.finish(to);
            }
        }
        match read(&self.fd, &mut scratch[..limit]) {
            Ok(0) => return self.finish(to),
            Ok(n) => {
                to.send(self.channel, &scratch[..n]);
                // A short read from a pipe means that it is empty; the poller reports new data.
                if n < limit && !self.terminal && !self.ready.hung_up {
                    self.ready.read = false;
                }
                if let Some(remaining) = &mut self.remaining {
                    *remaining = remaining.saturating_sub(n as u64);
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if self.remaining.is_none() => self.ready.read = false,
            // A terminal that no process has open any more returns EIO.
            Err(_) => return self.finish(to),
        }
        ChannelState::Open
    }

    fn finish(&self, to: &mut Sink<'_>) -> ChannelState {
        to.end(self.channel);
        ChannelState::Closed
    }
}

/// The destination of output.
pub(crate) enum Sink<'a> {
    /// To the host, on a stream.
    Host(&'a mut Session, u32),
    /// Output of a detached command is discarded.
    Discard,
}

impl Sink<'_> {
    /// Bytes that can be sent now.
    pub(crate) fn room(&self, channel: Channel) -> usize {
        match self {
            Self::Host(session, stream) => session.output_room(*stream, channel),
            Self::Discard => CHUNK,
        }
    }

    fn send(&mut self, channel: Channel, data: &[u8]) {
        if let Self::Host(session, stream) = self {
            session.send_output(*stream, channel, data);
        }
    }

    fn end(&mut self, channel: Channel) {
        if let Self::Host(session, stream) = self {
            session.end_output(*stream, channel);
        }
    }
}
