//! The rx queue: buffers from the driver, and packets that are written into them.

use super::packet::{HEADER_SIZE, Header, RxBuffer};
use crate::GuestMemory;
use crate::virtio::queue::Virtqueue;

/// Pieces of memory after which no more buffers are collected for one socket call.
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

    /// The next buffers, in order, for `room` bytes of payload in total, or for less if there are not
    /// enough. Each has room for at least one byte.
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
                // It must not be returned before a buffer that may be put back.
                _ => {
                    self.put_back(1);
                    break;
                }
            }
        }
        buffers
    }

    /// Puts the last `count` buffers that were popped back into the queue.
    pub(super) fn put_back(&mut self, count: usize) {
        self.0.put_back(count);
    }

    /// Returns a buffer to the driver, with a packet whose payload of `len` bytes is in it already.
    pub(super) fn send(
        &mut self,
        memory: &GuestMemory,
        buffer: &RxBuffer<'_>,
        header: &Header,
        len: usize,
    ) {
        buffer.write_header(header);
        // A payload is at most a turn's bytes.
        let written = u32::try_from(HEADER_SIZE + len).unwrap_or(u32::MAX);
        self.0.add_used(memory, buffer.head(), written);
    }
}
