//! The header of a frame (virtio 1.3, section 5.1.6), which requests offloads.

use boxlite_net_frame::{MAX_FRAME, Offload, OffloadFeatures, PartialChecksum, Segmentation};
use virtio_bindings::virtio_net::*;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::virtio::has_feature;

/// Bytes of an Ethernet header, without a VLAN tag.
pub(super) const ETHERNET: usize = 14;

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
    /// Set for the guest; the driver's value is ignored.
    pub(super) num_buffers: U16,
}

/// The size of [`Header`].
pub(super) const HEADER_SIZE: usize = size_of::<Header>();

/// The offloads that the driver negotiated for frames that it receives.
pub(super) fn offload_features(features: u64) -> OffloadFeatures {
    let checksum = has_feature(features, VIRTIO_NET_F_GUEST_CSUM);
    OffloadFeatures {
        checksum,
        tso4: checksum && has_feature(features, VIRTIO_NET_F_GUEST_TSO4),
        tso6: checksum && has_feature(features, VIRTIO_NET_F_GUEST_TSO6),
    }
}

/// Why a frame is dropped.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("a chain of {0} bytes is shorter than a frame header")]
    NoHeader(usize),
    #[error("a length of {0} bytes is out of range")]
    Length(usize),
    #[error("an offload that was not negotiated: flags {flags:#x}, type {gso_type:#x}")]
    Offload { flags: u8, gso_type: u8 },
    #[error("a checksum at {start} + {offset} is outside the frame of {len} bytes")]
    Checksum { start: u16, offset: u16, len: usize },
    #[error("segmentation without a partial checksum, or with a segment size of 0")]
    Segmentation,
}

impl Header {
    /// Checks a header that the guest sent with a frame of `len` bytes.
    pub(super) fn check(&self, features: u64, len: usize) -> Result<Offload, FrameError> {
        check_length(len)?;
        let checksum = self.checksum(features, len)?;
        let segmentation = self.segmentation(features)?;
        if segmentation.is_some_and(|gso| checksum.is_none() || gso.segment_size == 0) {
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
        let (start, offset) = (self.csum_start.get(), self.csum_offset.get());
        check_checksum(PartialChecksum { start, offset }, len).map(Some)
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

    /// The header of a frame of `len` bytes to a guest that negotiated `features`.
    pub(super) fn to_guest(
        offload: &Offload,
        features: OffloadFeatures,
        len: usize,
    ) -> Result<Self, FrameError> {
        check_length(len)?;
        let mut header = Self { num_buffers: U16::new(1), ..Self::default() };
        if let Some(checksum) = offload.checksum {
            check_checksum(checksum, len)?;
            header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
            header.csum_start = checksum.start.into();
            header.csum_offset = checksum.offset.into();
        }
        if let Some(gso) = offload.segmentation {
            let family = if gso.v6 { VIRTIO_NET_HDR_GSO_TCPV6 } else { VIRTIO_NET_HDR_GSO_TCPV4 };
            header.gso_type = family as u8;
            header.hdr_len = gso.header_len.into();
            header.gso_size = gso.segment_size.into();
        }
        match features.accept(offload) {
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

/// Returns `checksum`, if it lies within a frame of `len` bytes.
fn check_checksum(checksum: PartialChecksum, len: usize) -> Result<PartialChecksum, FrameError> {
    let PartialChecksum { start, offset } = checksum;
    match usize::from(start) + usize::from(offset) + size_of::<u16>() <= len {
        true => Ok(checksum),
        false => Err(FrameError::Checksum { start, offset, len }),
    }
}

#[cfg(test)]
mod tests;
