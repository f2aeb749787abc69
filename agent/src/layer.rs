//! A layer on its way from the host to the disk: the server's side of an `UnpackLayer` stream.
//!
//! The unpacking itself blocks, so it has a thread. What arrives is handed over without copying;
//! what the thread has taken comes back as credit, so at most a window is ever in between.

use std::io::{self, BufRead, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use boxlite_proto::credit::{CreditError, ReceiveWindow};
use boxlite_proto::frame::{Channel, Frame};
use boxlite_proto::message::Response;

use crate::connection::Outbox;
use crate::unpack::unpack_in_root;

/// Removing deep directories recurses.
const STACK: usize = 1 << 20;

/// A layer that is being unpacked.
pub(crate) struct Layer {
    pub(crate) connection: u64,
    pub(crate) stream: u32,
    /// None once the host has sent all.
    tar: Option<Sender<Piece>>,
    window: ReceiveWindow,
    progress: Arc<Progress>,
}

enum Piece {
    Data(Vec<u8>),
    End,
}

/// What the thread tells the server.
struct Progress {
    state: Mutex<State>,
    /// Rung when the state has changed.
    bell: OwnedFd,
}

#[derive(Default)]
struct State {
    taken: usize,
    result: Option<Response>,
}

impl Progress {
    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        // Full, the bell rings anyway.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }
}

impl Layer {
    /// Starts unpacking onto the disk mounted at `disk`. `bell`, an eventfd, is rung when
    /// [`advance`](Self::advance) has something to do.
    pub(crate) fn start(
        disk: &'static Path,
        bell: OwnedFd,
        (connection, stream): (u64, u32),
    ) -> io::Result<Self> {
        let (tar, pieces) = channel();
        let progress = Arc::new(Progress { state: Mutex::default(), bell });
        let for_thread = Arc::clone(&progress);
        std::thread::Builder::new().name("unpack".into()).stack_size(STACK).spawn(move || {
            let pieces = Pieces {
                pieces,
                current: Vec::new(),
                read: 0,
                ended: false,
                progress: &for_thread,
            };
            let response = match unpack_in_root(disk, pieces) {
                Ok(unpacked) => {
                    Response::Unpacked { entries: unpacked.entries, bytes: unpacked.bytes }
                }
                Err(e) => Response::Failed(e.failure()),
            };
            for_thread.update(|state| state.result = Some(response));
        })?;
        let window = ReceiveWindow::default();
        Ok(Self { connection, stream, tar: Some(tar), window, progress })
    }

    /// The next piece of the tar has arrived.
    pub(crate) fn receive(&mut self, data: Vec<u8>) -> Result<(), CreditError> {
        self.window.receive(data.len())?;
        if let Some(tar) = &self.tar {
            // Fails only if the thread is done, which the host is about to learn.
            let _ = tar.send(Piece::Data(data));
        }
        Ok(())
    }

    /// The tar is complete.
    pub(crate) fn end(&mut self) {
        if let Some(tar) = self.tar.take() {
            let _ = tar.send(Piece::End);
        }
    }

    /// The connection is gone: the thread finds the tar cut off, and its result interests nobody.
    pub(crate) fn abort(&mut self) {
        self.tar = None;
    }

    /// Grants credit for what has been taken; returns the result once there is one.
    pub(crate) fn advance(&mut self, out: &mut Outbox) -> Option<Response> {
        let state = std::mem::take(
            &mut *self.progress.state.lock().unwrap_or_else(PoisonError::into_inner),
        );
        if let Some(bytes) = self.window.take(state.taken) {
            out.push(&Frame::credit(self.stream, Channel::Stdin, bytes));
        }
        state.result
    }
}

/// The tar as a reader.
struct Pieces<'a> {
    pieces: Receiver<Piece>,
    current: Vec<u8>,
    read: usize,
    ended: bool,
    progress: &'a Progress,
}

impl BufRead for Pieces<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.read == self.current.len() && !self.ended {
            let taken = self.current.len();
            if taken > 0 {
                self.progress.update(|state| state.taken += taken);
                self.current = Vec::new();
                self.read = 0;
            }
            match self.pieces.recv() {
                Ok(Piece::Data(data)) => self.current = data,
                // Whoever reads on past the end finds it again.
                Ok(Piece::End) => self.ended = true,
                // The connection is gone.
                Err(_) => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        Ok(self.current.get(self.read..).unwrap_or_default())
    }

    fn consume(&mut self, n: usize) {
        self.read += n;
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn read(pieces: Vec<Piece>) -> (io::Result<Vec<u8>>, usize, bool) {
        let bell = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let progress = Progress { state: Mutex::default(), bell };
        let (sender, receiver) = channel();
        pieces.into_iter().for_each(|piece| sender.send(piece).unwrap());
        drop(sender);
        let mut reader = Pieces {
            pieces: receiver,
            current: Vec::new(),
            read: 0,
            ended: false,
            progress: &progress,
        };
        let mut bytes = Vec::new();
        let result = reader.read_to_end(&mut bytes).map(|_| bytes);
        let ended_again = reader.fill_buf().is_ok_and(<[u8]>::is_empty);
        (result, progress.state.lock().unwrap().taken, ended_again)
    }

    #[test]
    fn the_end_of_a_layer_is_not_its_being_cut_off() {
        let data = |bytes: &[u8]| Piece::Data(bytes.to_vec());
        let (result, taken, ended_again) =
            read(vec![data(b"ab"), data(b""), data(b"c"), Piece::End]);
        assert_eq!((result.unwrap(), taken, ended_again), (b"abc".to_vec(), 3, true));
        let (result, _, ended_again) = read(vec![data(b"ab")]);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        assert!(!ended_again);
    }
}
