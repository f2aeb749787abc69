//! The thread of a disk: sleeps until the driver notifies, then serves the requests in the ring.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};

use boxlite_disk::Disk;
use boxlite_hv::Doorbell;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH};
use virtio_queue::Queue;

use super::HostFull;
use super::counters::BlockCounters;
use super::request::{self, ID_LEN, Request, RequestError};
use crate::virtio::chain::Chain;
use crate::virtio::has_feature;
use crate::virtio::queue::{NeedsReset, Notifier, Virtqueue};
use crate::{GuestMemory, LogBudget};

/// The driver is interrupted after this many requests or bytes at the latest, so that it handles them while the rest
/// of a long ring is served.
const BATCH_REQUESTS: u32 = 32;
const BATCH_BYTES: usize = 1 << 20;

/// Requests served in a turn, before the thread checks whether it is to stop.
const BUDGET: usize = 1024;

/// The work of a disk's thread from activation to reset.
pub(super) struct Job {
    pub(super) queue: Virtqueue,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) doorbell: Doorbell,
    pub(super) notifier: Notifier,
    /// The negotiated features.
    pub(super) features: u64,
    /// The driver's choice, if it negotiated to have one.
    pub(super) write_back: Arc<AtomicBool>,
    pub(super) stop: Arc<AtomicBool>,
    /// Returns the queue when the job is over.
    pub(super) done: Sender<Queue>,
}

impl Job {
    /// Whether a write is answered only when it is on stable storage: for a driver that asks for
    /// it, or cannot flush (virtio 1.3, section 5.2.6.2).
    fn writes_through(&self) -> bool {
        let chosen = has_feature(self.features, VIRTIO_BLK_F_CONFIG_WCE)
            && !self.write_back.load(Ordering::Relaxed);
        chosen || !has_feature(self.features, VIRTIO_BLK_F_FLUSH)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Sleeps until the driver notifies, or the job is stopped.
    fn wait(&mut self) -> Result<(), NeedsReset> {
        wait(&self.doorbell).map_err(|e| self.notifier.fail(format_args!("doorbell: {e}")))
    }
}

/// The part of a disk that runs on a thread of its own, which the VMM starts: see
/// [`run`](Self::run).
#[must_use = "a disk whose worker does not run cannot be activated"]
pub struct BlockWorker {
    /// As in `virtio-blk vda`, for messages.
    pub(super) name: String,
    pub(super) disk: Disk,
    pub(super) id: [u8; ID_LEN],
    pub(super) jobs: Receiver<Job>,
    pub(super) host_full: Option<HostFull>,
    pub(super) is_full: bool,
    pub(super) counters: Arc<BlockCounters>,
    pub(super) log: LogBudget,
}

impl BlockWorker {
    /// Serves the disk on the calling thread until its [`BlockDevice`](super::BlockDevice) is
    /// dropped, then closes the image.
    pub fn run(mut self) {
        while let Ok(mut job) = self.jobs.recv() {
            // An error has been reported already.
            let _ = self.serve(&mut job);
            if let Err(e) = self.disk.write_back() {
                self.failed(&e.into());
            }
            // The device waits for the queue, or was dropped.
            let _ = job.done.send(job.queue.into_queue());
        }
    }

    /// Serves until the job is stopped or fails.
    fn serve(&mut self, job: &mut Job) -> Result<(), NeedsReset> {
        while !job.is_stopped() {
            self.drain(job)?;
            if !job.queue.is_turn_over() {
                job.wait()?;
            }
        }
        Ok(())
    }

    /// Serves the requests in the ring, a turn's worth at most.
    fn drain(&mut self, job: &mut Job) -> Result<(), NeedsReset> {
        let memory = Arc::clone(&job.memory);
        let mut batch = Batch::default();
        job.queue.begin_turn(BUDGET);
        while !job.is_stopped()
            && let Some(descriptors) = job.queue.pop(&memory)
        {
            let head = descriptors.head_index();
            let (written, moved) =
                match Chain::collect(&memory, descriptors, job.queue.chain_limit()) {
                    Ok(chain) => self.execute(chain, job),
                    Err(e) => {
                        self.warn(format_args!("{e}"));
                        (0, 0)
                    }
                };
            job.queue.add_used(&memory, head, written);
            if batch.is_full_with(moved) {
                batch = Batch::default();
                job.notifier.finish(&memory, &mut [&mut job.queue])?;
            }
        }
        job.notifier.finish(&memory, &mut [&mut job.queue])
    }

    /// Executes the request in a chain and answers it. Returns the number of bytes written to
    /// guest memory, and of bytes moved.
    fn execute(&mut self, mut chain: Chain<'_>, job: &Job) -> (u32, usize) {
        let Some(status) = chain.writable.take_last() else {
            self.counters.count_error();
            self.failed(&RequestError::NoStatus);
            return (0, 0);
        };
        let moved = chain.readable.len().max(chain.writable.len());
        let result = Request::parse(chain, &self.disk).and_then(|request| {
            let written = request.execute(&mut self.disk, &self.id, job.writes_through())?;
            self.counters.count(&request);
            self.is_full &= !request.writes();
            Ok(written)
        });
        if let Err(e) = &result {
            self.counters.count_error();
            self.failed(e);
        }
        (request::answer(status, &result), moved)
    }

    /// Logs a failure. Calls `host_full` once when the host has run out of space.
    pub(super) fn failed(&mut self, error: &RequestError) {
        self.warn(format_args!("{error}"));
        if error.is_host_full()
            && !std::mem::replace(&mut self.is_full, true)
            && let Some(report) = &self.host_full
        {
            report();
        }
    }

    fn warn(&self, message: fmt::Arguments<'_>) {
        self.log.warn(format_args!("{}: {message}", self.name));
    }
}

/// The requests since the last interrupt.
#[derive(Default)]
struct Batch {
    requests: u32,
    bytes: usize,
}

impl Batch {
    /// Counts a request that moved `bytes` bytes. Returns whether to interrupt the driver now.
    fn is_full_with(&mut self, bytes: usize) -> bool {
        self.requests += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        self.requests >= BATCH_REQUESTS || self.bytes >= BATCH_BYTES
    }
}

/// Sleeps until the doorbell rings.
fn wait(doorbell: &Doorbell) -> io::Result<()> {
    let mut fds = [PollFd::new(doorbell, PollFlags::IN)];
    loop {
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
            Ok(_) => return doorbell.clear().map(drop),
        }
    }
}
