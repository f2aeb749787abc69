//! The guest's side of a network: a [`Link`] carries its Ethernet frames.
//!
//! A virtio-net device, a TAP device ([`TapLink`](crate::sys::TapLink)) and a test ([`memory`]) each
//! implement it. Frames cross it one by one, in buffers that are reused. What is done once for many frames
//! (interrupts, doorbells) is done in [`Link::flush`].

use std::any::Any;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

pub mod memory;
pub mod pcap;

/// Bytes of every receive buffer. The largest frame is a 65,535-byte IPv6 payload with its headers, or a
/// 64 KiB packet whose segmentation the guest left to the network.
pub const MAX_FRAME: usize = 65_536 + 64;

/// The guest's end of a network. All calls come from the network's thread.
pub trait Link: Any + Send {
    /// A descriptor that becomes readable when there are frames to receive, or room to send after
    /// [`Sent::Full`]. It is watched edge-triggered: a doorbell (eventfd) may be cleared in
    /// [`Link::woken`], but need not be.
    fn fd(&self) -> BorrowedFd<'_>;

    /// The offloads that the guest accepts in frames that it receives.
    fn features(&self) -> LinkFeatures;

    /// [`Link::fd`] became readable. [`Link::receive`] is called next, until it returns none.
    fn woken(&mut self) {}

    /// Copies the next frame of the guest into `buffer`, which has [`MAX_FRAME`] bytes. None if there is
    /// no frame; [`Link::fd`] must then become readable with the next one.
    ///
    /// # Errors
    /// The link is broken and is not used any more.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<Received>>;

    /// Sends a frame, given in pieces, to the guest: the whole frame, or nothing.
    ///
    /// # Errors
    /// The link is broken and is not used any more.
    fn send(&mut self, frame: &[IoSlice<'_>], offload: Offload) -> io::Result<Sent>;

    /// Makes what was sent and received visible to the guest. Called once in a turn of the loop.
    ///
    /// # Errors
    /// The link is broken and is not used any more.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The offloads that a guest accepts in frames that it receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkFeatures {
    /// Frames whose TCP or UDP checksum is partial (`VIRTIO_NET_F_GUEST_CSUM`).
    pub checksum: bool,
    /// TCP over IPv4 in frames larger than the MTU (`VIRTIO_NET_F_GUEST_TSO4`); needs `checksum`.
    pub tso4: bool,
    /// TCP over IPv6 in frames larger than the MTU (`VIRTIO_NET_F_GUEST_TSO6`); needs `checksum`.
    pub tso6: bool,
}

/// A frame that the guest sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its length in bytes.
    pub len: usize,
    /// The TCP or UDP checksum need not be verified: it is partial, or known to be correct.
    pub checksum_valid: bool,
}

/// The work that a frame leaves to its receiver: the contents of `struct virtio_net_hdr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The checksum is partial: it covers the pseudo header only.
    pub checksum: Option<PartialChecksum>,
    /// The frame is larger than the MTU.
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

/// How to segment a frame that is larger than the MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// TCP over IPv6; false is TCP over IPv4.
    pub v6: bool,
    /// Bytes of headers, Ethernet to TCP.
    pub header_len: u16,
    /// Bytes of TCP payload in each segment (`gso_size`).
    pub segment_size: u16,
}

/// The outcome of [`Link::send`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The frame is sent.
    Sent,
    /// There is no room for the frame; [`Link::fd`] becomes readable when there is.
    Full,
}
