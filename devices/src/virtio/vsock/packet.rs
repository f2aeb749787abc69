//! Packets as they lie in guest memory (virtio 1.3, section 5.10.6): a header of 44 bytes and its
//! payload, split into descriptors at any byte (section 2.7.4).

use vm_memory::VolatileSlice;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::GuestMemory;
use crate::virtio::chain::{Buffers, Chain, ChainError, Descriptors};

/// The CID of the host.
pub(super) const HOST_CID: u64 = 2;

/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub(super) const TYPE_STREAM: u16 = 1;

/// `VIRTIO_VSOCK_OP_*`: what a packet is for.
pub(super) mod op {
    pub(in super::super) const REQUEST: u16 = 1;
    pub(in super::super) const RESPONSE: u16 = 2;
    pub(in super::super) const RST: u16 = 3;
    pub(in super::super) const SHUTDOWN: u16 = 4;
    pub(in super::super) const RW: u16 = 5;
    pub(in super::super) const CREDIT_UPDATE: u16 = 6;
    pub(in super::super) const CREDIT_REQUEST: u16 = 7;
}

/// `struct virtio_vsock_hdr`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub(super) struct Header {
    pub(super) src_cid: U64,
    pub(super) dst_cid: U64,
    pub(super) src_port: U32,
    pub(super) dst_port: U32,
    pub(super) len: U32,
    pub(super) socket_type: U16,
    pub(super) op: U16,
    pub(super) flags: U32,
    pub(super) buf_alloc: U32,
    pub(super) fwd_cnt: U32,
}

/// The size of [`Header`].
pub(super) const HEADER_SIZE: usize = size_of::<Header>();

/// The most descriptors of a packet: a chain is not longer than its queue (section 2.7.5.3.1).
const MAX_DESCRIPTORS: usize = 256;

/// Why a descriptor chain carries no packet.
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("a chain of {0} bytes is shorter than a packet header")]
    NoHeader(usize),
    /// The header's length is larger than the payload that the chain holds.
    #[error("a payload of {} bytes in a chain with {room}", .header.len)]
    Truncated { header: Header, room: usize },
}

/// The bytes of `slices` from `offset` on, at most `len` of them.
fn range<'s, 'm>(
    slices: &'s [VolatileSlice<'m>],
    mut offset: usize,
    mut len: usize,
) -> impl Iterator<Item = VolatileSlice<'m>> + Clone + use<'s, 'm> {
    slices.iter().filter_map(move |slice| {
        let skipped = offset.min(slice.len());
        let taken = len.min(slice.len() - skipped);
        offset -= skipped;
        len -= taken;
        if taken == 0 { None } else { slice.subslice(skipped, taken).ok() }
    })
}

/// A packet from the guest.
#[derive(Debug)]
pub(super) struct TxPacket<'m> {
    pub(super) header: Header,
    payload: Buffers<'m>,
}

impl<'m> TxPacket<'m> {
    /// The packet in the device-readable part of a chain.
    pub(super) fn parse(memory: &'m GuestMemory, chain: Descriptors) -> Result<Self, Malformed> {
        let mut payload = Chain::collect(memory, chain, MAX_DESCRIPTORS)?.readable;
        let room = payload.len();
        // Read once: the guest may change it at any time.
        let header: [u8; HEADER_SIZE] = payload.take_front().ok_or(Malformed::NoHeader(room))?;
        let header: Header = zerocopy::transmute!(header);
        if usize::try_from(header.len.get()).map_or(true, |len| len > payload.len()) {
            return Err(Malformed::Truncated { header, room: payload.len() });
        }
        Ok(Self { header, payload })
    }

    /// The payload: `header.len` bytes.
    pub(super) fn payload(&self) -> impl Iterator<Item = VolatileSlice<'m>> + Clone {
        range(self.payload.slices(), 0, self.header.len.get() as usize)
    }
}

/// A buffer for a packet to the guest.
#[derive(Debug)]
pub(super) struct RxBuffer<'m> {
    head: u16,
    buffers: Buffers<'m>,
}

impl<'m> RxBuffer<'m> {
    /// The device-writable part of a chain.
    pub(super) fn new(memory: &'m GuestMemory, chain: Descriptors) -> Result<Self, Malformed> {
        let head = chain.head_index();
        let buffers = Chain::collect(memory, chain, MAX_DESCRIPTORS)?.writable;
        match buffers.len() {
            HEADER_SIZE.. => Ok(Self { head, buffers }),
            len => Err(Malformed::NoHeader(len)),
        }
    }

    /// The index of the chain's first descriptor.
    pub(super) fn head(&self) -> u16 {
        self.head
    }

    /// The number of bytes of payload that fit.
    pub(super) fn room(&self) -> usize {
        self.buffers.len() - HEADER_SIZE
    }

    /// The number of pieces of memory.
    pub(super) fn pieces(&self) -> usize {
        self.buffers.slices().len()
    }

    /// The memory behind the header, for the first `len` bytes of payload.
    pub(super) fn payload(&self, len: usize) -> impl Iterator<Item = VolatileSlice<'m>> {
        range(self.buffers.slices(), HEADER_SIZE, len)
    }

    /// Writes the header.
    pub(super) fn write_header(&self, header: &Header) {
        self.buffers.fill_from(header.as_bytes());
    }
}

#[cfg(test)]
mod tests;
