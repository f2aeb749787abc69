//! Bounded pipes between a task and the thread that reads or writes files for it.
//!
//! A pipe that is dropped before its end is marked is broken, so that an aborted sender leaves no incomplete tar that
//! looks complete.

use std::io::{self, BufRead, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// The largest chunk, in bytes.
pub(super) const CHUNK: usize = 64 << 10;

/// Number of chunks in a pipe.
const CHUNKS: usize = 4;

/// From a task to a thread.
pub(super) fn to_thread() -> (Feed, ThreadReader) {
    let (sender, receiver) = channel(CHUNKS);
    (Feed(sender), ThreadReader(Incoming::new(receiver)))
}

/// From a thread to a task.
pub(super) fn from_thread() -> (ThreadWriter, TaskReader) {
    let (sender, receiver) = channel(CHUNKS);
    (ThreadWriter(sender), TaskReader(Incoming::new(receiver)))
}

/// The task's end of a pipe to a thread.
pub(super) struct Feed(Sender<Bytes>);

impl Feed {
    /// Sends a chunk. False if the thread stopped reading.
    pub(super) async fn send(&self, chunk: Bytes) -> bool {
        chunk.is_empty() || self.0.send(chunk).await.is_ok()
    }

    /// Says that this was all.
    pub(super) async fn end(self) {
        // A thread that has stopped needs no end.
        let _ = self.0.send(Bytes::new()).await;
    }
}

/// The receiving side of a pipe. An empty chunk is the end.
struct Incoming {
    chunks: Receiver<Bytes>,
    chunk: Bytes,
    ended: bool,
}

impl Incoming {
    fn new(chunks: Receiver<Bytes>) -> Self {
        Self { chunks, chunk: Bytes::new(), ended: false }
    }

    fn wants_chunk(&self) -> bool {
        self.chunk.is_empty() && !self.ended
    }

    fn take(&mut self, chunk: Option<Bytes>) -> io::Result<()> {
        let Some(chunk) = chunk else {
            let why = "the copy was aborted";
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, why));
        };
        self.ended = chunk.is_empty();
        self.chunk = chunk;
        Ok(())
    }
}

/// The thread's end of a pipe from a task.
pub(super) struct ThreadReader(Incoming);

impl BufRead for ThreadReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.0.wants_chunk() {
            let chunk = self.0.chunks.blocking_recv();
            self.0.take(chunk)?;
        }
        Ok(&self.0.chunk)
    }

    fn consume(&mut self, n: usize) {
        self.0.chunk.advance(n);
    }
}

impl Read for ThreadReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(into)?;
        self.consume(n);
        Ok(n)
    }
}

/// The thread's end of a pipe to a task.
pub(super) struct ThreadWriter(Sender<Bytes>);

impl ThreadWriter {
    /// Says that this was all.
    pub(super) fn end(self) {
        // A task that has stopped needs no end.
        let _ = self.0.blocking_send(Bytes::new());
    }
}

impl Write for ThreadWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let chunk = data.get(..data.len().min(CHUNK)).unwrap_or_default();
        if chunk.is_empty() {
            return Ok(0);
        }
        let sent = self.0.blocking_send(Bytes::copy_from_slice(chunk));
        sent.map(|()| chunk.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The task's end of a pipe from a thread.
pub(super) struct TaskReader(Incoming);

impl AsyncRead for TaskReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let pipe = &mut self.0;
        if pipe.wants_chunk() {
            let chunk = ready!(pipe.chunks.poll_recv(cx));
            pipe.take(chunk)?;
        }
        let n = pipe.chunk.len().min(into.remaining());
        into.put_slice(&pipe.chunk.split_to(n));
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn bytes_come_through_in_both_directions() {
        let sent: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        let (mut writer, mut reader) = from_thread();
        let (feed, mut thread_reader) = to_thread();
        let bytes = sent.clone();
        let there = tokio::task::spawn_blocking(move || {
            writer.write_all(&bytes).unwrap();
            writer.end();
        });
        let back = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            thread_reader.read_to_end(&mut all).map(|_| all)
        });
        let mut buffer = vec![0; 1000];
        loop {
            let n = reader.read(&mut buffer).await.unwrap();
            if n == 0 {
                break;
            }
            assert!(feed.send(Bytes::copy_from_slice(&buffer[..n])).await);
        }
        feed.end().await;
        there.await.unwrap();
        assert!(back.await.unwrap().unwrap() == sent);
    }

    #[tokio::test]
    async fn a_dropped_pipe_is_broken() {
        let (writer, mut reader) = from_thread();
        drop(writer);
        assert!(reader.read(&mut [0]).await.is_err());
        let (feed, mut reader) = to_thread();
        drop(feed);
        let read = tokio::task::spawn_blocking(move || reader.read(&mut [0]).is_err());
        assert!(read.await.unwrap());
    }

    #[tokio::test]
    async fn a_slow_reader_stops_the_writer_and_a_dropped_one_ends_it() {
        let (mut writer, reader) = from_thread();
        let written = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&written);
        let writing = tokio::task::spawn_blocking(move || {
            while writer.write_all(&[0; CHUNK]).is_ok() {
                count.fetch_add(CHUNK, Ordering::Relaxed);
            }
        });
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        assert!(written.load(Ordering::Relaxed) <= CHUNKS * CHUNK);
        drop(reader);
        writing.await.unwrap();
    }
}
