//! Frames on a Unix socket that never blocks: what came is checked and handed out, what is to leave
//! waits here, within bounds.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use boxlite_proto::frame::{Frame, FrameError, HEADER_LEN, Header, Kind};
use rustix::event::PollFlags;

/// Bytes asked of the socket in one read.
const CHUNK: usize = 128 << 10;
/// A peer that does not take what waits for it is not listened to either: its requests would only
/// make more of it.
const DEAF: usize = 512 << 10;
/// Buffers above this size are given back once they are empty.
const KEEP: usize = 256 << 10;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("it was closed")]
    Closed,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Protocol(&'static str),
}

/// A connection of frames.
#[derive(Debug)]
pub(super) struct Link {
    socket: UnixStream,
    /// The beginning of a frame whose rest has not come.
    partial: Vec<u8>,
    out: Vec<u8>,
    /// Bytes of `out` that have left.
    sent: usize,
    /// The other end takes nothing any more; what it said before can still be read.
    deaf: bool,
    /// When the other end last said or took something.
    moved: Instant,
}

impl Link {
    /// Takes a connected socket.
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            partial: Vec::new(),
            out: Vec::new(),
            sent: 0,
            deaf: false,
            moved: Instant::now(),
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What to wait for.
    pub(super) fn interest(&self, listen: bool) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, listen && self.waiting() < DEAF);
        flags.set(PollFlags::OUT, self.waiting() > 0);
        flags
    }

    /// Bytes that have not left.
    pub(super) fn waiting(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Whether the other end takes nothing any more.
    pub(super) fn is_deaf(&self) -> bool {
        self.deaf
    }

    /// When the other end last said or took something.
    pub(super) fn moved(&self) -> Instant {
        self.moved
    }

    /// Adds bytes to what is to leave.
    pub(super) fn push_raw(&mut self, bytes: &[u8]) {
        if !self.deaf {
            self.out.extend_from_slice(bytes);
        }
    }

    /// Adds a frame.
    pub(super) fn push(&mut self, frame: &Frame) {
        self.push_parts(frame.stream, frame.kind, &frame.body);
    }

    /// Adds a frame of which stream, kind and body are given apart.
    pub(super) fn push_parts(&mut self, stream: u32, kind: Kind, body: &[u8]) {
        let header = Header { len: body.len(), stream, kind }.encode();
        self.push_raw(&header);
        self.push_raw(body);
    }

    /// Reads one byte; none if none is there.
    pub(super) fn byte(&mut self) -> Result<Option<u8>, Broken> {
        let mut byte = [0];
        Ok(self.read(&mut byte)?.map(|_| byte[0]))
    }

    /// Reads once, and returns the frames that are complete.
    pub(super) fn receive(&mut self) -> Result<Vec<Frame>, Broken> {
        let start = self.partial.len();
        self.partial.resize(start + CHUNK, 0);
        let mut buffer = std::mem::take(&mut self.partial);
        let read = self.read(&mut buffer[start..]);
        buffer.truncate(start + read.as_ref().map_or(0, |read| read.unwrap_or(0)));
        read?;
        let mut frames = Vec::new();
        let mut rest = &buffer[..];
        while let Some((header, body)) = rest.split_first_chunk::<HEADER_LEN>() {
            let Header { len, stream, kind } = Header::decode(header)?;
            let Some((body, after)) = body.split_at_checked(len) else { break };
            frames.push(Frame { stream, kind, body: body.to_vec().into() });
            rest = after;
        }
        let taken = buffer.len() - rest.len();
        buffer.drain(..taken);
        buffer.shrink_to(KEEP);
        self.partial = buffer;
        Ok(frames)
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Broken> {
        match (&self.socket).read(buffer) {
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
    pub(super) fn flush(&mut self) {
        while self.waiting() > 0 {
            match (&self.socket).write(&self.out[self.sent..]) {
                Ok(n) if n > 0 => {
                    self.sent += n;
                    self.moved = Instant::now();
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The end of the connection is found by reading, after what comes before it.
                Ok(_) | Err(_) => {
                    self.deaf = true;
                    self.sent = self.out.len();
                }
            }
        }
        if self.waiting() == 0 {
            self.out.clear();
            self.out.shrink_to(KEEP);
            self.sent = 0;
        } else if self.sent > KEEP {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
    }
}
