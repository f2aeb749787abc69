//! A virtqueue of the device while it runs: which notifications are wanted, in both directions.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{AvailIter, Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::GuestMemory;
use crate::virtio::chain::{Descriptors, Table};

/// Looks at a ring of which the driver says in turn that there is something and that there is nothing: it
/// will ring, or has lost its turn.
pub(super) const LOOKS: usize = 16;

/// A virtqueue. One that the driver did not make ready is empty.
#[derive(Debug)]
pub(super) struct Ring {
    queue: Queue,
    table: Table,
    /// The driver rings when it adds chains.
    armed: bool,
    /// Chains were given back that the driver has not been told of.
    used: bool,
}

impl Ring {
    /// A queue whose driver negotiated `features`.
    pub(super) fn new(queue: Queue, features: u64) -> Self {
        Self { table: Table::of(&queue, features), queue, armed: true, used: false }
    }

    /// The queue, as the driver gets it back.
    pub(super) fn into_queue(self) -> Queue {
        self.queue
    }

    /// Where its descriptors are.
    pub(super) fn table(&self) -> Table {
        self.table
    }

    /// How many chains it holds.
    pub(super) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The most descriptors of a chain.
    pub(super) fn chain_limit(&self) -> usize {
        self.queue.max_size().into()
    }

    /// The chains that are available now. Those that the iterator has given are taken.
    pub(super) fn available<'m>(
        &mut self,
        memory: &'m GuestMemory,
    ) -> Result<Option<AvailIter<'_, &'m GuestMemory>>, QueueError> {
        match self.queue.ready() {
            true => self.queue.iter(memory).map(Some),
            false => Ok(None),
        }
    }

    /// Takes the next chain. If there is none, the driver rings when it adds one.
    pub(super) fn next(&mut self, memory: &GuestMemory) -> Result<Option<Descriptors>, QueueError> {
        for _ in 0..LOOKS {
            let chain = self.available(memory)?.and_then(|mut available| available.next());
            if let Some(chain) = chain.map(|chain| chain.head_index()) {
                self.disarm(memory)?;
                return Ok(Some(self.table.chain(chain)));
            }
            if !self.arm(memory)? {
                break;
            }
        }
        Ok(None)
    }

    /// Leaves the last `count` chains that were taken for later.
    pub(super) fn put_back(&mut self, count: usize) {
        for _ in 0..count {
            self.queue.go_to_previous_position();
        }
    }

    /// Hands a chain back to the driver, `written` bytes of it written.
    pub(super) fn give_back(
        &mut self,
        memory: &GuestMemory,
        head: u16,
        written: usize,
    ) -> Result<(), QueueError> {
        // A chain's length fits.
        let written = u32::try_from(written).unwrap_or(u32::MAX);
        self.queue.add_used(memory, head, written)?;
        self.used = true;
        Ok(())
    }

    /// Asks the driver to ring when it adds chains to those that were taken (virtio 1.3, section
    /// 2.7.10). True if it has added some already.
    pub(super) fn arm(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        if !self.queue.ready() {
            return Ok(false);
        }
        self.armed = true;
        self.queue.enable_notification(memory)
    }

    /// Tells the driver that it need not ring.
    pub(super) fn disarm(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        match std::mem::take(&mut self.armed) && self.queue.ready() {
            true => self.queue.disable_notification(memory),
            false => Ok(()),
        }
    }

    /// Whether the driver wants to hear of the chains that were given back since the last call.
    pub(super) fn take_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        if !std::mem::take(&mut self.used) {
            return Ok(false);
        }
        if self.queue.event_idx_enabled() {
            return self.queue.needs_notification(memory);
        }
        // The driver looks at the used index after it has changed its mind.
        fence(Ordering::SeqCst);
        let flags: u16 = memory
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map_err(QueueError::GuestMemory)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }
}
