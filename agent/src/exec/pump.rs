//! Moving bytes between the host and one channel of a command, never more than the credit allows.

use std::os::fd::{AsFd, OwnedFd};

use boxlite_proto::credit::{CreditError, ReceiveWindow, SendWindow};
use boxlite_proto::frame::{Channel, Frame};
use rustix::io::{Errno, read, write};
use rustix::termios::{LocalModes, SpecialCodeIndex, tcgetattr};

use crate::connection::{CHUNK, Outbox};
use crate::poller::Ready;

/// After a command has exited, a terminal that something still holds open is read for at most so
/// many bytes more: what a terminal can have buffered.
const TERMINAL_BUFFER: u64 = 128 << 10;

/// From the host to a command's standard input.
pub(crate) struct Input {
    fd: OwnedFd,
    terminal: bool,
    writable: bool,
    /// What has arrived and not been written; at most a window.
    queue: Vec<u8>,
    written: usize,
    window: ReceiveWindow,
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
        Self {
            fd,
            terminal,
            writable: true,
            queue: Vec::new(),
            written: 0,
            window: ReceiveWindow::default(),
            ended: false,
        }
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(crate) fn notify(&mut self, event: Ready) {
        self.writable |= event.write;
    }

    /// Takes data from the host.
    pub(crate) fn receive(&mut self, data: &[u8]) -> Result<(), CreditError> {
        self.window.receive(data.len())?;
        if !self.ended {
            self.queue.extend_from_slice(data);
        }
        Ok(())
    }

    /// No more will come.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    pub(crate) fn can_pump(&self) -> bool {
        self.writable && (self.written < self.queue.len() || self.ended)
    }

    /// Writes what the command takes now, and grants the credit back.
    pub(crate) fn pump(&mut self, stream: u32, out: &mut Outbox) -> State {
        while self.writable && self.written < self.queue.len() {
            match write(&self.fd, &self.queue[self.written..]) {
                Ok(n) => {
                    self.written += n;
                    if let Some(bytes) = self.window.take(n) {
                        out.push(&Frame::credit(stream, Channel::Stdin, bytes));
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.writable = false,
                Err(_) => {
                    // Nobody reads it any more. The host learns that, and stops.
                    out.push(&Frame::end(stream, Channel::Stdin));
                    return State::Closed;
                }
            }
        }
        if self.written < self.queue.len() {
            return State::Open;
        }
        self.queue = Vec::new();
        self.written = 0;
        if !self.ended {
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
    window: SendWindow,
    /// Once the command has exited and its grace is over: bytes that are still to be read.
    remaining: Option<u64>,
}

impl Output {
    pub(crate) fn new(fd: OwnedFd, channel: Channel, terminal: bool) -> Self {
        Self {
            fd,
            channel,
            terminal,
            ready: Ready::default(),
            window: SendWindow::default(),
            remaining: None,
        }
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(crate) fn notify(&mut self, event: Ready) {
        self.ready.merge(event);
    }

    /// The host took so much.
    pub(crate) fn grant(&mut self, bytes: u32) -> Result<(), CreditError> {
        self.window.grant(bytes)
    }

    /// From now on, only what is buffered counts: whoever holds the other end is not the command.
    pub(crate) fn last_call(&mut self) {
        if self.remaining.is_none() {
            let buffered = rustix::io::ioctl_fionread(self.fd.as_fd()).unwrap_or(0);
            self.remaining = Some(if self.terminal { TERMINAL_BUFFER } else { buffered });
            self.ready.read = true;
        }
    }

    pub(crate) fn can_pump(&self) -> bool {
        self.remaining == Some(0) || self.ready.read && self.window.available() > 0
    }

    /// Reads once and sends that; drops it where there is nobody to send it to.
    pub(crate) fn pump(
        &mut self,
        stream: u32,
        mut out: Option<&mut Outbox>,
        scratch: &mut [u8],
    ) -> State {
        let mut limit = self.window.available().min(CHUNK).min(scratch.len());
        if let Some(remaining) = self.remaining {
            limit = limit.min(usize::try_from(remaining).unwrap_or(limit));
            if remaining == 0 {
                return self.finish(stream, out);
            }
        }
        match read(&self.fd, &mut scratch[..limit]) {
            Ok(0) => return self.finish(stream, out),
            Ok(n) => {
                if let Some(out) = out.as_mut() {
                    out.push_data(stream, self.channel, &scratch[..n]);
                    self.window.spend(n);
                }
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
            Err(_) => return self.finish(stream, out),
        }
        State::Open
    }

    fn finish(&self, stream: u32, out: Option<&mut Outbox>) -> State {
        if let Some(out) = out {
            out.push(&Frame::end(stream, self.channel));
        }
        State::Closed
    }
}
