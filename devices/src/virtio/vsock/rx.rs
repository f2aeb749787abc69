//! Packets in the rx queue: buffers that the driver gives, and packets that go into them.

use super::packet::{HEADER_SIZE, Header, RxBuffer};
use crate::GuestMemory;
use crate::virtio::queue::Virtqueue;

/// Buffers are collected for one socket call until they are in so many pieces of memory.
const MAX_PIECES: usize = 256;

/// The rx queue.
#[derive(Debug)]
pub(super) struct RxQueue(pub(super) Virtqueue);

impl RxQueue {
    /// The next buffer that a packet with `room` bytes of payload fits into. Others are returned
    /// empty.
    pub(super) fn pop_buffer<'m>(
        &mut self,
        memory: &'m GuestMemory,
        room: usize,
    ) -> Option<RxBuffer<'m>> {
        loop {
            let chain = self.0.pop(memory)?;
            let head = chain.head_index();
            match RxBuffer::new(memory, chain) {
                Ok(buffer) if buffer.room() >= room => return Some(buffer),
                _ => self.0.add_used(memory, head, 0),
            }
        }
    }

    /// The next buffers, one after the other, for `room` bytes of payload altogether, or less if
    /// there are not as many. All of them have room.
    pub(super) fn pop_room<'m>(
        &mut self,
        memory: &'m GuestMemory,
        room: usize,
    ) -> Vec<RxBuffer<'m>> {
        let Some(first) = self.pop_buffer(memory, 1) else { return Vec::new() };
        let (mut popped, mut pieces) = (first.room(), first.pieces());
        let mut buffers = vec![first];
        while popped < room && pieces < MAX_PIECES {
            let Some(chain) = self.0.take(memory) else { break };
            match RxBuffer::new(memory, chain) {
                Ok(buffer) if buffer.room() > 0 => {
                    popped += buffer.room();
                    pieces += buffer.pieces();
                    buffers.push(buffer);
                }
                // Returned at once it would be out of turn, if a buffer before it is put back.
                _ => {
                    self.put_back(1);
                    break;
                }
            }
        }
        buffers
    }

    /// Leaves the last `count` buffers that were popped for later.
    pub(super) fn put_back(&mut self, count: usize) {
        self.0.put_back(count);
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
        self.0.add_used(memory, buffer.head(), written);
    }
}
