//! Work that may block, each on a thread of its own: unpacking a layer, copying files in and out,
//! asking the kernel what takes it time to answer.
//!
//! What the host sends is handed to the thread without copying; what the thread has taken comes back
//! as credit, so at most a window is ever in between. The same holds the other way: the thread waits
//! for credit before it writes.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use boxlite_proto::credit::{CreditError, ReceiveWindow, SendWindow};
use boxlite_proto::frame::{Channel, Frame, MAX_DATA};
use boxlite_proto::message::Response;

use crate::connection::{Outbox, Place};

/// Removing deep directories recurses.
const STACK: usize = 1 << 20;

/// Work under way, as the server sees it.
pub(crate) struct Job {
    pub(crate) place: Place,
    /// None once the host has sent all.
    input: Option<Sender<Piece>>,
    window: ReceiveWindow,
    shared: Arc<Shared>,
}

enum Piece {
    Data(Vec<u8>),
    End,
}

/// What the thread and the server tell each other.
struct Shared {
    state: Mutex<State>,
    /// The server changed something that a writer waits for.
    granted: Condvar,
    /// Rung when the thread has changed something.
    bell: Arc<OwnedFd>,
}

#[derive(Default)]
struct State {
    /// Bytes of input that the thread has read and the host does not know of.
    taken: usize,
    /// Output that there was credit for: at most a window.
    output: VecDeque<Vec<u8>>,
    credit: SendWindow,
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
    /// Starts `work` for the stream at `place`. `bell`, an eventfd, is rung when
    /// [`advance`](Self::advance) has something to do.
    pub(crate) fn start(
        place: Place,
        bell: Arc<OwnedFd>,
        work: impl FnOnce(Input, Output) -> Response + Send + 'static,
    ) -> io::Result<Self> {
        let (input, pieces) = channel();
        let shared = Arc::new(Shared { state: Mutex::default(), granted: Condvar::new(), bell });
        let for_thread = Arc::clone(&shared);
        std::thread::Builder::new().name("job".into()).stack_size(STACK).spawn(move || {
            let input = Input {
                pieces,
                current: Vec::new(),
                read: 0,
                ended: false,
                shared: Arc::clone(&for_thread),
            };
            let response = work(input, Output(Arc::clone(&for_thread)));
            for_thread.lock().result = Some(response);
            for_thread.ring();
        })?;
        Ok(Self { place, input: Some(input), window: ReceiveWindow::default(), shared })
    }

    /// The next piece of input has arrived.
    pub(crate) fn receive(&mut self, data: Vec<u8>) -> Result<(), CreditError> {
        self.window.receive(data.len())?;
        if let Some(input) = &self.input {
            // Fails only if the thread is done, which the host is about to learn.
            let _ = input.send(Piece::Data(data));
        }
        Ok(())
    }

    /// The input is complete.
    pub(crate) fn end(&mut self) {
        if let Some(input) = self.input.take() {
            let _ = input.send(Piece::End);
        }
    }

    /// The host took output.
    pub(crate) fn grant(&mut self, bytes: u32) -> Result<(), CreditError> {
        self.shared.lock().credit.grant(bytes)?;
        self.shared.granted.notify_one();
        Ok(())
    }

    /// Nobody is interested any more: the thread finds its input cut off and its output refused.
    pub(crate) fn cancel(&mut self) {
        self.input = None;
        let mut state = self.shared.lock();
        state.cancelled = true;
        state.output.clear();
        self.shared.granted.notify_one();
    }

    /// Whether [`advance`](Self::advance) would send something that had no room before.
    pub(crate) fn can_advance(&self, out: &Outbox) -> bool {
        out.has_room() && !self.shared.lock().output.is_empty()
    }

    /// Whether the thread has done all that it does.
    pub(crate) fn is_over(&self) -> bool {
        self.shared.lock().result.is_some()
    }

    /// Grants credit for what has been taken and sends output; returns the result once there is one
    /// and everything before it has been sent.
    pub(crate) fn advance(&mut self, out: &mut Outbox) -> Option<Response> {
        let stream = self.place.stream;
        let mut state = self.shared.lock();
        if let Some(bytes) = self.window.take(std::mem::take(&mut state.taken)) {
            out.push(&Frame::credit(stream, Channel::Stdin, bytes));
        }
        while out.has_room() {
            let Some(data) = state.output.pop_front() else { return state.result.take() };
            out.push_data(stream, Channel::Stdout, &data);
        }
        None
    }
}

/// What the host sends, as a reader.
pub(crate) struct Input {
    pieces: Receiver<Piece>,
    current: Vec<u8>,
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
                self.current = Vec::new();
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

/// The way to the host, as a writer that waits for credit.
pub(crate) struct Output(Arc<Shared>);

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        let n = loop {
            if state.cancelled {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let n = data.len().min(state.credit.available()).min(MAX_DATA);
            if n > 0 || data.is_empty() {
                break n;
            }
            state = self.0.granted.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        state.credit.spend(n);
        if let Some(data) = data.get(..n).filter(|data| !data.is_empty()) {
            state.output.push_back(data.to_vec());
        }
        drop(state);
        self.0.ring();
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use boxlite_proto::credit::WINDOW;
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn start(work: impl FnOnce(Input, Output) -> Response + Send + 'static) -> Job {
        let bell = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        Job::start(Place { connection: 1, stream: 2 }, Arc::new(bell), work).unwrap()
    }

    fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(value) = look() {
                return value;
            }
            assert!(Instant::now() < deadline, "never");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The length of what was read and whether it ended, as an answer.
    fn read_all(mut input: Input, _: Output) -> Response {
        let mut bytes = Vec::new();
        let result = input.read_to_end(&mut bytes);
        let ended_again = input.fill_buf().is_ok_and(<[u8]>::is_empty);
        match result {
            Ok(_) if ended_again => Response::Started { pid: bytes.len() as u32 },
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted && !ended_again => {
                Response::Done
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_end_of_the_input_is_not_its_being_cut_off() {
        let mut out = Outbox::default();
        let mut job = start(read_all);
        for data in [&b"ab"[..], b"", b"c"] {
            job.receive(data.to_vec()).unwrap();
        }
        job.end();
        assert_eq!(wait_for(|| job.advance(&mut out)), Response::Started { pid: 3 });
        let mut job = start(read_all);
        job.receive(b"ab".to_vec()).unwrap();
        job.cancel();
        job.end();
        assert_eq!(wait_for(|| job.advance(&mut out)), Response::Done);
        let mut job = start(read_all);
        job.receive(vec![0; WINDOW as usize]).unwrap();
        wait_for(|| (job.shared.lock().taken == 0).then_some(()));
        assert!(job.receive(vec![0; 1]).is_err(), "more than the window");
        job.cancel();
    }

    #[test]
    fn output_waits_for_credit_and_is_bounded() {
        let mut job = start(|_, mut output| match output.write_all(&vec![7; 1 << 20]) {
            Ok(()) => Response::Done,
            Err(_) => Response::Started { pid: 1 },
        });
        let waiting = |job: &Job| job.shared.lock().output.iter().map(Vec::len).sum::<usize>();
        wait_for(|| (waiting(&job) == WINDOW as usize).then_some(()));
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(waiting(&job), WINDOW as usize);
        assert!(job.grant(1).is_ok(), "what was spent can be granted again");
        assert!(job.grant(WINDOW).is_err(), "no more than that");
        job.cancel();
        let mut out = Outbox::default();
        assert_eq!(wait_for(|| job.advance(&mut out)), Response::Started { pid: 1 });
        assert!(out.is_empty(), "the output of a cancelled job is sent");
    }
}
