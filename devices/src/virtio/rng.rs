//! virtio-rng (virtio 1.3, section 5.4): the host's random numbers for the guest.

use std::sync::Arc;

use boxlite_hv::Doorbell;
use virtio_bindings::virtio_config::VIRTIO_F_RING_RESET;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};

use super::chain::{Chain, Table};
use super::{ActivateError, Activation, QueueInterrupt, VirtioDevice};
use crate::{Event, GuestMemory, Handler, Interest, LogBudget, LoopHandle, Registration, Watch};

const QUEUE_SIZE: u16 = 64;

/// The most random bytes for one request. Linux asks for a page at most.
const MAX_BYTES: usize = 4096;

/// After so many requests the others on the event loop have their turn.
const BUDGET: usize = 16;

/// A source of random numbers, served on the event loop.
pub struct RngDevice {
    event_loop: LoopHandle,
    log: LogBudget,
    state: State,
}

enum State {
    Inactive,
    /// Active, with a queue that the driver did not make ready.
    Idle(Queue),
    Serving(Registration<Source>),
}

impl RngDevice {
    /// A source of random numbers that will be served by `event_loop`.
    pub fn new(event_loop: LoopHandle) -> Self {
        Self { event_loop, log: LogBudget::default(), state: State::Inactive }
    }
}

impl VirtioDevice for RngDevice {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_F_RING_RESET
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let failed = |reason: String| ActivateError { device: "virtio-rng", reason };
        let Ok([queue]) = <[Queue; 1]>::try_from(activation.queues) else {
            return Err(failed("it has one queue".to_owned()));
        };
        self.state = match queue.ready() {
            false => State::Idle(queue),
            true => {
                let source = Source {
                    table: Table::of(&queue, activation.features),
                    queue,
                    memory: activation.memory,
                    doorbell: activation.doorbell,
                    interrupt: activation.interrupt,
                    log: self.log.clone(),
                };
                State::Serving(self.event_loop.add(source).map_err(|e| failed(e.to_string()))?)
            }
        };
        Ok(())
    }

    fn reset(&mut self) -> Vec<Queue> {
        match std::mem::replace(&mut self.state, State::Inactive) {
            State::Inactive => Vec::new(),
            State::Idle(queue) => vec![queue],
            State::Serving(registration) => {
                registration.remove().map(|source| source.queue).into_iter().collect()
            }
        }
    }
}

/// What serves the queue on the event loop.
struct Source {
    table: Table,
    queue: Queue,
    memory: Arc<GuestMemory>,
    doorbell: Doorbell,
    interrupt: QueueInterrupt,
    log: LogBudget,
}

/// Why the queue can no longer be served.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("virtqueue: {0}")]
    Queue(#[from] QueueError),
    #[error("doorbell or interrupt: {0}")]
    Io(#[from] std::io::Error),
    #[error("the host has no random numbers: {0}")]
    Random(#[from] getrandom::Error),
}

impl Handler for Source {
    fn start(&mut self, watch: &mut Watch<'_>) -> std::io::Result<()> {
        watch.add(&self.doorbell, 0, Interest::Read)
    }

    fn ready(&mut self, _event: Event, watch: &mut Watch<'_>) {
        if let Err(e) = self.serve() {
            self.log.warn(format_args!("virtio-rng stopped serving: {e}"));
            // Until the driver resets the device; the errors would only say so again.
            let _ = watch.remove(&self.doorbell);
            let _ = self.interrupt.device_failed();
        }
    }
}

impl Source {
    fn serve(&mut self) -> Result<(), ServeError> {
        self.doorbell.clear()?;
        let memory = Arc::clone(&self.memory);
        let mut served = 0;
        // The index that says whether there is more is the guest's to move back and forth.
        for look in 1.. {
            self.queue.disable_notification(&*memory)?;
            while served < BUDGET
                && let Some(descriptors) = self.queue.iter(&*memory)?.next()
            {
                let head = descriptors.head_index();
                let descriptors = self.table.chain(head);
                let written = match Chain::collect(&memory, descriptors, QUEUE_SIZE.into()) {
                    Ok(chain) => fill(&chain)?,
                    Err(e) => {
                        self.log.warn(format_args!("virtio-rng: {e}"));
                        0
                    }
                };
                self.queue.add_used(&*memory, head, written)?;
                served += 1;
            }
            let more = self.queue.enable_notification(&*memory)?;
            let is_turn_over = served >= BUDGET || look >= BUDGET;
            if more && is_turn_over {
                self.doorbell.ring()?;
            }
            if !more || is_turn_over {
                break;
            }
        }
        if served > 0 && self.queue.needs_notification(&*memory)? {
            self.interrupt.used_buffer()?;
        }
        Ok(())
    }
}

/// Fills a request with random bytes. Returns how many.
fn fill(chain: &Chain<'_>) -> Result<u32, getrandom::Error> {
    let mut bytes = [0; MAX_BYTES];
    let bytes = &mut bytes[..chain.writable.len().min(MAX_BYTES)];
    getrandom::fill(bytes)?;
    let written = chain.writable.fill_from(bytes);
    Ok(u32::try_from(written).unwrap_or_default())
}

#[cfg(test)]
#[path = "rng_tests.rs"]
mod tests;
