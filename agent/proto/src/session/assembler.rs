//! Frames out of a stream of bytes that arrives in pieces.

use bytes::{Buf, Bytes, BytesMut};

use crate::frame::{Frame, FrameError, HEADER_LEN, Header};

/// Space for one read: room for two data frames.
const READ: usize = 128 << 10;
/// New space is made when less than this is left.
const MIN_READ: usize = 32 << 10;

/// Bodies from this size on share the memory that they arrived in, smaller ones are copied out of it. A shared body keeps
/// all of that memory: space for a few reads, since none is shared with a frame that is larger than a read. So hoarded
/// bodies cost a bounded number of times their size, whatever a peer sends between them.
pub const SHARED_BODY: usize = 16 << 10;

/// Puts frames together. A length is checked as soon as the header is there, and memory grows with what has arrived,
/// never with what a header claims.
#[derive(Debug, Default)]
pub struct Assembler {
    /// What has arrived, and initialized space after that.
    buffer: BytesMut,
    /// Bytes of the buffer that have arrived.
    filled: usize,
}

impl Assembler {
    /// Space to read into; never empty. Tell [`filled`](Self::filled) how much of it was used.
    pub fn space(&mut self) -> &mut [u8] {
        if self.buffer.len() - self.filled < MIN_READ {
            self.buffer.resize(self.filled + READ, 0);
        }
        &mut self.buffer[self.filled..]
    }

    /// So many bytes have arrived in [`space`](Self::space).
    pub fn filled(&mut self, bytes: usize) {
        self.filled = (self.filled + bytes).min(self.buffer.len());
    }

    /// Takes a copy of bytes that have arrived.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buffer.truncate(self.filled);
        self.buffer.extend_from_slice(bytes);
        self.filled = self.buffer.len();
    }

    /// Whether nothing waits: no part of a frame is there.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Frees a buffer in which nothing waits. For connections that may be idle for long.
    pub fn release(&mut self) {
        if self.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// What has arrived is no frame; it never becomes one.
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
            // What follows a large frame must not keep the memory of it.
            self.buffer = BytesMut::from(&self.buffer[..left]);
        }
        Ok(Some(Frame { stream, kind, body }))
    }
}

#[cfg(test)]
mod tests;
