//! Frames on an asynchronous byte stream: a reader that hands out bodies without copying them, and
//! an outbox that gathers what many tasks want to send into few large writes.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use boxlite_proto::frame::{Frame, FrameError, HEADER_LEN, Header, Kind};
use bytes::{Buf, BytesMut};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::Notify;

/// Bytes asked of the connection in one read: room for several data frames.
const READ_SIZE: usize = 256 << 10;

/// Buffers above this size are given back once they are empty.
const KEEP: usize = 2 * READ_SIZE;

/// Locks `mutex`. Poisoning is ignored: nothing here panics while holding a lock halfway through a
/// change.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A frame that still lies in its reader's buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameRef<'a> {
    /// Stream and kind, checked.
    pub(crate) header: Header,
    /// The body.
    pub(crate) body: &'a [u8],
}

impl FrameRef<'_> {
    /// The body as a message.
    pub(crate) fn decode<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        self.to_frame().decode()
    }

    /// The frame by itself; for everything but data.
    pub(crate) fn to_frame(self) -> Frame {
        Frame {
            stream: self.header.stream,
            kind: self.header.kind,
            body: self.body.to_vec().into(),
        }
    }
}

impl<'a> From<&'a Frame> for FrameRef<'a> {
    fn from(frame: &'a Frame) -> Self {
        let Frame { stream, kind, body } = frame;
        Self { header: Header { len: body.len(), stream: *stream, kind: *kind }, body }
    }
}

/// Reads frames.
#[derive(Debug)]
pub(crate) struct FrameReader<R> {
    io: R,
    buffer: BytesMut,
    /// Bytes at the buffer's start that the last frame took.
    taken: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// A reader of the frames of `io`.
    pub(crate) fn new(io: R) -> Self {
        Self { io, buffer: BytesMut::new(), taken: 0 }
    }

    /// The next frame; `None` when the connection ended between two. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Option<FrameRef<'_>>, FrameError> {
        self.buffer.advance(std::mem::take(&mut self.taken));
        let Some(header) = self.fill().await? else { return Ok(None) };
        self.taken = HEADER_LEN + header.len;
        Ok(Some(FrameRef { header, body: &self.buffer[HEADER_LEN..self.taken] }))
    }

    /// Reads until the buffer starts with a whole frame.
    async fn fill(&mut self) -> Result<Option<Header>, FrameError> {
        loop {
            let missing = match self.buffer.first_chunk() {
                None => HEADER_LEN,
                Some(header) => {
                    let header = Header::decode(header)?;
                    match (HEADER_LEN + header.len).checked_sub(self.buffer.len()) {
                        None | Some(0) => return Ok(Some(header)),
                        Some(missing) => missing,
                    }
                }
            };
            if self.buffer.is_empty() && self.buffer.capacity() > KEEP {
                self.buffer = BytesMut::new();
            }
            if self.buffer.capacity() - self.buffer.len() < missing.max(READ_SIZE / 4) {
                self.buffer.reserve(missing.max(READ_SIZE));
            }
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                };
            }
        }
    }

    /// The reading and the writing half of the connection.
    pub(crate) fn split(self) -> (FrameReader<ReadHalf<R>>, WriteHalf<R>)
    where
        R: AsyncWrite,
    {
        let Self { io, buffer, taken } = self;
        let (io, write) = tokio::io::split(io);
        (FrameReader { io, buffer, taken }, write)
    }

    /// The connection, to write to.
    pub(crate) fn io_mut(&mut self) -> &mut R {
        &mut self.io
    }
}

/// Where frames wait for the connection. What comes together while a write is under way leaves in
/// the next one.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<OutboxState>,
    /// There is something to write, or nothing ever will be.
    filled: Notify,
    /// A write ended.
    drained: Notify,
}

#[derive(Debug, Default)]
struct OutboxState {
    waiting: Vec<u8>,
    closed: bool,
}

impl Outbox {
    /// Adds a frame of which `header` and `body` are given apart.
    pub(crate) fn push_parts(&self, stream: u32, kind: Kind, body: &[u8]) {
        let mut state = lock(&self.state);
        if state.closed {
            return;
        }
        let header = Header { len: body.len(), stream, kind }.encode();
        state.waiting.reserve(header.len() + body.len());
        state.waiting.extend_from_slice(&header);
        state.waiting.extend_from_slice(body);
        if state.waiting.len() == header.len() + body.len() {
            drop(state);
            self.filled.notify_one();
        }
    }

    /// Adds a frame.
    pub(crate) fn push(&self, frame: &Frame) {
        self.push_parts(frame.stream, frame.kind, &frame.body);
    }

    /// Takes no more frames; [`drain`](Self::drain) ends once those that wait are written.
    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.filled.notify_one();
        self.drained.notify_waiters();
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        lock(&self.state).waiting.len()
    }

    /// Waits until fewer than `limit` bytes wait, or nothing is taken any more.
    pub(crate) async fn room(&self, limit: usize) {
        loop {
            let drained = self.drained.notified();
            tokio::pin!(drained);
            drained.as_mut().enable();
            {
                let state = lock(&self.state);
                if state.closed || state.waiting.len() < limit {
                    return;
                }
            }
            drained.await;
        }
    }

    /// Writes what is pushed to `io` until [`close`](Self::close), or until the connection fails.
    pub(crate) async fn drain(&self, mut io: impl AsyncWrite + Unpin) -> io::Result<()> {
        let mut batch = Vec::new();
        loop {
            let closed = {
                let mut state = lock(&self.state);
                std::mem::swap(&mut state.waiting, &mut batch);
                state.closed
            };
            if batch.is_empty() {
                io.flush().await?;
                if closed {
                    return io.shutdown().await;
                }
                self.filled.notified().await;
                continue;
            }
            self.drained.notify_waiters();
            io.write_all(&batch).await?;
            batch.clear();
            batch.shrink_to(KEEP);
        }
    }
}
