//! Frames on their way to the peer.

use std::io::IoSlice;

use bytes::{Buf, Bytes};

use super::chunks::Chunks;
use crate::frame::{Channel, Frame, HEADER_LEN, Header, Kind};

/// No data is to be added while this much waits. Other frames are always taken: each answers a frame of the peer,
/// which is not read from while too much waits.
pub const HIGH_WATER: usize = 256 << 10;

/// Pieces in one write.
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

    /// Adds a data frame of at most [`MAX_DATA`](crate::frame::MAX_DATA), shared.
    pub fn push_data(&mut self, stream: u32, channel: Channel, data: Bytes) {
        self.push(Frame { stream, kind: channel.kind(), body: data });
    }

    /// Adds a data frame of at most [`MAX_DATA`](crate::frame::MAX_DATA), copied.
    pub fn copy_data(&mut self, stream: u32, channel: Channel, data: &[u8]) {
        self.push_header(stream, channel.kind(), data.len());
        self.0.extend(data);
    }

    fn push_header(&mut self, stream: u32, kind: Kind, len: usize) {
        let header: [u8; HEADER_LEN] = Header { len, stream, kind }.encode();
        self.0.extend(&header);
    }

    /// Adds bytes that are no frame, for the transport.
    pub(super) fn push_preamble(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none wait.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether data may be added.
    pub fn has_room(&self) -> bool {
        self.len() < HIGH_WATER
    }

    /// Takes everything that waits, to be written elsewhere.
    pub fn take(&mut self) -> Chunks {
        std::mem::take(&mut self.0)
    }

    /// Drops everything that waits: the peer takes nothing any more.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Gives what waits to `write`, until nothing is left, `write` takes nothing, or it fails. What it took is gone
    /// from here, whatever comes after.
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
