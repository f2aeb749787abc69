//! virtio-blk (virtio 1.3, section 5.2): a disk with one queue, served by a thread of its own.
//!
//! ```text
//!   vCPU thread                         disk's thread
//!   BlockDevice ──── Job (queue) ─────▶ BlockWorker ──▶ boxlite-disk ──▶ image files
//!        ◀───────── the queue ─────────────┘
//! ```
//!
//! - `worker`: the thread, which takes requests from the queue
//! - `request`: every kind of request (read, write, flush, discard …), parsed and executed
//! - `counters`: statistics of executed requests
//!
//! Data moves between the image files and guest memory without a copy in between.

mod counters;
mod request;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use boxlite_disk::{Disk, SECTOR};
use boxlite_hv::Doorbell;
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_config::VIRTIO_F_RING_RESET;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};

use self::request::{ID_LEN, MAX_ZERO_SECTORS, MAX_ZERO_SEGMENTS};
use self::worker::Job;
use super::queue::{Notifier, Virtqueue};
use super::{ActivateError, Activation, VirtioDevice, read_bytes};
use crate::LogBudget;

pub use counters::{BlockCounters, BlockCounts};
pub use worker::BlockWorker;

const NAME: &str = "virtio-blk";

/// Linux puts a whole request of this many segments into one slot of the ring (indirect
/// descriptors), so the ring is also the largest request: header, data, status.
const QUEUE_SIZE: u16 = 256;
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// The offset of `writeback` in the configuration space.
const CONFIG_WRITEBACK: u64 = 32;

/// Called when the host has no space for the guest's writes.
type HostFull = Box<dyn Fn() + Send>;

/// A virtio disk.
#[derive(Debug)]
pub struct BlockDevice {
    /// As in `virtio-blk vda`, for messages.
    name: String,
    jobs: Sender<Job>,
    state: State,
    config: Vec<u8>,
    read_only: bool,
    write_back: Arc<AtomicBool>,
    counters: Arc<BlockCounters>,
    log: LogBudget,
}

#[derive(Debug)]
enum State {
    /// The transport has the queue.
    Inactive,
    /// Active, with a queue that the driver did not make ready.
    Idle(Queue),
    Serving {
        stop: Arc<AtomicBool>,
        doorbell: Doorbell,
        done: Receiver<Queue>,
    },
}

impl BlockDevice {
    /// Creates a device for `disk`, and the worker that serves it. The VMM runs the worker on a thread of
    /// its own; the worker returns when the device is dropped.
    ///
    /// `host_full` is called on that thread, once each time the host runs out of space (or quota)
    /// for the guest's writes. The guest sees an I/O error.
    pub fn new(disk: Disk, host_full: Option<HostFull>) -> (Self, BlockWorker) {
        let mut id = [0; ID_LEN];
        for (to, from) in id.iter_mut().zip(disk.name().bytes()) {
            *to = from;
        }
        // The name comes from the VMM, and is used in its log.
        let name = format!("{NAME} {}", disk.name().escape_debug());
        let (jobs, inbox) = channel();
        let counters = Arc::new(BlockCounters::default());
        let log = LogBudget::default();
        let device = Self {
            name: name.clone(),
            jobs,
            state: State::Inactive,
            config: config_space(&disk),
            read_only: disk.is_read_only(),
            write_back: Arc::new(AtomicBool::new(true)),
            counters: Arc::clone(&counters),
            log: log.clone(),
        };
        let worker =
            BlockWorker { name, disk, id, jobs: inbox, host_full, is_full: false, counters, log };
        (device, worker)
    }

    /// The disk's counters, which can be read at any time.
    pub fn counters(&self) -> Arc<BlockCounters> {
        Arc::clone(&self.counters)
    }
}

/// The configuration space (section 5.2.4), but for `writeback`.
fn config_space(disk: &Disk) -> Vec<u8> {
    let sectors = |bytes: u64| u32::try_from(bytes / SECTOR).unwrap_or(u32::MAX).to_le_bytes();
    let mut config = Vec::with_capacity(60);
    config.extend((disk.size() / SECTOR).to_le_bytes());
    config.extend(0u32.to_le_bytes()); // size_max: not offered
    config.extend(SEG_MAX.to_le_bytes());
    config.extend([0; 4]); // geometry: not offered
    config.extend((SECTOR as u32).to_le_bytes()); // blk_size
    config.extend([3, 0]); // physical_block_exp, alignment_offset: blocks of 4 KiB
    config.extend(8u16.to_le_bytes()); // min_io_size, in blocks
    config.extend(sectors(disk.granularity())); // opt_io_size, in blocks
    config.extend([0; 2]); // writeback, unused
    config.extend(1u16.to_le_bytes()); // num_queues
    config.extend(MAX_ZERO_SECTORS.to_le_bytes()); // max_discard_sectors
    config.extend(MAX_ZERO_SEGMENTS.to_le_bytes()); // max_discard_seg
    config.extend(sectors(disk.granularity())); // discard_sector_alignment
    config.extend(MAX_ZERO_SECTORS.to_le_bytes()); // max_write_zeroes_sectors
    config.extend(MAX_ZERO_SEGMENTS.to_le_bytes()); // max_write_zeroes_seg
    config.extend([1, 0, 0, 0]); // write_zeroes_may_unmap, unused
    config
}

impl VirtioDevice for BlockDevice {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_CONFIG_WCE,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_F_RING_RESET,
        ];
        match self.read_only {
            true => bits.push(VIRTIO_BLK_F_RO),
            false => bits.extend([VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]),
        }
        bits.into_iter().fold(0, |features, bit| features | 1 << bit)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.config, offset, data);
        let writeback =
            CONFIG_WRITEBACK.checked_sub(offset).and_then(|at| usize::try_from(at).ok());
        if let Some(byte) = writeback.and_then(|at| data.get_mut(at)) {
            *byte = self.write_back.load(Ordering::Relaxed).into();
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (CONFIG_WRITEBACK, [mode]) = (offset, data) {
            self.write_back.store(*mode != 0, Ordering::Relaxed);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let failed = |reason: &str| ActivateError { device: NAME, reason: reason.to_owned() };
        let Ok([queue]) = <[Queue; 1]>::try_from(activation.queues) else {
            return Err(failed("a disk has one queue"));
        };
        if !queue.ready() {
            self.state = State::Idle(queue);
            return Ok(());
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (done, finished) = channel();
        let doorbell = activation.doorbell.try_clone().map_err(|e| failed(&e.to_string()))?;
        let job = Job {
            queue: Virtqueue::new("request", queue, activation.features),
            memory: activation.memory,
            doorbell: activation.doorbell,
            notifier: Notifier::new(self.name.clone(), activation.interrupt, self.log.clone()),
            features: activation.features,
            write_back: Arc::clone(&self.write_back),
            stop: Arc::clone(&stop),
            done,
        };
        self.jobs.send(job).map_err(|_| failed("the disk's worker has ended"))?;
        self.state = State::Serving { stop, doorbell, done: finished };
        Ok(())
    }

    fn reset(&mut self) -> Vec<Queue> {
        match std::mem::replace(&mut self.state, State::Inactive) {
            State::Inactive => Vec::new(),
            State::Idle(queue) => vec![queue],
            State::Serving { stop, doorbell, done } => {
                stop.store(true, Ordering::Release);
                // Fails only if the doorbell is broken, and then the worker has stopped by itself.
                let _ = doorbell.ring();
                done.recv().into_iter().collect()
            }
        }
    }
}

impl Drop for BlockDevice {
    fn drop(&mut self) {
        self.reset();
    }
}

#[cfg(test)]
mod tests;
