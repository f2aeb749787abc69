//! One connection to the host: bytes in, frames out, bounded in both directions.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use boxlite_proto::frame::{Channel, Frame, FrameError, HEADER_LEN, Header, MAX_DATA};
use rustix::io::{Errno, read, write};

use crate::poller::Ready;

/// No more output of commands is taken in while this much waits to be sent. What one more frame adds
/// on top of it is small.
const HIGH_WATER: usize = 256 << 10;

/// No more is taken in from the host either while this much waits to be sent: a host that only asks
/// and never listens. Far above the high-water mark, because a host that writes before it reads on
/// must not be left waiting for an agent that does the same.
const DEAF: usize = 4 << 20;

/// How much is read at once.
pub(crate) const CHUNK: usize = MAX_DATA;

/// Buffers larger than this are given back when they run empty.
const KEEP: usize = 16 << 10;

/// Bytes on their way to the host.
#[derive(Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outbox {
    pub(crate) fn push(&mut self, frame: &Frame) {
        self.push_parts(frame.stream, frame.kind, &frame.body);
    }

    pub(crate) fn push_data(&mut self, stream: u32, channel: Channel, data: &[u8]) {
        self.push_parts(stream, channel.kind(), data);
    }

    fn push_parts(&mut self, stream: u32, kind: boxlite_proto::frame::Kind, body: &[u8]) {
        self.bytes.extend_from_slice(&Header { len: body.len(), stream, kind }.encode());
        self.bytes.extend_from_slice(body);
    }

    /// Whether data may be added.
    pub(crate) fn has_room(&self) -> bool {
        self.pending() < HIGH_WATER
    }

    fn pending(&self) -> usize {
        self.bytes.len() - self.sent
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending() == 0
    }

    fn flush(&mut self, fd: &OwnedFd) -> rustix::io::Result<()> {
        while !self.is_empty() {
            match write(fd, &self.bytes[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(Errno::INTR) => {}
                Err(e) => {
                    self.bytes.drain(..self.sent);
                    self.sent = 0;
                    return Err(e);
                }
            }
        }
        self.sent = 0;
        self.bytes.clear();
        self.bytes.shrink_to(KEEP);
        Ok(())
    }
}

/// What a stream of this connection is served by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    /// The exec with this ID.
    Exec(u64),
    /// The job with this ID.
    Job(u64),
}

/// Whom an answer is for: a stream of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) connection: u64,
    pub(crate) stream: u32,
}

/// How a connection ended, or why it must.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the host closed it")]
    Closed,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Io(#[from] Errno),
    #[error("{0}")]
    Protocol(&'static str),
}

pub(crate) struct Connection {
    fd: OwnedFd,
    ready: Ready,
    /// What has arrived of a frame that is not complete.
    partial: Vec<u8>,
    pub(crate) out: Outbox,
    /// Whether the host's Hello has come.
    pub(crate) greeted: bool,
    /// A virtio-serial port: it reads as ended until the host attaches.
    serial: bool,
    pub(crate) streams: BTreeMap<u32, Service>,
}

impl Connection {
    /// `fd` must be non-blocking and watched.
    pub(crate) fn new(fd: OwnedFd, serial: bool) -> Self {
        Self {
            fd,
            // What arrived before it was watched makes no edge.
            ready: Ready { read: true, write: true, hung_up: false },
            partial: Vec::new(),
            out: Outbox::default(),
            greeted: false,
            serial,
            streams: BTreeMap::new(),
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

    /// Whether [`receive`](Self::receive) may find something now.
    pub(crate) fn can_receive(&self) -> bool {
        self.ready.read && self.out.pending() < DEAF
    }

    /// Reads once and returns the frames that are complete. `scratch` has [`CHUNK`] bytes.
    pub(crate) fn receive(&mut self, scratch: &mut [u8]) -> Result<Vec<Frame>, Broken> {
        let n = match read(&self.fd, &mut *scratch) {
            Ok(0) if self.serial && !self.greeted => {
                self.ready.read = false;
                return Ok(Vec::new());
            }
            Ok(0) => return Err(Broken::Closed),
            Ok(n) => n,
            Err(Errno::AGAIN) => {
                self.ready.read = false;
                return Ok(Vec::new());
            }
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(e) => return Err(e.into()),
        };
        let mut frames = Vec::new();
        if self.partial.is_empty() {
            let used = parse(&scratch[..n], &mut frames)?;
            self.partial.extend_from_slice(&scratch[used..n]);
        } else {
            self.partial.extend_from_slice(&scratch[..n]);
            let used = parse(&self.partial, &mut frames)?;
            self.partial.drain(..used);
            if self.partial.is_empty() {
                self.partial.shrink_to(KEEP);
            }
        }
        Ok(frames)
    }

    /// Sends what can be sent now.
    pub(crate) fn flush(&mut self) -> Result<(), Broken> {
        if !self.ready.write {
            return Ok(());
        }
        match self.out.flush(&self.fd) {
            Ok(()) => Ok(()),
            Err(Errno::AGAIN) => {
                self.ready.write = false;
                Ok(())
            }
            Err(e) => Err(e.into()),
        }
    }
}

/// Takes the complete frames off the front of `bytes`; returns how many bytes they were.
fn parse(bytes: &[u8], frames: &mut Vec<Frame>) -> Result<usize, FrameError> {
    let mut rest = bytes;
    while let Some((header, body)) = rest.split_first_chunk::<HEADER_LEN>() {
        let Header { len, stream, kind } = Header::decode(header)?;
        let Some((body, after)) = body.split_at_checked(len) else { break };
        frames.push(Frame { stream, kind, body: body.to_vec().into() });
        rest = after;
    }
    Ok(bytes.len() - rest.len())
}

#[cfg(test)]
mod tests {
    use boxlite_proto::message::Request;

    use super::*;

    fn pair() -> (Connection, OwnedFd) {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        (Connection::new(ours, false), theirs)
    }

    #[test]
    fn frames_survive_any_fragmentation() {
        let sent: Vec<_> = (0..50_u32)
            .map(|i| Frame::data(i, Channel::Stdin, vec![i as u8; i as usize * 37]))
            .chain([Request::Ping.frame(7)])
            .collect();
        let bytes: Vec<u8> = sent.iter().flat_map(Frame::to_bytes).collect();
        for step in [1, 8, 9, 10, 333, CHUNK] {
            let (mut connection, host) = pair();
            let mut scratch = vec![0; CHUNK];
            let mut received = Vec::new();
            for piece in bytes.chunks(step) {
                assert_eq!(write(&host, piece).unwrap(), piece.len());
                received.extend(connection.receive(&mut scratch).unwrap());
            }
            assert!(received == sent, "in steps of {step}");
            assert!(connection.partial.is_empty());
        }
    }

    #[test]
    fn a_length_that_is_too_long_is_refused_before_its_body() {
        let (mut connection, host) = pair();
        let mut bytes = Frame::data(1, Channel::Stdin, *b"x").to_bytes();
        bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        write(&host, &bytes).unwrap();
        let result = connection.receive(&mut vec![0; CHUNK]);
        assert!(matches!(result, Err(Broken::Frame(FrameError::TooLong { .. }))), "{result:?}");
    }

    #[test]
    fn what_cannot_be_sent_waits_and_is_sent_in_order() {
        let (mut connection, host) = pair();
        for i in 0..64_u32 {
            connection.out.push_data(i, Channel::Stdout, &[i as u8; 32 << 10]);
        }
        connection.flush().unwrap();
        assert!(!connection.out.is_empty() && !connection.out.has_room());
        let mut got = Vec::new();
        let mut scratch = vec![0; CHUNK];
        while !(connection.out.is_empty() && got.len() == 64 * ((32 << 10) + HEADER_LEN)) {
            if let Ok(n) = read(&host, &mut scratch[..]) {
                got.extend_from_slice(&scratch[..n]);
            }
            connection.notify(Ready { write: true, ..Ready::default() });
            connection.flush().unwrap();
        }
        let mut frames = Vec::new();
        assert_eq!(parse(&got, &mut frames).unwrap(), got.len());
        assert!((0..64).all(|i| frames[i].stream == i as u32 && frames[i].body[0] == i as u8));
    }
}
