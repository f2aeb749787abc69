//! The offloads of an Ethernet frame between a guest and its network, that is, the work left to the receiver:
//! `struct virtio_net_hdr` (virtio 1.3, section 5.1.6) as values, without a layout.
//!
//! The device and the network both use this type, and neither depends on the other. Nothing else belongs here.

#![forbid(unsafe_code)]

/// Bytes of the largest frame, in either direction: a 65,535-byte IPv6 payload with its headers, or a 64 KiB packet
/// whose segmentation the sender left to the receiver.
pub const MAX_FRAME: usize = 65_536 + 64;

/// The work that a frame leaves to its receiver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The checksum is partial: it covers the pseudo header only.
    pub checksum: Option<PartialChecksum>,
    /// The frame is larger than the MTU. Its checksum is partial, too.
    pub segmentation: Option<Segmentation>,
}

/// The place of a partial checksum in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Start of the covered bytes, from the start of the frame.
    pub start: u16,
    /// Offset of the checksum, from `start`.
    pub offset: u16,
}

/// How to segment a TCP frame that is larger than the MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// TCP over IPv6; false is TCP over IPv4.
    pub v6: bool,
    /// Bytes of headers, Ethernet to TCP. From a guest this is a hint, and may be wrong.
    pub header_len: u16,
    /// Bytes of TCP payload in each segment (`gso_size`); never 0 from a guest.
    pub segment_size: u16,
}

/// The offloads that a guest accepts in frames that it receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OffloadFeatures {
    /// Frames whose TCP or UDP checksum is partial (`VIRTIO_NET_F_GUEST_CSUM`).
    pub checksum: bool,
    /// TCP over IPv4 in frames larger than the MTU (`VIRTIO_NET_F_GUEST_TSO4`); needs `checksum`.
    pub tso4: bool,
    /// TCP over IPv6 in frames larger than the MTU (`VIRTIO_NET_F_GUEST_TSO6`); needs `checksum`.
    pub tso6: bool,
}

impl OffloadFeatures {
    /// Whether a guest with these features accepts a frame with this offload.
    pub fn accept(self, offload: &Offload) -> bool {
        let segmentation = match offload.segmentation {
            None => true,
            Some(segmentation) => {
                offload.checksum.is_some()
                    && segmentation.segment_size > 0
                    && if segmentation.v6 { self.tso6 } else { self.tso4 }
            }
        };
        segmentation && (self.checksum || offload.checksum.is_none())
    }
}
