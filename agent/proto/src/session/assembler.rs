//! Assembles frames from a stream of bytes that arrives in pieces.

use bytes::{Buf, Bytes, BytesMut};

use crate::frame::{Frame, FrameError, HEADER_LEN, Header};

/// Space for one read: room for two data frames.
const READ: usize = 128 << 10;
/// New space is allocated if less than this is left.
const MIN_READ: usize = 32 << 10;

/// Bodies of at least this size share the memory that they arrived in; smaller ones are copied. A shared body keeps
/// all of that memory alive: space for a few reads, because it is never shared with a frame larger than a read. So
/// the memory of kept bodies is at most a small multiple of their size, whatever a peer sends between them.
pub const SHARED_BODY: usize = 16 << 10;

/// Assembles frames. A length is checked as soon as its header is complete, and memory grows with the bytes that
/// have arrived, never with the length that a header claims.
#[derive(Debug, Default)]
pub struct Assembler {
    /// The bytes that have arrived, followed by initialized space.
    buffer: BytesMut,
    /// Bytes of the buffer that have arrived.
    filled: usize,
}

impl Assembler {
    /// Space to read into; never empty. Call [`filled`](Self::filled) with the number of bytes used.
    pub fn space(&mut self) -> &mut [u8] {
        if self.buffer.len() - self.filled < MIN_READ {
            self.buffer.resize(self.filled + READ, 0);
        }
        &mut self.buffer[self.filled..]
    }

    /// Records that this many bytes have arrived in [`space`](Self::space).
    pub fn filled(&mut self, bytes: usize) {
        self.filled = (self.filled + bytes).min(self.buffer.len());
    }

    /// Adds a copy of bytes that have arrived.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buffer.truncate(self.filled);
        self.buffer.extend_from_slice(bytes);
        self.filled = self.buffer.len();
    }

    /// Whether no part of a frame is buffered.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Frees an empty buffer. For connections that may be idle for long.
    pub fn release(&mut self) {
        if self.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// The bytes that have arrived are no frame, and more bytes will not change that.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(header) = self.buffer[..self.filled].first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let Header { len, stream, kind } = Header::decode(header)?;
        let Some(left) = self.filled.checked_sub(HEADER_LEN + len) else { return Ok(None) };
        self.buffer.advance(HEADER_LEN);
        let body = match len {
            SHARED_BODY.. => self.buffer.split_to(len).freeze(),
            _ => {
                let body = Bytes::copy_from_slice(&self.buffer[..len]);
                self.buffer.advance(len);
                body
            }
        };
        self.filled = left;
        if HEADER_LEN + len > READ {
            // The bytes after a large frame must not keep its memory alive.
            self.buffer = BytesMut::from(&self.buffer[..left]);
        }
        Ok(Some(Frame { stream, kind, body }))
    }
}

#[cfg(test)]
mod tests;
