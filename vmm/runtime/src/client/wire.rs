//! Frames on an asynchronous byte stream: a reader, and an outbox that gathers frames into few large writes.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use boxlite_proto::frame::{Frame, FrameError};
use boxlite_proto::session::{self, Assembler, Chunks};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::Notify;

/// Locks `mutex`. Ignores poisoning: no code panics in the middle of a change under a lock.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads frames.
#[derive(Debug)]
pub(crate) struct FrameReader<R> {
    io: R,
    /// Data that was read and not returned yet.
    pub(super) input: Assembler,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// A reader of the frames of `io`.
    pub(crate) fn new(io: R) -> Self {
        Self { io, input: Assembler::default() }
    }

    /// Returns the next frame, or `None` if the connection ended between two frames. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = self.input.next_frame()? {
                return Ok(Some(frame));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// Reads once. False if the connection ended between two frames. Cancel safe.
    pub(super) async fn fill(&mut self) -> Result<bool, FrameError> {
        let read = self.io.read(self.input.space()).await?;
        self.input.filled(read);
        match read {
            0 if self.input.is_empty() => Ok(false),
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            _ => Ok(true),
        }
    }

    /// Splits the connection into its reading and its writing half.
    pub(crate) fn split(self) -> (FrameReader<ReadHalf<R>>, WriteHalf<R>)
    where
        R: AsyncWrite,
    {
        let Self { io, input } = self;
        let (io, write) = tokio::io::split(io);
        (FrameReader { io, input }, write)
    }

    /// The connection, for writing.
    pub(crate) fn io_mut(&mut self) -> &mut R {
        &mut self.io
    }
}

/// Writes the batches of `take` to `io`, and waits for `filled` while they are empty, until `take` reports the end or
/// the connection fails.
pub(super) async fn drain(
    mut io: impl AsyncWrite + Unpin,
    filled: &Notify,
    mut take: impl FnMut() -> (Chunks, bool),
) -> io::Result<()> {
    loop {
        let (mut batch, closed) = take();
        if !batch.is_empty() {
            io.write_all_buf(&mut batch).await?;
            continue;
        }
        io.flush().await?;
        if closed {
            return io.shutdown().await;
        }
        filled.notified().await;
    }
}

/// A queue of frames from many tasks for one connection. Frames that are pushed during a write are sent by the next
/// write together.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<OutboxState>,
    /// Wakes the writer: frames wait, or the outbox is closed.
    filled: Notify,
    /// Wakes [`room`](Outbox::room): a write has started, or the outbox is closed.
    drained: Notify,
}

#[derive(Debug, Default)]
struct OutboxState {
    frames: session::Outbox,
    closed: bool,
}

impl Outbox {
    /// Adds a frame.
    pub(crate) fn push(&self, frame: Frame) {
        let mut state = lock(&self.state);
        if state.closed {
            return;
        }
        let was_empty = state.frames.is_empty();
        state.frames.push(frame);
        drop(state);
        if was_empty {
            self.filled.notify_one();
        }
    }

    /// Closes the outbox for new frames. [`drain`](Self::drain) returns once the waiting ones are written.
    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.filled.notify_one();
        self.drained.notify_waiters();
    }

    /// Number of waiting bytes.
    pub(crate) fn len(&self) -> usize {
        lock(&self.state).frames.len()
    }

    /// Waits until fewer than `limit` bytes wait, or the outbox is closed.
    pub(crate) async fn room(&self, limit: usize) {
        loop {
            let drained = self.drained.notified();
            tokio::pin!(drained);
            drained.as_mut().enable();
            {
                let state = lock(&self.state);
                if state.closed || state.frames.len() < limit {
                    return;
                }
            }
            drained.await;
        }
    }

    /// Writes pushed frames to `io` until [`close`](Self::close), or until the connection fails.
    pub(crate) async fn drain(&self, io: impl AsyncWrite + Unpin) -> io::Result<()> {
        let take = || {
            let mut state = lock(&self.state);
            let batch = state.frames.take();
            self.drained.notify_waiters();
            (batch, state.closed)
        };
        drain(io, &self.filled, take).await
    }
}
