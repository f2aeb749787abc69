//! Frames that wait to be sent to the peer.

use std::io::IoSlice;

use bytes::{Buf, Bytes};

use super::chunks::Chunks;
use crate::frame::{Channel, Frame, HEADER_LEN, Header, Kind};

/// No data should be added while this much waits. Other frames are always accepted: each answers a frame of the
/// peer, and the caller does not read from the peer while too much waits.
pub const HIGH_WATER: usize = 256 << 10;

/// Limit on the pieces in one write.
const SLICES: usize = 64;

/// Frames that wait for the connection, in order.
#[derive(Debug, Default)]
pub struct Outbox(Chunks);

impl Outbox {
    /// Adds a frame; a large body is shared.
    pub fn push(&mut self, frame: Frame) {
        self.push_header(frame.stream, frame.kind, frame.body.len());
        self.0.push(frame.body);
    }

    /// Adds a data frame of at most [`MAX_DATA`](crate::frame::MAX_DATA) bytes, which are shared.
    pub fn push_data(&mut self, stream: u32, channel: Channel, data: Bytes) {
        self.push(Frame { stream, kind: channel.kind(), body: data });
    }

    /// Adds a data frame of at most [`MAX_DATA`](crate::frame::MAX_DATA) bytes, which are copied.
    pub fn copy_data(&mut self, stream: u32, channel: Channel, data: &[u8]) {
        self.push_header(stream, channel.kind(), data.len());
        self.0.extend(data);
    }

    fn push_header(&mut self, stream: u32, kind: Kind, len: usize) {
        let header: [u8; HEADER_LEN] = Header { len, stream, kind }.encode();
        self.0.extend(&header);
    }

    /// Adds bytes for the transport, which are no frame.
    pub(super) fn push_preamble(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no bytes wait.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether data may be added.
    pub fn has_room(&self) -> bool {
        self.len() < HIGH_WATER
    }

    /// Takes all waiting bytes, for the caller to write.
    pub fn take(&mut self) -> Chunks {
        std::mem::take(&mut self.0)
    }

    /// Drops all waiting bytes, when the peer takes no more.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Passes the waiting bytes to `write`, until none are left, `write` takes none, or it fails. Bytes that `write`
    /// took are removed, even if a later call fails.
    pub fn write_with<E>(
        &mut self,
        mut write: impl FnMut(&[IoSlice<'_>]) -> Result<usize, E>,
    ) -> Result<(), E> {
        while !self.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = self.0.chunks_vectored(&mut slices);
            let written = write(&slices[..count])?;
            if written == 0 {
                break;
            }
            self.0.advance(written);
        }
        Ok(())
    }
}
