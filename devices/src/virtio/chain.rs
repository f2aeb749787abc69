//! A descriptor chain as two buffers: one that the device may read, and one that it may write.
//!
//! The driver splits a request over descriptors as it likes (virtio 1.3, section 2.7.4), so devices
//! look at the bytes of a chain and never at its descriptors.

use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemory as _, GuestMemoryError, Permissions, VolatileSlice,
};

use super::has_feature;
use crate::GuestMemory;

/// The size of a descriptor in bytes.
const DESCRIPTOR: u64 = size_of::<Descriptor>() as u64;

/// The descriptor table of a queue, and whether its driver may use indirect descriptors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    address: GuestAddress,
    size: u32,
    indirect: bool,
}

impl Table {
    /// The table of a queue whose driver negotiated `features`.
    pub(crate) fn of(queue: &Queue, features: u64) -> Self {
        Self {
            address: GuestAddress(queue.desc_table()),
            size: queue.size().into(),
            indirect: has_feature(features, VIRTIO_RING_F_INDIRECT_DESC),
        }
    }

    /// The chain that starts with descriptor `head`.
    pub(crate) fn chain(self, head: u16) -> Descriptors {
        Descriptors { table: self, head }
    }

    /// The table that an indirect descriptor refers to, which must not contain another one.
    fn enter(self, descriptor: &Descriptor) -> Result<Self, ChainError> {
        if !self.indirect {
            return Err(ChainError::Indirect);
        }
        let len = u64::from(descriptor.len());
        let size = u32::try_from(len / DESCRIPTOR).map_err(|_| ChainError::Broken)?;
        match len.is_multiple_of(DESCRIPTOR) && size <= u16::MAX.into() {
            true => Ok(Self { address: descriptor.addr(), size, indirect: false }),
            false => Err(ChainError::Broken),
        }
    }

    fn read(self, memory: &GuestMemory, index: u16) -> Result<Descriptor, ChainError> {
        let at = self.address.checked_add(DESCRIPTOR * u64::from(index));
        let at = at.filter(|_| u32::from(index) < self.size).ok_or(ChainError::Broken)?;
        memory.read_obj(at).map_err(|_| ChainError::Broken)
    }
}

/// A chain of descriptors that has not been parsed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptors {
    table: Table,
    head: u16,
}

impl Descriptors {
    /// The index of the first descriptor.
    pub(crate) fn head_index(self) -> u16 {
        self.head
    }
}

/// The buffers of one request.
#[derive(Debug)]
pub(crate) struct Chain<'m> {
    /// Data from the driver, which the device reads.
    pub(crate) readable: Buffers<'m>,
    /// Space that the device fills.
    pub(crate) writable: Buffers<'m>,
}

/// What is wrong with a descriptor chain.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChainError {
    #[error("descriptor chain is longer than {0}, or loops")]
    TooLong(usize),
    #[error("descriptor chain is broken: a next or indirect descriptor is not valid")]
    Broken,
    #[error("an indirect descriptor is not allowed here")]
    Indirect,
    #[error("a device-readable descriptor comes after a device-writable one")]
    Order,
    #[error("a descriptor is not in guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
}

impl<'m> Chain<'m> {
    /// Parses `descriptors`, at most `limit` of them.
    pub(crate) fn collect(
        memory: &'m GuestMemory,
        descriptors: Descriptors,
        limit: usize,
    ) -> Result<Self, ChainError> {
        let (mut readable, mut writable) = (Buffers::default(), Buffers::default());
        walk(memory, descriptors, limit, |address, len, access| {
            let buffers = match access {
                Permissions::Write => &mut writable,
                _ => &mut readable,
            };
            for slice in memory.get_slices(address, len, access)? {
                buffers.push(slice?);
            }
            Ok(())
        })?;
        Ok(Self { readable, writable })
    }
}

/// Visits `descriptors`, at most `limit` of them, with the address of each, its length in bytes, and
/// whether the device reads or writes it. Readable ones come first.
pub(crate) fn walk(
    memory: &GuestMemory,
    descriptors: Descriptors,
    limit: usize,
    mut visit: impl FnMut(GuestAddress, usize, Permissions) -> Result<(), ChainError>,
) -> Result<(), ChainError> {
    let Descriptors { mut table, head: mut index } = descriptors;
    let (mut count, mut total, mut writes) = (0, 0u32, false);
    loop {
        let mut descriptor = table.read(memory, index)?;
        if descriptor.refers_to_indirect_table() {
            table = table.enter(&descriptor)?;
            descriptor = table.read(memory, 0)?;
            if descriptor.refers_to_indirect_table() {
                return Err(ChainError::Indirect);
            }
        }
        if count == limit {
            return Err(ChainError::TooLong(limit));
        }
        count += 1;
        let access = match descriptor.is_write_only() {
            true => Permissions::Write,
            false if !writes => Permissions::Read,
            false => return Err(ChainError::Order),
        };
        writes = access == Permissions::Write;
        // A chain may not exceed 2^32 bytes (section 2.7.5.2).
        total = total.checked_add(descriptor.len()).ok_or(ChainError::Broken)?;
        let len = usize::try_from(descriptor.len()).map_err(|_| ChainError::Broken)?;
        visit(descriptor.addr(), len, access)?;
        if !descriptor.has_next() {
            return Ok(());
        }
        index = descriptor.next();
    }
}

/// Pieces of guest memory, in order.
#[derive(Debug, Default)]
pub(crate) struct Buffers<'m> {
    slices: Vec<VolatileSlice<'m>>,
    len: usize,
}

impl<'m> Buffers<'m> {
    /// The `len` bytes at `address`.
    #[cfg(test)]
    pub(crate) fn of(memory: &'m GuestMemory, address: u64, len: usize) -> Self {
        let mut buffers = Self::default();
        let slices = memory.get_slices(GuestAddress(address), len, Permissions::Read).unwrap();
        slices.for_each(|slice| buffers.push(slice.unwrap()));
        buffers
    }

    fn push(&mut self, slice: VolatileSlice<'m>) {
        self.len += slice.len();
        self.slices.push(slice);
    }

    /// The total length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The pieces themselves, for vectored I/O.
    pub(crate) fn slices(&self) -> &[VolatileSlice<'m>] {
        &self.slices
    }

    /// Reads and removes the first `N` bytes.
    pub(crate) fn take_front<const N: usize>(&mut self) -> Option<[u8; N]> {
        if self.len < N {
            return None;
        }
        let mut bytes = [0; N];
        let mut missing = &mut bytes[..];
        let mut used_up = 0;
        for slice in &mut self.slices {
            let (part, rest) = missing.split_at_mut(slice.len().min(missing.len()));
            slice.read_slice(part, 0).ok()?;
            *slice = slice.offset(part.len()).ok()?;
            missing = rest;
            if !slice.is_empty() {
                break;
            }
            used_up += 1;
        }
        self.slices.drain(..used_up);
        self.len -= N;
        Some(bytes)
    }

    /// Removes the last byte.
    pub(crate) fn take_last(&mut self) -> Option<VolatileSlice<'m>> {
        let slice = self.slices.pop()?;
        let (rest, last) = slice.split_at(slice.len().checked_sub(1)?).ok()?;
        if !rest.is_empty() {
            self.slices.push(rest);
        }
        self.len -= 1;
        Some(last)
    }

    /// Fills the buffers from the front with as much of `bytes` as there is room for. Returns the
    /// number of bytes written.
    pub(crate) fn fill_from(&self, bytes: &[u8]) -> usize {
        let mut left = bytes;
        for slice in &self.slices {
            let (part, rest) = left.split_at(slice.len().min(left.len()));
            slice.copy_from(part);
            left = rest;
        }
        bytes.len() - left.len()
    }
}

#[cfg(test)]
mod tests;
