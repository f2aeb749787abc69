//! Split virtqueues (virtio 1.3, section 2.7), as all devices use them.
//!
//! ```text
//!   driver ──available──▶ pop ──▶ device ──▶ add_used ──used──▶ driver
//!          ◀── "notify" ──── arm                │
//!          ◀──interrupt──── Notifier::finish ◀─┘   once for each batch
//! ```
//!
//! - [`Virtqueue`] takes chains from the available ring and adds them to the used ring. It enables the driver's
//!   notifications when the ring is empty, and disables them while the queue is served.
//! - [`Notifier`] notifies the driver: of used chains by one interrupt for each batch, and of a
//!   failure by DEVICE_NEEDS_RESET, with one log message.
//!
//! A device serves its queues in turns: [`Virtqueue::begin_turn`] says how many chains a turn may
//! take. When a turn ends with chains left ([`Virtqueue::is_turn_over`]), the device schedules
//! another turn by itself, because the driver's notifications are off.
//!
//! Nothing that the driver writes is trusted. The queue keeps its own positions; an invalid available index or head
//! breaks the queue. A broken queue is empty and ignores used chains, so devices need no error path for it:
//! `Notifier::finish` reports it at the end of the turn.
//!
//! **Invariant:** a turn reads no more of the available ring than its budget, whatever the
//! driver writes meanwhile. Only the used ring is written.

mod notifier;

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::chain::{Descriptors, Table};
use crate::GuestMemory;

pub use notifier::NeedsReset;
pub(crate) use notifier::Notifier;

/// Offsets in the available and the used ring: `flags`, `idx`, `ring`.
const FLAGS: u64 = 0;
const INDEX: u64 = 2;
const ELEMENTS: u64 = 4;
/// Size of an element of the available ring, in bytes.
const AVAIL_ELEMENT: u64 = 2;
/// Size of an element of the used ring, in bytes: head and length, 32 bits each.
const USED_ELEMENT: u64 = 8;

/// How a driver broke a queue.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueueError {
    #[error("{pending} chains are available in a queue of {size}")]
    AvailableIndex { pending: u16, size: u16 },
    #[error("descriptor {head} is available in a queue of {size}")]
    Head { head: u16, size: u16 },
    #[error("a ring is not in guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// A virtqueue of a running device. A queue that the driver did not make ready is empty.
#[derive(Debug)]
pub(crate) struct Virtqueue {
    /// As in `rx`, for messages.
    name: &'static str,
    /// Configuration, and the positions in both rings.
    queue: Queue,
    table: Table,
    state: State,
    /// The available index, as this turn read it last.
    available: u16,
    /// The number of chains that this turn may still take.
    budget: usize,
    /// The turn used up its budget; there may be chains left.
    turn_over: bool,
    /// The driver notifies the device of new chains.
    armed: bool,
    /// The used index at the last interrupt; unknown if the queue was served before.
    last_signaled: Option<u16>,
    /// Chains were used since the last interrupt.
    unsignaled: bool,
}

#[derive(Debug)]
enum State {
    Ready,
    NotReady,
    Broken(Option<QueueError>),
}

impl Virtqueue {
    /// A queue whose driver negotiated `features`.
    pub(crate) fn new(name: &'static str, queue: Queue, features: u64) -> Self {
        let is_new = queue.next_avail() == 0 && queue.next_used() == 0;
        Self {
            name,
            table: Table::of(&queue, features),
            state: if queue.ready() { State::Ready } else { State::NotReady },
            available: queue.next_avail(),
            budget: 0,
            turn_over: false,
            armed: true,
            last_signaled: is_new.then_some(0),
            unsignaled: false,
            queue,
        }
    }

    /// Returns the underlying queue, for a reset.
    pub(crate) fn into_queue(self) -> Queue {
        self.queue
    }

    /// How many chains the queue holds.
    pub(crate) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The most descriptors of a chain.
    pub(crate) fn chain_limit(&self) -> usize {
        self.queue.max_size().into()
    }

    /// Begins a turn, in which up to `budget` chains are taken.
    pub(crate) fn begin_turn(&mut self, budget: usize) {
        self.available = self.queue.next_avail();
        self.budget = budget;
        self.turn_over = false;
    }

    /// Whether the turn used up its budget: there may be more chains, and the driver will not notify.
    pub(crate) fn is_turn_over(&self) -> bool {
        self.turn_over
    }

    /// Takes the next chain. Without one, the driver will notify when it adds one, unless the
    /// [turn is over](Self::is_turn_over).
    pub(crate) fn pop(&mut self, memory: &GuestMemory) -> Option<Descriptors> {
        loop {
            let chain = self.take(memory);
            if chain.is_some() {
                self.disarm(memory);
                return chain;
            }
            if self.turn_over || !self.arm(memory) {
                return None;
            }
        }
    }

    /// Takes the next chain, and leaves notifications as they are.
    pub(crate) fn take(&mut self, memory: &GuestMemory) -> Option<Descriptors> {
        if !self.is_ready() {
            return None;
        }
        let Some(budget) = self.budget.checked_sub(1) else {
            self.turn_over = true;
            return None;
        };
        self.budget = budget;
        match self.next_head(memory) {
            Ok(head) => head.map(|head| self.table.chain(head)),
            Err(e) => {
                self.state = State::Broken(Some(e));
                None
            }
        }
    }

    fn next_head(&mut self, memory: &GuestMemory) -> Result<Option<u16>, QueueError> {
        let (next, size) = (self.queue.next_avail(), self.queue.size());
        if self.available == next {
            // Elements are read after the index that covers them.
            self.available = self.load(memory, self.avail(INDEX), Ordering::Acquire)?;
            let pending = self.available.wrapping_sub(next);
            if pending > size {
                return Err(QueueError::AvailableIndex { pending, size });
            }
            if pending == 0 {
                return Ok(None);
            }
        }
        let element = ELEMENTS + AVAIL_ELEMENT * u64::from(next % size);
        let head = self.load(memory, self.avail(element), Ordering::Relaxed)?;
        if head >= size {
            return Err(QueueError::Head { head, size });
        }
        self.queue.set_next_avail(next.wrapping_add(1));
        Ok(Some(head))
    }

    /// Puts back the last `count` chains that this turn took, for later.
    pub(crate) fn put_back(&mut self, count: usize) {
        // No turn takes more chains than its budget, and no queue holds more than 2^15.
        let positions = u16::try_from(count).unwrap_or(u16::MAX);
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(positions));
        self.budget = self.budget.saturating_add(count);
    }

    /// Returns a chain to the driver, `written` bytes of it written.
    pub(crate) fn add_used(&mut self, memory: &GuestMemory, head: u16, written: u32) {
        self.add_all_used(memory, [(head, written)]);
    }

    /// Returns chains to the driver, each with the number of bytes written, so that it sees all of
    /// them at once.
    pub(crate) fn add_all_used(
        &mut self,
        memory: &GuestMemory,
        chains: impl IntoIterator<Item = (u16, u32)>,
    ) {
        if self.is_ready()
            && let Err(e) = self.publish(memory, chains)
        {
            self.state = State::Broken(Some(e));
        }
    }

    fn publish(
        &mut self,
        memory: &GuestMemory,
        chains: impl IntoIterator<Item = (u16, u32)>,
    ) -> Result<(), QueueError> {
        let (mut next, size) = (self.queue.next_used(), self.queue.size());
        for (head, written) in chains {
            let element = self.used(ELEMENTS + USED_ELEMENT * u64::from(next % size));
            memory.write_obj([u32::from(head).to_le(), written.to_le()], element)?;
            next = next.wrapping_add(1);
        }
        // The index covers elements that were written before.
        memory.store(next.to_le(), self.used(INDEX), Ordering::Release)?;
        self.queue.set_next_used(next);
        self.unsignaled = true;
        Ok(())
    }

    /// Asks the driver to notify the device of chains that it adds to those that were taken
    /// (section 2.7.10). True if it has added some already.
    pub(crate) fn arm(&mut self, memory: &GuestMemory) -> bool {
        if !self.is_ready() {
            return false;
        }
        self.armed = true;
        match self.try_arm(memory) {
            Ok(more) => more,
            Err(e) => {
                self.state = State::Broken(Some(e));
                false
            }
        }
    }

    fn try_arm(&self, memory: &GuestMemory) -> Result<bool, QueueError> {
        let next = self.queue.next_avail();
        match self.queue.event_idx_enabled() {
            true => {
                let event = ELEMENTS + USED_ELEMENT * u64::from(self.queue.size());
                memory.store(next.to_le(), self.used(event), Ordering::Relaxed)?;
            }
            false => memory.store(0u16, self.used(FLAGS), Ordering::Relaxed)?,
        }
        // A driver that added a chain before it saw this has not notified: check again afterwards.
        fence(Ordering::SeqCst);
        Ok(self.load(memory, self.avail(INDEX), Ordering::Relaxed)? != next)
    }

    /// Tells the driver that it need not notify.
    pub(crate) fn disarm(&mut self, memory: &GuestMemory) {
        // With EVENT_IDX one event is one notification.
        if !std::mem::take(&mut self.armed) || !self.is_ready() || self.queue.event_idx_enabled() {
            return;
        }
        let flags = (VRING_USED_F_NO_NOTIFY as u16).to_le();
        if let Err(e) = memory.store(flags, self.used(FLAGS), Ordering::Relaxed) {
            self.state = State::Broken(Some(e.into()));
        }
    }

    /// Whether the driver wants to be interrupted for the chains that were used since the last call
    /// (section 2.7.7.2).
    fn take_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        if !std::mem::take(&mut self.unsignaled) {
            return Ok(false);
        }
        let new = self.queue.next_used();
        let last = self.last_signaled.replace(new);
        // The driver reads the used index after it has enabled interrupts.
        fence(Ordering::SeqCst);
        if !self.queue.event_idx_enabled() {
            let flags = self.load(memory, self.avail(FLAGS), Ordering::Relaxed)?;
            return Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0);
        }
        let event = ELEMENTS + AVAIL_ELEMENT * u64::from(self.queue.size());
        let event = self.load(memory, self.avail(event), Ordering::Relaxed)?;
        Ok(last.is_none_or(|last| new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(last)))
    }

    /// How the driver broke the queue, once.
    fn take_failure(&mut self) -> Option<QueueError> {
        match &mut self.state {
            State::Broken(error) => error.take(),
            State::Ready | State::NotReady => None,
        }
    }

    fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready)
    }

    // Both rings were checked to lie in guest memory when the queue was made ready, and a queue that
    // is ready has a size that is not 0.

    fn avail(&self, offset: u64) -> GuestAddress {
        GuestAddress(self.queue.avail_ring().wrapping_add(offset))
    }

    fn used(&self, offset: u64) -> GuestAddress {
        GuestAddress(self.queue.used_ring().wrapping_add(offset))
    }

    fn load(
        &self,
        memory: &GuestMemory,
        at: GuestAddress,
        order: Ordering,
    ) -> Result<u16, QueueError> {
        Ok(u16::from_le(memory.load(at, order)?))
    }
}

#[cfg(test)]
mod tests;
