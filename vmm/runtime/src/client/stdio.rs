//! Standard streams, each read or written by a thread of its own.
//!
//! They may be terminals, files or pipes, and other processes may share them, so they must not be made non-blocking.
//! The threads are not of the async runtime's pool, whose shutdown would wait for a read that never returns.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::{mpsc, oneshot};

/// Bytes of one read.
pub(super) const CHUNK: usize = 64 << 10;

/// Number of chunks that may wait for the other side.
const WAITING: usize = 4;

/// Reads `fd` to its end, or until the receiver is dropped.
pub(super) fn read_in_background(fd: OwnedFd) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(WAITING);
    let mut file = File::from(fd);
    let read = move || {
        loop {
            let mut chunk = vec![0; CHUNK];
            let n = match file.read(&mut chunk) {
                Ok(n) => n,
                Err(e) if wait(&e, &file, PollFlags::IN) => continue,
                Err(_) => 0,
            };
            chunk.truncate(n);
            if n == 0 || sender.blocking_send(chunk).is_err() {
                return;
            }
        }
    };
    spawn("stdin", read);
    receiver
}

/// The sender to a writing thread.
pub(super) struct Writer {
    chunks: mpsc::Sender<Vec<u8>>,
    done: oneshot::Receiver<io::Result<()>>,
}

impl Writer {
    /// Sends a chunk. False once writing has failed; [`finish`](Self::finish) returns the error.
    pub(super) async fn write(&self, chunk: Vec<u8>) -> bool {
        self.chunks.send(chunk).await.is_ok()
    }

    /// Waits until everything is written, or writing has failed.
    pub(super) async fn finish(self) -> io::Result<()> {
        drop(self.chunks);
        self.done.await.unwrap_or_else(|_| Err(io::Error::other("no thread writes to it")))
    }
}

/// Writes chunks to `fd`.
pub(super) fn write_in_background(fd: OwnedFd) -> Writer {
    let (sender, mut receiver) = mpsc::channel::<Vec<u8>>(WAITING);
    let (end, done) = oneshot::channel();
    let mut file = File::from(fd);
    let write = move || {
        let mut written = Ok(());
        while let (Ok(()), Some(chunk)) = (&written, receiver.blocking_recv()) {
            written = write_all(&mut file, &chunk);
        }
        drop(receiver);
        let _ = end.send(written);
    };
    spawn("stdout", write);
    Writer { chunks: sender, done }
}

fn write_all(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(e) if wait(&e, file, PollFlags::OUT) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Whether to retry: after a signal, or once a descriptor that another process made non-blocking is ready.
fn wait(error: &io::Error, fd: &File, flags: PollFlags) -> bool {
    match error.kind() {
        io::ErrorKind::Interrupted => true,
        io::ErrorKind::WouldBlock => {
            poll(&mut [PollFd::from_borrowed_fd(fd.as_fd(), flags)], None).is_ok()
        }
        _ => false,
    }
}

/// Starts a thread. If that fails, the closure and its channel are dropped, which looks like the end of the stream.
fn spawn(name: &str, work: impl FnOnce() + Send + 'static) {
    if let Err(error) = thread::Builder::new().name(name.to_owned()).spawn(work) {
        tracing::error!(%error, "cannot start a thread for {name}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn bytes_go_through_a_pipe_that_blocks_and_one_that_does_not() {
        for nonblocking in [false, true] {
            let (from, to) = rustix::pipe::pipe().unwrap();
            for end in [&from, &to] {
                rustix::io::ioctl_fionbio(end, nonblocking).unwrap();
            }
            let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
            let got = block_on(async {
                let write = async {
                    let writer = write_in_background(to);
                    for chunk in bytes.chunks(10_000) {
                        assert!(writer.write(chunk.to_vec()).await);
                    }
                    writer.finish().await.unwrap();
                };
                let read = async {
                    let mut chunks = read_in_background(from);
                    let mut got = Vec::new();
                    while let Some(chunk) = chunks.recv().await {
                        got.extend(chunk);
                    }
                    got
                };
                tokio::join!(write, read).1
            });
            assert!(got == bytes);
        }
    }

    #[test]
    fn finish_returns_the_error_of_a_failed_write() {
        let end = |to: OwnedFd| {
            block_on(async {
                let writer = write_in_background(to);
                while writer.write(vec![0; 10]).await {}
                writer.finish().await.unwrap_err().kind()
            })
        };
        let (from, to) = rustix::pipe::pipe().unwrap();
        drop(from);
        assert_eq!(end(to), io::ErrorKind::BrokenPipe);
        let full = File::options().write(true).open("/dev/full").unwrap();
        assert_eq!(end(full.into()), io::ErrorKind::StorageFull);
    }
}
