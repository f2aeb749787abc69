//! Moving bytes between the host and one channel of a command, never more than the session allows.

use std::os::fd::{AsFd, OwnedFd};

use boxlite_proto::frame::Channel;
use boxlite_proto::session::Chunks;
use bytes::{Buf, Bytes};
use rustix::io::{Errno, read, write};
use rustix::termios::{LocalModes, SpecialCodeIndex, tcgetattr};

use crate::host::connection::{CHUNK, Session};
use crate::sys::poller::Ready;

/// After a command has exited, a terminal that something still holds open is read for at most so
/// many bytes more: what a terminal can have buffered.
const TERMINAL_BUFFER: u64 = 128 << 10;

/// From the host to a command's standard input.
pub(crate) struct Input {
    fd: OwnedFd,
    terminal: bool,
    writable: bool,
    /// What has arrived and not been written; at most a window.
    queue: Chunks,
    /// The host has sent everything.
    ended: bool,
}

/// What became of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Open,
    /// To be dropped, which closes it.
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

    /// No more will come.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    pub(crate) fn can_pump(&self) -> bool {
        self.writable && (!self.queue.is_empty() || self.ended)
    }

    /// Writes what the command takes now.
    pub(crate) fn pump(&mut self, stream: u32, session: &mut Session) -> State {
        while self.writable && !self.queue.is_empty() {
            match write(&self.fd, self.queue.chunk()) {
                Ok(n) => {
                    self.queue.advance(n);
                    session.input_taken(stream, n);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.writable = false,
                Err(_) => {
                    // Nobody reads it any more. The host learns that, and stops.
                    session.close_input(stream);
                    return State::Closed;
                }
            }
        }
        if !self.queue.is_empty() || !self.ended {
            return State::Open;
        }
        if self.terminal {
            self.type_end_of_file();
        }
        State::Closed
    }

    /// A terminal has no end of input of its own; as a person would, type Ctrl-D where the terminal
    /// is in line mode.
    fn type_end_of_file(&self) {
        if let Ok(modes) = tcgetattr(&self.fd)
            && modes.local_modes.contains(LocalModes::ICANON)
        {
            let _ = write(&self.fd, &[modes.special_codes[SpecialCodeIndex::VEOF]]);
        }
    }
}

/// From a command's output to the host.
pub(crate) struct Output {
    fd: OwnedFd,
    channel: Channel,
    terminal: bool,
    ready: Ready,
    /// Once the command has exited and its grace is over: bytes that are still to be read.
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

    /// From now on, only what is buffered counts: whoever holds the other end is not the command.
    pub(crate) fn last_call(&mut self) {
        if self.remaining.is_none() {
            let buffered = rustix::io::ioctl_fionread(self.fd.as_fd()).unwrap_or(0);
            self.remaining = Some(if self.terminal { TERMINAL_BUFFER } else { buffered });
            self.ready.read = true;
        }
    }

    pub(crate) fn can_pump(&self, room: impl FnOnce(Channel) -> usize) -> bool {
        self.remaining == Some(0) || self.ready.read && room(self.channel) > 0
    }

    /// Reads once and sends that.
    pub(crate) fn pump(&mut self, to: &mut Sink<'_>, scratch: &mut [u8]) -> State {
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
                // A pipe that gives less than was asked for is empty, and says when it is not.
                if n < limit && !self.terminal && !self.ready.hung_up {
                    self.ready.read = false;
                }
                if let Some(remaining) = &mut self.remaining {
                    *remaining = remaining.saturating_sub(n as u64);
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if self.remaining.is_none() => self.ready.read = false,
            // A terminal that nothing has open any more answers EIO.
            Err(_) => return self.finish(to),
        }
        State::Open
    }

    fn finish(&self, to: &mut Sink<'_>) -> State {
        to.end(self.channel);
        State::Closed
    }
}

/// Where output goes.
pub(crate) enum Sink<'a> {
    /// To the host, on a stream.
    Host(&'a mut Session, u32),
    /// Nobody hears of a detached command.
    Nowhere,
}

impl Sink<'_> {
    /// Bytes that are taken now.
    pub(crate) fn room(&self, channel: Channel) -> usize {
        match self {
            Self::Host(session, stream) => session.output_room(*stream, channel),
            Self::Nowhere => CHUNK,
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
