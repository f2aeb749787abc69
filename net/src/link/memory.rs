//! A link in memory: two queues of frames, for tests and fuzz targets.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Link, Offload, OffloadFeatures, Received, Sent};

/// The most frames in each queue.
const CAPACITY: usize = 1024;

/// The network's end.
pub struct MemoryLink {
    queues: Arc<Mutex<Queues>>,
    wake: OwnedFd,
    features: OffloadFeatures,
}

/// The guest's end.
pub struct MemoryGuest {
    queues: Arc<Mutex<Queues>>,
    wake: OwnedFd,
}

#[derive(Default)]
struct Queues {
    from_guest: VecDeque<Vec<u8>>,
    to_guest: VecDeque<(Vec<u8>, Offload)>,
    starved: bool,
}

/// Makes a link with these features, and the guest's end of it.
///
/// # Errors
/// There are no file descriptors left.
pub fn pair(features: OffloadFeatures) -> io::Result<(MemoryLink, MemoryGuest)> {
    let (wake, waker) = std::os::unix::net::UnixStream::pair()?;
    wake.set_nonblocking(true)?;
    waker.set_nonblocking(true)?;
    let queues = Arc::new(Mutex::new(Queues::default()));
    let link = MemoryLink { queues: Arc::clone(&queues), wake: wake.into(), features };
    Ok((link, MemoryGuest { queues, wake: waker.into() }))
}

impl MemoryGuest {
    /// Sends a frame to the network. False if the queue is full.
    pub fn send(&self, frame: impl Into<Vec<u8>>) -> bool {
        {
            let mut queues = lock(&self.queues);
            if queues.from_guest.len() == CAPACITY {
                return false;
            }
            queues.from_guest.push_back(frame.into());
        }
        self.ring();
        true
    }

    /// Receives a frame of the network.
    pub fn receive(&self) -> Option<(Vec<u8>, Offload)> {
        let (frame, starved) = {
            let mut queues = lock(&self.queues);
            (queues.to_guest.pop_front(), std::mem::take(&mut queues.starved))
        };
        if starved {
            self.ring();
        }
        frame
    }

    fn ring(&self) {
        // Fails only if the pipe is full, and then the other side is awake.
        let _ = rustix::io::write(&self.wake, &[0]);
    }
}

fn lock(queues: &Mutex<Queues>) -> MutexGuard<'_, Queues> {
    queues.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link for MemoryLink {
    fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn features(&self) -> OffloadFeatures {
        self.features
    }

    fn woken(&mut self) {
        while rustix::io::read(&self.wake, &mut [0; 256]).is_ok_and(|n| n > 0) {}
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        let Some(frame) = lock(&self.queues).from_guest.pop_front() else { return Ok(None) };
        let len = frame.len().min(buffer.len());
        buffer[..len].copy_from_slice(&frame[..len]);
        // A guest that accepts partial checksums sends them, too.
        Ok(Some(Received { len, checksum_valid: self.features.checksum }))
    }

    fn send(&mut self, frame: &[IoSlice<'_>], offload: Offload) -> io::Result<Sent> {
        let mut queues = lock(&self.queues);
        if queues.to_guest.len() == CAPACITY {
            queues.starved = true;
            return Ok(Sent::Full);
        }
        let frame = frame.iter().flat_map(|piece| piece.iter().copied()).collect();
        queues.to_guest.push_back((frame, offload));
        Ok(Sent::Sent)
    }
}
