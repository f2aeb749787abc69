//! virtio-rng (virtio 1.3, section 5.4): the host's random numbers for the guest.

use std::sync::Arc;

use boxlite_hv::Doorbell;
use virtio_bindings::virtio_config::VIRTIO_F_RING_RESET;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};

use super::chain::Chain;
use super::queue::{NeedsReset, Notifier, Virtqueue};
use super::{ActivateError, Activation, VirtioDevice};
use crate::{Event, GuestMemory, Handler, Interest, LogBudget, LoopHandle, Registration, Watch};

const NAME: &str = "virtio-rng";

const QUEUE_SIZE: u16 = 64;

/// The most random bytes for one request. Linux asks for a page at most.
const MAX_BYTES: usize = 4096;

/// Requests served in a turn, before the other devices on the event loop.
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
        let failed = |reason: String| ActivateError { device: NAME, reason };
        let Ok([queue]) = <[Queue; 1]>::try_from(activation.queues) else {
            return Err(failed("it has one queue".to_owned()));
        };
        self.state = match queue.ready() {
            false => State::Idle(queue),
            true => {
                let source = Source {
                    queue: Virtqueue::new("request", queue, activation.features),
                    memory: activation.memory,
                    doorbell: activation.doorbell,
                    notifier: Notifier::new(NAME, activation.interrupt, self.log.clone()),
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
                registration.remove().map(|source| source.queue.into_queue()).into_iter().collect()
            }
        }
    }
}

/// The part of the device that runs on the event loop.
struct Source {
    queue: Virtqueue,
    memory: Arc<GuestMemory>,
    doorbell: Doorbell,
    notifier: Notifier,
}

impl Handler for Source {
    fn start(&mut self, watch: &mut Watch<'_>) -> std::io::Result<()> {
        watch.add(&self.doorbell, 0, Interest::Read)
    }

    fn ready(&mut self, _event: Event, watch: &mut Watch<'_>) {
        if self.serve().is_err() {
            // Nothing is left to serve until the driver resets the device.
            let _ = watch.remove(&self.doorbell);
        }
    }
}

impl Source {
    fn serve(&mut self) -> Result<(), NeedsReset> {
        self.doorbell.clear().map_err(|e| self.notifier.fail(format_args!("doorbell: {e}")))?;
        let memory = Arc::clone(&self.memory);
        self.queue.begin_turn(BUDGET);
        while let Some(descriptors) = self.queue.pop(&memory) {
            let head = descriptors.head_index();
            let written = match Chain::collect(&memory, descriptors, self.queue.chain_limit()) {
                Ok(chain) => fill(&chain).map_err(|e| {
                    self.notifier.fail(format_args!("the host has no random numbers: {e}"))
                })?,
                Err(e) => {
                    self.notifier.warn(format_args!("{e}"));
                    0
                }
            };
            self.queue.add_used(&memory, head, written);
        }
        if self.queue.is_turn_over() {
            self.doorbell.ring().map_err(|e| self.notifier.fail(format_args!("doorbell: {e}")))?;
        }
        self.notifier.finish(&memory, &mut [&mut self.queue])
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
mod tests;
