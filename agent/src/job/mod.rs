//! Jobs: requests whose work may block, each on a thread of its own. They unpack layers, copy files in and
//! out, and read slow files of the kernel.
//!
//! ```text
//!  server ── receive ──▶ Input  ─▶ work, on its thread
//!         ◀─ advance ─── Output ◀─┘      (wakes the server by an eventfd)
//! ```
//!
//! Data from the host reaches the thread without a copy. Bytes that the thread has read are granted to the
//! host as credit again, so at most one window is queued. A thread that writes waits while [`OUTPUT`] bytes
//! have not been sent.
//!
//! May use the session of `host`; `work` may also use `unpack`, `pack` and `inspect`.

pub(crate) mod work;

use std::io::{self, BufRead, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use boxlite_proto::frame::{Channel, MAX_DATA};
use boxlite_proto::message::Response;
use boxlite_proto::session::Chunks;
use bytes::Bytes;

use crate::host::connection::{ReplyTo, Session};

/// Stack of a job's thread, in bytes. The removal of deep directories recurses.
const STACK: usize = 1 << 20;

/// Limit on bytes that a thread has written and that are not sent.
const OUTPUT: usize = 256 << 10;

/// A job in progress, as the server sees it.
pub(crate) struct Job {
    pub(crate) reply_to: ReplyTo,
    /// None once the host has sent everything.
    input: Option<Sender<Piece>>,
    shared: Arc<Shared>,
}

enum Piece {
    Data(Bytes),
    End,
}

/// State that the thread and the server share.
struct Shared {
    state: Mutex<State>,
    /// Wakes a writer: there is room, or the job was cancelled.
    room: Condvar,
    /// An eventfd that wakes the server when the thread has changed the state.
    bell: Arc<OwnedFd>,
}

#[derive(Default)]
struct State {
    /// Bytes of input that the thread has read, and for which the host has no credit yet.
    taken: usize,
    /// Data that is written and not sent: at most [`OUTPUT`].
    output: Chunks,
    /// The result is not wanted any more.
    cancelled: bool,
    result: Option<Response>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        // Fails only if the counter is full, and then the server wakes anyway.
        let _ = rustix::io::write(&*self.bell, &1_u64.to_ne_bytes());
    }
}

impl Job {
    /// Starts `work`, whose output goes to the stream `reply_to`. The eventfd `bell` is signalled when
    /// [`advance`](Self::advance) has work.
    pub(crate) fn start(
        reply_to: ReplyTo,
        bell: Arc<OwnedFd>,
        work: impl FnOnce(Input, Output) -> Response + Send + 'static,
    ) -> io::Result<Self> {
        let (input, pieces) = channel();
        let shared = Arc::new(Shared { state: Mutex::default(), room: Condvar::new(), bell });
        let for_thread = Arc::clone(&shared);
        std::thread::Builder::new().name("job".into()).stack_size(STACK).spawn(move || {
            let input = Input {
                pieces,
                current: Bytes::new(),
                read: 0,
                ended: false,
                shared: Arc::clone(&for_thread),
            };
            let response = work(input, Output(Arc::clone(&for_thread)));
            for_thread.lock().result = Some(response);
            for_thread.ring();
        })?;
        Ok(Self { reply_to, input: Some(input), shared })
    }

    /// Passes a piece of input to the thread.
    pub(crate) fn receive(&mut self, data: Bytes) {
        if let Some(input) = &self.input {
            // Fails only if the thread has finished, which the host is about to be told.
            let _ = input.send(Piece::Data(data));
        }
    }

    /// Ends the input.
    pub(crate) fn end(&mut self) {
        if let Some(input) = self.input.take() {
            let _ = input.send(Piece::End);
        }
    }

    /// Cancels the job: the thread's reads and writes fail.
    pub(crate) fn cancel(&mut self) {
        self.input = None;
        let mut state = self.shared.lock();
        state.cancelled = true;
        state.output.clear();
        self.shared.room.notify_one();
    }

    /// Whether [`advance`](Self::advance) can send output now.
    pub(crate) fn can_advance(&self, session: &Session) -> bool {
        session.output_room(self.reply_to.stream, Channel::Stdout) > 0
            && !self.shared.lock().output.is_empty()
    }

    /// Whether the thread has finished.
    pub(crate) fn is_finished(&self) -> bool {
        self.shared.lock().result.is_some()
    }

    /// Grants credit for the input that was read, and sends output, if the connection is still open. Returns
    /// the result once all output before it has been sent.
    pub(crate) fn advance(&mut self, session: Option<&mut Session>) -> Option<Response> {
        let stream = self.reply_to.stream;
        let mut state = self.shared.lock();
        let taken = std::mem::take(&mut state.taken);
        match session {
            Some(session) => {
                session.input_taken(stream, taken);
                session.send_output_from(stream, Channel::Stdout, &mut state.output);
            }
            None => state.output.clear(),
        }
        self.shared.room.notify_one();
        if state.output.is_empty() { state.result.take() } else { None }
    }
}

/// The data of the host, as a reader.
pub(crate) struct Input {
    pieces: Receiver<Piece>,
    current: Bytes,
    read: usize,
    ended: bool,
    shared: Arc<Shared>,
}

impl BufRead for Input {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.read == self.current.len() && !self.ended {
            let taken = self.current.len();
            if taken > 0 {
                self.shared.lock().taken += taken;
                self.shared.ring();
                self.current = Bytes::new();
                self.read = 0;
            }
            match self.pieces.recv() {
                Ok(Piece::Data(data)) => self.current = data,
                // A later read finds the end again.
                Ok(Piece::End) => self.ended = true,
                // The job was cancelled.
                Err(_) => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        Ok(self.current.get(self.read..).unwrap_or_default())
    }

    fn consume(&mut self, n: usize) {
        self.read += n;
    }
}

impl Read for Input {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}

/// The output to the host, as a writer that blocks while [`OUTPUT`] bytes are not sent.
pub(crate) struct Output(Arc<Shared>);

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        let n = loop {
            if state.cancelled {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let n = data.len().min(OUTPUT.saturating_sub(state.output.len())).min(MAX_DATA);
            if n > 0 || data.is_empty() {
                break n;
            }
            state = self.0.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        state.output.extend(data.get(..n).unwrap_or_default());
        drop(state);
        self.0.ring();
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
