//! The memory of descriptor chains, in a list that is reused, so that no frame allocates.
//!
//! A list outlives the chain that it was filled from, so it holds addresses and not references.
//! Addresses are checked when they are added, and the layout of guest memory does not change.

use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemory as _, GuestMemoryError, Permissions, VolatileSlice,
};

use crate::GuestMemory;
use crate::virtio::chain::{ChainError, Descriptors, walk};

/// Pieces of guest memory, in order.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    list: Vec<Piece>,
    /// Index of the first piece that has bytes left.
    first: usize,
    /// Bytes left in all pieces.
    len: usize,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    address: GuestAddress,
    /// Length in bytes, not 0.
    len: usize,
}

impl Piece {
    /// The piece without its first `count` bytes; `count` is at most its length.
    fn after(self, count: usize) -> Self {
        Self { address: self.address.unchecked_add(count as u64), len: self.len - count }
    }
}

impl Pieces {
    /// Removes all pieces, and keeps the list's allocation.
    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.first = 0;
        self.len = 0;
    }

    /// Bytes left in all pieces.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds the memory of a chain of at most `limit` descriptors that the device may access as
    /// `wanted`. Returns its length in bytes. A chain that is broken, or has less than `least` bytes,
    /// adds nothing.
    pub(super) fn add(
        &mut self,
        memory: &GuestMemory,
        descriptors: Descriptors,
        limit: usize,
        wanted: Permissions,
        least: usize,
    ) -> Result<usize, ChainError> {
        let (count, len) = (self.list.len(), self.len);
        let walked = walk(memory, descriptors, limit, |address, len, access| {
            if access == wanted && len > 0 {
                if !memory.check_range(address, len, access) {
                    return Err(GuestMemoryError::InvalidGuestAddress(address).into());
                }
                self.list.push(Piece { address, len });
                self.len = self.len.saturating_add(len);
            }
            Ok(())
        });
        let added = self.len - len;
        if walked.is_err() || added < least {
            self.list.truncate(count);
            self.len = len;
        }
        walked.map(|()| added)
    }

    /// Copies the first bytes into `buffer`, as many as fit, and removes them. Returns their number.
    pub(super) fn read(&mut self, memory: &GuestMemory, buffer: &mut [u8]) -> usize {
        let mut read = 0;
        while let Some(piece) = self.list.get_mut(self.first)
            && let Some(missing) = buffer.get_mut(read..).filter(|missing| !missing.is_empty())
        {
            let count = piece.len.min(missing.len());
            let Some(part) = missing.get_mut(..count) else { break };
            if memory.read_slice(part, piece.address).is_err() {
                break;
            }
            read += count;
            self.advance(count);
        }
        read
    }

    /// Writes `bytes` over the first bytes and removes those. Returns how many there was room for.
    pub(super) fn write(&mut self, memory: &GuestMemory, bytes: &[u8]) -> usize {
        let mut left = bytes;
        while let Some(piece) = self.list.get(self.first)
            && !left.is_empty()
        {
            let (part, rest) = left.split_at(piece.len.min(left.len()));
            if memory.write_slice(part, piece.address).is_err() {
                break;
            }
            left = rest;
            self.advance(part.len());
        }
        bytes.len() - left.len()
    }

    /// Removes the first `count` bytes, which are in one piece.
    fn advance(&mut self, count: usize) {
        let Some(piece) = self.list.get_mut(self.first) else { return };
        if count == piece.len {
            self.first += 1;
        } else {
            *piece = piece.after(count);
        }
        self.len -= count;
    }

    /// The memory itself, for vectored I/O.
    pub(super) fn slices<'m>(
        &self,
        memory: &'m GuestMemory,
    ) -> impl Iterator<Item = VolatileSlice<'m>> + use<'_, 'm> {
        self.list.get(self.first..).unwrap_or_default().iter().flat_map(|piece| {
            memory
                .get_slices(piece.address, piece.len, Permissions::Read)
                .into_iter()
                .flatten()
                .flatten()
        })
    }
}
