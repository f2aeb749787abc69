//! The header of a frame (virtio 1.3, section 5.1.6): what is left to do with it.

use virtio_bindings::virtio_net::*;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::virtio::has_feature;

/// Bytes of an Ethernet header, without a VLAN tag.
pub(super) const ETHERNET: usize = 14;

/// The longest frame in bytes, in either direction: an IPv6 payload of 65,535 bytes and its headers.
pub const MAX_FRAME: usize = 65_536 + 64;

/// `struct virtio_net_hdr`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub(super) struct Header {
    pub(super) flags: u8,
    pub(super) gso_type: u8,
    pub(super) hdr_len: U16,
    pub(super) gso_size: U16,
    pub(super) csum_start: U16,
    pub(super) csum_offset: U16,
    /// The driver's is not looked at.
    pub(super) num_buffers: U16,
}

/// The size of [`Header`].
pub(super) const HEADER_SIZE: usize = size_of::<Header>();

/// What the sender of a frame left to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The checksum is partial: it covers the pseudo header only.
    pub checksum: Option<PartialChecksum>,
    /// The frame is larger than the MTU. Its checksum is partial, too.
    pub segmentation: Option<Segmentation>,
}

/// Where the checksum of a frame has to be completed. It lies within the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Where what it covers starts, in bytes from the start of the frame.
    pub start: u16,
    /// Where it is stored, in bytes from `start`.
    pub offset: u16,
}

/// How a TCP segment larger than the MTU could be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// TCP over IPv6, not over IPv4.
    pub v6: bool,
    /// Bytes of headers, Ethernet to TCP. From a guest this is a hint, and may be wrong.
    pub header_len: u16,
    /// Bytes of TCP payload in each piece; never 0 from a guest.
    pub segment_size: u16,
}

/// What the guest takes from the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortFeatures {
    /// Frames whose TCP or UDP checksum is partial.
    pub checksum: bool,
    /// TCP over IPv4 in frames larger than the MTU. Only together with `checksum`.
    pub tso4: bool,
    /// TCP over IPv6 in frames larger than the MTU. Only together with `checksum`.
    pub tso6: bool,
}

impl PortFeatures {
    /// What the driver negotiated.
    pub(super) fn of(features: u64) -> Self {
        let checksum = has_feature(features, VIRTIO_NET_F_GUEST_CSUM);
        Self {
            checksum,
            tso4: checksum && has_feature(features, VIRTIO_NET_F_GUEST_TSO4),
            tso6: checksum && has_feature(features, VIRTIO_NET_F_GUEST_TSO6),
        }
    }

    /// Whether the guest takes a frame that this is left to do for.
    fn covers(self, offload: &Offload) -> bool {
        let segmentation = match offload.segmentation {
            None => true,
            Some(cut) => {
                offload.checksum.is_some()
                    && cut.segment_size > 0
                    && if cut.v6 { self.tso6 } else { self.tso4 }
            }
        };
        segmentation && (self.checksum || offload.checksum.is_none())
    }
}

/// Why a frame is not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("a chain of {0} bytes, less than a frame header")]
    NoHeader(usize),
    #[error("a frame of {0} bytes")]
    Length(usize),
    #[error(
        "a frame with an offload that was not negotiated: flags {flags:#x}, type {gso_type:#x}"
    )]
    Offload { flags: u8, gso_type: u8 },
    #[error("a checksum at {start} + {offset} of a frame of {len} bytes")]
    Checksum { start: u16, offset: u16, len: usize },
    #[error("a frame to be cut without a partial checksum, or into pieces of nothing")]
    Segmentation,
}

impl Header {
    /// Checks a header that the guest sent with a frame of `len` bytes.
    pub(super) fn check(&self, features: u64, len: usize) -> Result<Offload, FrameError> {
        check_length(len)?;
        let checksum = self.checksum(features, len)?;
        let segmentation = self.segmentation(features)?;
        if segmentation.is_some_and(|cut| checksum.is_none() || cut.segment_size == 0) {
            return Err(FrameError::Segmentation);
        }
        Ok(Offload { checksum, segmentation })
    }

    fn checksum(&self, features: u64, len: usize) -> Result<Option<PartialChecksum>, FrameError> {
        if u32::from(self.flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 {
            return Ok(None);
        }
        if !has_feature(features, VIRTIO_NET_F_CSUM) {
            return Err(self.unknown_offload());
        }
        PartialChecksum { start: self.csum_start.get(), offset: self.csum_offset.get() }
            .check(len)
            .map(Some)
    }

    fn segmentation(&self, features: u64) -> Result<Option<Segmentation>, FrameError> {
        let gso_type = u32::from(self.gso_type);
        let (v6, feature) = match gso_type & !VIRTIO_NET_HDR_GSO_ECN {
            VIRTIO_NET_HDR_GSO_NONE => return Ok(None),
            VIRTIO_NET_HDR_GSO_TCPV4 => (false, VIRTIO_NET_F_HOST_TSO4),
            VIRTIO_NET_HDR_GSO_TCPV6 => (true, VIRTIO_NET_F_HOST_TSO6),
            _ => return Err(self.unknown_offload()),
        };
        let ecn = gso_type & VIRTIO_NET_HDR_GSO_ECN != 0;
        if !has_feature(features, feature) || ecn && !has_feature(features, VIRTIO_NET_F_HOST_ECN) {
            return Err(self.unknown_offload());
        }
        let (header_len, segment_size) = (self.hdr_len.get(), self.gso_size.get());
        Ok(Some(Segmentation { v6, header_len, segment_size }))
    }

    fn unknown_offload(&self) -> FrameError {
        FrameError::Offload { flags: self.flags, gso_type: self.gso_type }
    }

    /// The header of a frame of `len` bytes to a guest that takes `features`.
    pub(super) fn to_guest(
        offload: &Offload,
        features: PortFeatures,
        len: usize,
    ) -> Result<Self, FrameError> {
        check_length(len)?;
        let mut header = Self { num_buffers: U16::new(1), ..Self::default() };
        if let Some(checksum) = offload.checksum {
            checksum.check(len)?;
            header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
            header.csum_start = checksum.start.into();
            header.csum_offset = checksum.offset.into();
        }
        if let Some(cut) = offload.segmentation {
            let family = if cut.v6 { VIRTIO_NET_HDR_GSO_TCPV6 } else { VIRTIO_NET_HDR_GSO_TCPV4 };
            header.gso_type = family as u8;
            header.hdr_len = cut.header_len.into();
            header.gso_size = cut.segment_size.into();
        }
        match features.covers(offload) {
            true => Ok(header),
            false => Err(header.unknown_offload()),
        }
    }
}

fn check_length(len: usize) -> Result<(), FrameError> {
    match len {
        ETHERNET..=MAX_FRAME => Ok(()),
        _ => Err(FrameError::Length(len)),
    }
}

impl PartialChecksum {
    /// Itself, if it lies within a frame of `len` bytes.
    fn check(self, len: usize) -> Result<Self, FrameError> {
        let Self { start, offset } = self;
        match usize::from(start) + usize::from(offset) + size_of::<u16>() <= len {
            true => Ok(self),
            false => Err(FrameError::Checksum { start, offset, len }),
        }
    }
}

#[cfg(test)]
mod tests;
