//! A queue of bytes that shares large pieces and copies small ones together.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

/// Pieces below this size are copied to the queue's end, so that a queue of small pieces needs hardly more memory
/// than its bytes.
const SMALL: usize = 4 << 10;
/// Size from which the buffer of copied bytes is sealed. A buffer may exceed it by the last piece, which so stays
/// contiguous with its header.
const GATHERED: usize = 64 << 10;
/// The smallest allocation for copied bytes.
const FIRST: usize = 1 << 10;
/// Limit on the buffer that an empty queue keeps.
const KEEP: usize = 16 << 10;

/// A queue of bytes, in order. Large pieces share the memory of the caller that pushed them.
#[derive(Debug, Default)]
pub struct Chunks {
    whole: VecDeque<Bytes>,
    /// Bytes copied since the last whole piece.
    tail: BytesMut,
    len: usize,
}

impl Chunks {
    /// Bytes in the queue.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the queue is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds bytes, which are shared if they are many.
    pub fn push(&mut self, bytes: Bytes) {
        if bytes.len() < SMALL {
            return self.extend(&bytes);
        }
        self.seal();
        self.len += bytes.len();
        self.whole.push_back(bytes);
    }

    /// Adds a copy of bytes.
    pub fn extend(&mut self, bytes: &[u8]) {
        if self.tail.len() >= GATHERED {
            self.seal();
        }
        if self.tail.capacity() - self.tail.len() < bytes.len() {
            self.tail.reserve(bytes.len().max(FIRST));
        }
        self.tail.extend_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Makes the copied bytes a whole piece.
    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.whole.push_back(self.tail.split().freeze());
        }
    }

    /// Takes the first contiguous bytes, at most `max`; `None` if there are none.
    pub fn pop(&mut self, max: usize) -> Option<Bytes> {
        let bytes = match self.whole.front_mut() {
            Some(front) if front.len() > max => front.split_to(max),
            Some(_) => self.whole.pop_front()?,
            None => self.tail.split_to(max.min(self.tail.len())).freeze(),
        };
        self.len -= bytes.len();
        (!bytes.is_empty()).then_some(bytes)
    }

    /// Removes all bytes.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Buf for Chunks {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        self.whole.front().map_or(&self.tail, |front| front)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let pieces = self.whole.iter().map(|piece| &piece[..]);
        let pieces = pieces.chain([&self.tail[..]]).filter(|piece| !piece.is_empty());
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        count
    }

    fn advance(&mut self, count: usize) {
        let mut left = count.min(self.len);
        self.len -= left;
        while let Some(front) = self.whole.front_mut().filter(|_| left > 0) {
            let here = left.min(front.len());
            left -= here;
            if here < front.len() {
                front.advance(here);
            } else {
                self.whole.pop_front();
            }
        }
        self.tail.advance(left);
        if self.len == 0 && self.tail.capacity() > KEEP {
            self.tail = BytesMut::new();
        }
    }
}
