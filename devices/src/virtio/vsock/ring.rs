//! A virtqueue of the device while it runs.

use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};

use super::packet::{HEADER_SIZE, Header, RxBuffer};
use crate::GuestMemory;
use crate::virtio::chain::{Descriptors, Table};

/// Chains that are of no use and may be given back before the other devices of the loop have a turn: a
/// driver can add them as fast as they are given back.
const TURN_USELESS: usize = 128;

/// Buffers are collected for one socket call until they are in so many pieces of memory.
const TURN_PIECES: usize = 256;

/// A virtqueue. Once the driver breaks it, it is as good as empty until the driver resets the device.
#[derive(Debug)]
pub(super) struct Ring {
    queue: Queue,
    table: Table,
    state: State,
    used: bool,
    /// Chains of no use that may still be given back in this turn.
    patience: usize,
}

#[derive(Debug)]
enum State {
    Ready,
    /// The driver did not make it ready.
    NotReady,
    /// The driver broke it. It has to be told, if the error is still here.
    Broken(Option<Error>),
}

impl Ring {
    /// A queue whose driver negotiated `features`.
    pub(super) fn new(queue: Queue, features: u64) -> Self {
        let state = if queue.ready() { State::Ready } else { State::NotReady };
        let table = Table::of(&queue, features);
        Self { queue, table, state, used: false, patience: TURN_USELESS }
    }

    /// Begins a turn of the event loop.
    pub(super) fn begin_turn(&mut self) {
        self.patience = TURN_USELESS;
    }

    /// Whether this turn found too many chains of no use: the ring is looked at again in the next one.
    pub(super) fn is_turn_over(&self) -> bool {
        self.patience == 0
    }

    /// Gives a chain back that is of no use.
    pub(super) fn give_back_useless(&mut self, memory: &GuestMemory, head: u16) {
        self.patience = self.patience.saturating_sub(1);
        self.give_back(memory, head, 0);
    }

    /// The queue, as the driver gets it back.
    pub(super) fn into_queue(self) -> Queue {
        self.queue
    }

    /// The next chain, if there is one and the turn is not over.
    pub(super) fn pop(&mut self, memory: &GuestMemory) -> Option<Descriptors> {
        if !self.is_ready() || self.is_turn_over() {
            return None;
        }
        match self.queue.iter(memory) {
            Ok(mut available) => Some(self.table.chain(available.next()?.head_index())),
            Err(e) => {
                self.fail(e);
                None
            }
        }
    }

    /// The next buffer that a packet with `room` bytes of payload fits into. Others are given back
    /// empty.
    pub(super) fn pop_buffer<'m>(
        &mut self,
        memory: &'m GuestMemory,
        room: usize,
    ) -> Option<RxBuffer<'m>> {
        loop {
            let chain = self.pop(memory)?;
            let head = chain.head_index();
            match RxBuffer::new(memory, chain) {
                Ok(buffer) if buffer.room() >= room => return Some(buffer),
                _ => self.give_back_useless(memory, head),
            }
        }
    }

    /// The next buffers, one after the other, for `room` bytes of payload altogether, or less if
    /// there are not as many. None of them is of no use.
    pub(super) fn pop_room<'m>(
        &mut self,
        memory: &'m GuestMemory,
        room: usize,
    ) -> Vec<RxBuffer<'m>> {
        let Some(first) = self.pop_buffer(memory, 1) else { return Vec::new() };
        let (mut popped, mut pieces) = (first.room(), first.pieces());
        let mut buffers = vec![first];
        while popped < room && pieces < TURN_PIECES {
            let Some(chain) = self.pop(memory) else { break };
            match RxBuffer::new(memory, chain) {
                Ok(buffer) if buffer.room() > 0 => {
                    popped += buffer.room();
                    pieces += buffer.pieces();
                    buffers.push(buffer);
                }
                // Given back at once it would be out of turn, if a buffer before it is put back.
                _ => {
                    self.put_back(1);
                    break;
                }
            }
        }
        buffers
    }

    /// Leaves the last `count` chains that were popped for later.
    pub(super) fn put_back(&mut self, count: usize) {
        for _ in 0..count {
            self.queue.go_to_previous_position();
        }
    }

    /// Hands a packet with `len` bytes of payload to the driver.
    pub(super) fn send(
        &mut self,
        memory: &GuestMemory,
        buffer: &RxBuffer<'_>,
        header: &Header,
        len: usize,
    ) {
        buffer.write_header(header);
        // Both come out of descriptors, whose lengths are 32 bits.
        let written = u32::try_from(HEADER_SIZE + len).unwrap_or(u32::MAX);
        self.give_back(memory, buffer.head(), written);
    }

    /// Hands a chain back to the driver, `written` bytes of it written.
    pub(super) fn give_back(&mut self, memory: &GuestMemory, head: u16, written: u32) {
        match self.queue.add_used(memory, head, written) {
            Ok(()) => self.used = true,
            Err(e) => self.fail(e),
        }
    }

    /// Asks the driver to ring when it adds chains. True if there are some already.
    pub(super) fn enable_doorbell(&mut self, memory: &GuestMemory) -> bool {
        if !self.is_ready() {
            return false;
        }
        match self.queue.enable_notification(memory) {
            Ok(more) => more,
            Err(e) => {
                self.fail(e);
                false
            }
        }
    }

    /// Tells the driver that it need not ring.
    pub(super) fn disable_doorbell(&mut self, memory: &GuestMemory) {
        if self.is_ready()
            && let Err(e) = self.queue.disable_notification(memory)
        {
            self.fail(e);
        }
    }

    /// Whether the driver wants to hear of the chains that were given back since the last call.
    pub(super) fn take_interrupt(&mut self, memory: &GuestMemory) -> bool {
        // A driver whose event index cannot be read is interrupted once too often.
        std::mem::take(&mut self.used) && self.queue.needs_notification(memory).unwrap_or(true)
    }

    /// What the driver broke the queue with, once.
    pub(super) fn take_failure(&mut self) -> Option<Error> {
        match &mut self.state {
            State::Broken(error) => error.take(),
            State::Ready | State::NotReady => None,
        }
    }

    fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready)
    }

    fn fail(&mut self, error: Error) {
        if self.is_ready() {
            self.state = State::Broken(Some(error));
        }
    }
}
