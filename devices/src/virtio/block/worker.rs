//! The thread of a disk: it sleeps until the guest rings, then serves all that is in the ring.

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
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};

use super::counters::BlockCounters;
use super::request::{self, ID_LEN, RequestError};
use super::{HostFull, QUEUE_SIZE};
use crate::virtio::chain::{Chain, Table};
use crate::virtio::{QueueInterrupt, has_feature};
use crate::{GuestMemory, LogBudget};

/// The driver is told of served requests after so many of them or so many bytes at the latest, so
/// that it works on them while the rest of a long ring is served.
const BATCH_REQUESTS: u32 = 32;
const BATCH_BYTES: usize = 1 << 20;

/// What a disk's thread is to do from activation to reset.
pub(super) struct Job {
    pub(super) queue: Queue,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) doorbell: Doorbell,
    pub(super) interrupt: QueueInterrupt,
    /// The negotiated features.
    pub(super) features: u64,
    /// The driver's choice, if it negotiated to have one.
    pub(super) write_back: Arc<AtomicBool>,
    pub(super) stop: Arc<AtomicBool>,
    /// Takes the queue back when the job is over.
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
}

/// The part of a disk that works on a thread of its own, which the machine makes: see
/// [`run`](Self::run).
#[must_use = "a disk whose worker does not run cannot be activated"]
pub struct BlockWorker {
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
            if let Err(e) = self.serve(&mut job) {
                self.warn(format_args!("stopped serving: {e}"));
                // Nobody else is there to be told.
                let _ = job.interrupt.device_failed();
            }
            if let Err(e) = self.disk.write_back() {
                self.failed(&e.into());
            }
            // The device waits for it, or is gone.
            let _ = job.done.send(job.queue);
        }
    }

    /// Serves until the job is stopped.
    fn serve(&mut self, job: &mut Job) -> Result<(), ServeError> {
        while !job.stop.load(Ordering::Acquire) {
            self.drain(job)?;
            wait(&job.doorbell)?;
            job.doorbell.clear()?;
        }
        Ok(())
    }

    /// Serves all requests in the ring.
    fn drain(&mut self, job: &mut Job) -> Result<(), ServeError> {
        let memory = Arc::clone(&job.memory);
        let table = Table::of(&job.queue, job.features);
        let mut unsignalled = Unsignalled::default();
        loop {
            job.queue.disable_notification(&*memory)?;
            while let Some(descriptors) = job.queue.iter(&*memory)?.next() {
                let head = descriptors.head_index();
                let descriptors = table.chain(head);
                let (written, moved) = match Chain::collect(&memory, descriptors, QUEUE_SIZE.into())
                {
                    Ok(chain) => self.execute(chain, job),
                    Err(e) => {
                        self.warn(format_args!("{e}"));
                        (0, 0)
                    }
                };
                job.queue.add_used(&*memory, head, written)?;
                unsignalled.requests += 1;
                unsignalled.bytes = unsignalled.bytes.saturating_add(moved);
                if unsignalled.is_due() {
                    unsignalled.signal(job, &memory)?;
                }
                if job.stop.load(Ordering::Acquire) {
                    break;
                }
            }
            unsignalled.signal(job, &memory)?;
            let more = job.queue.enable_notification(&*memory)?;
            if !more || job.stop.load(Ordering::Acquire) {
                return Ok(());
            }
        }
    }

    /// Returns the bytes written to guest memory, and the bytes moved.
    fn execute(&mut self, chain: Chain<'_>, job: &Job) -> (u32, usize) {
        let outcome = request::execute(&mut self.disk, &self.id, job.writes_through(), chain);
        self.counters.count(&outcome);
        match &outcome.result {
            Ok(()) => self.is_full &= !outcome.writes,
            Err(e) => self.failed(e),
        }
        (outcome.written, outcome.moved)
    }

    /// Logs a failed request. Tells the machine once when the host has become full.
    pub(super) fn failed(&mut self, error: &RequestError) {
        self.warn(format_args!("{error}"));
        if error.is_host_full()
            && !std::mem::replace(&mut self.is_full, true)
            && let Some(tell) = &self.host_full
        {
            tell();
        }
    }

    fn warn(&mut self, message: fmt::Arguments<'_>) {
        let id = self.id.split(|byte| *byte == 0).next().unwrap_or_default().escape_ascii();
        self.log.warn(format_args!("virtio-blk {id}: {message}"));
    }
}

/// What the driver has not been told of yet.
#[derive(Default)]
struct Unsignalled {
    requests: u32,
    bytes: usize,
}

impl Unsignalled {
    fn is_due(&self) -> bool {
        self.requests >= BATCH_REQUESTS || self.bytes >= BATCH_BYTES
    }

    fn signal(&mut self, job: &mut Job, memory: &GuestMemory) -> Result<(), ServeError> {
        if self.requests > 0 && job.queue.needs_notification(memory)? {
            job.interrupt.used_buffer()?;
        }
        *self = Self::default();
        Ok(())
    }
}

/// Why a ring can no longer be served.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("virtqueue: {0}")]
    Queue(#[from] QueueError),
    #[error("doorbell or interrupt: {0}")]
    Io(#[from] io::Error),
}

/// Sleeps until the doorbell rings.
fn wait(doorbell: &Doorbell) -> io::Result<()> {
    let mut fds = [PollFd::new(doorbell, PollFlags::IN)];
    loop {
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
            Ok(_) => return Ok(()),
        }
    }
}
