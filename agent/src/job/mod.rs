//! Work that may block, each on a thread of its own: unpacking a layer, copying files in and out,
//! asking the kernel what takes it time to answer.
//!
//! What the host sends is handed to the thread without copying; what the thread has taken comes back
//! as credit, so at most a window is ever in between. The other way, the thread waits while what it wrote has not
//! been sent.

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

/// Removing deep directories recurses.
const STACK: usize = 1 << 20;

/// A thread that has written so much that was not sent waits.
const OUTPUT: usize = 256 << 10;

/// Work under way, as the server sees it.
pub(crate) struct Job {
    pub(crate) reply_to: ReplyTo,
    /// None once the host has sent all.
    input: Option<Sender<Piece>>,
    shared: Arc<Shared>,
}

enum Piece {
    Data(Bytes),
    End,
}

/// What the thread and the server tell each other.
struct Shared {
    state: Mutex<State>,
    /// The server changed something that a writer waits for.
    room: Condvar,
    /// Rung when the thread has changed something.
    bell: Arc<OwnedFd>,
}

#[derive(Default)]
struct State {
    /// Bytes of input that the thread has read and the host does not know of.
    taken: usize,
    /// What was written and not sent: at most [`OUTPUT`].
    output: Chunks,
    /// Nobody is interested any more.
    cancelled: bool,
    result: Option<Response>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        // Full, the bell rings anyway.
        let _ = rustix::io::write(&*self.bell, &1_u64.to_ne_bytes());
    }
}

impl Job {
    /// Starts `work`, whose output goes to the stream `reply_to`. `bell`, an eventfd, is rung when
    /// [`advance`](Self::advance) has something to do.
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

    /// The next piece of input has arrived.
    pub(crate) fn receive(&mut self, data: Bytes) {
        if let Some(input) = &self.input {
            // Fails only if the thread is done, which the host is about to learn.
            let _ = input.send(Piece::Data(data));
        }
    }

    /// The input is complete.
    pub(crate) fn end(&mut self) {
        if let Some(input) = self.input.take() {
            let _ = input.send(Piece::End);
        }
    }

    /// Nobody is interested any more: the thread finds its input cut off and its output refused.
    pub(crate) fn cancel(&mut self) {
        self.input = None;
        let mut state = self.shared.lock();
        state.cancelled = true;
        state.output.clear();
        self.shared.room.notify_one();
    }

    /// Whether [`advance`](Self::advance) would send something that had no room before.
    pub(crate) fn can_advance(&self, session: &Session) -> bool {
        session.output_room(self.reply_to.stream, Channel::Stdout) > 0
            && !self.shared.lock().output.is_empty()
    }

    /// Whether the thread has done all that it does.
    pub(crate) fn is_over(&self) -> bool {
        self.shared.lock().result.is_some()
    }

    /// Grants credit for what has been taken and sends output, if the connection is there; returns the result
    /// once there is one and everything before it has been sent.
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

/// What the host sends, as a reader.
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
                // Whoever reads on past the end finds it again.
                Ok(Piece::End) => self.ended = true,
                // The host has given up.
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

/// The way to the host, as a writer that waits while too much was not sent.
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
