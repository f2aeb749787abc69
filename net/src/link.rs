//! The frame side: where a guest's Ethernet frames come from and go to.
//!
//! A [`Link`] is what a virtio-net device, a TAP device ([`TapLink`](crate::sys::TapLink)) or a test ([`memory`]) is to the
//! network. Frames cross it one by one, in buffers that are reused; work that should be done once
//! for many frames (interrupts, doorbells) is done in [`Link::flush`].

use std::any::Any;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

pub mod memory;
pub mod pcap;

/// Bytes that every receive buffer has: the largest frame is a 65,535-byte IPv6 payload with its
/// headers, or a 64 KiB packet that the guest left to us to segment.
pub const MAX_FRAME: usize = 65_536 + 64;

/// A guest's end of the wire. All calls come from the network's thread.
pub trait Link: Any + Send {
    /// Becomes readable when there are frames to receive, or room to send after [`Sent::Full`].
    /// It is watched edge-triggered: a doorbell (eventfd) need not be cleared, but may be, in
    /// [`Link::woken`].
    fn fd(&self) -> BorrowedFd<'_>;

    /// What the guest takes from us.
    fn features(&self) -> LinkFeatures;

    /// [`Link::fd`] became readable; [`Link::receive`] is called next, until it has no more.
    fn woken(&mut self) {}

    /// Copies the next frame of the guest into `buffer`, which has [`MAX_FRAME`] bytes. None when
    /// there is none; the link then sees to it that its fd becomes readable with the next.
    ///
    /// # Errors
    /// The link is broken for good: it is not used any more.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<Received>>;

    /// Sends a frame, given in pieces, to the guest: whole, or not at all.
    ///
    /// # Errors
    /// The link is broken for good: it is not used any more.
    fn send(&mut self, frame: &[IoSlice<'_>], offload: Offload) -> io::Result<Sent>;

    /// Ends a turn: what was sent and received becomes visible to the guest.
    ///
    /// # Errors
    /// The link is broken for good: it is not used any more.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a guest takes from us.
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
    /// The TCP or UDP checksum need not be looked at: it is partial, or known to be right.
    pub checksum_valid: bool,
}

/// What is left to do for whoever takes the frame; `struct virtio_net_hdr` without its layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The checksum is partial: it covers the pseudo header only.
    pub checksum: Option<PartialChecksum>,
    /// The frame is larger than the MTU.
    pub segmentation: Option<Segmentation>,
}

/// Where the checksum of a frame has to be completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Where what it covers starts, in bytes from the start of the frame.
    pub start: u16,
    /// Where it is stored, in bytes from `start`.
    pub offset: u16,
}

/// How a frame larger than the MTU could be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// TCP over IPv6, not over IPv4.
    pub v6: bool,
    /// Bytes of headers, Ethernet to TCP.
    pub header_len: u16,
    /// Bytes of TCP payload in each piece (`gso_size`).
    pub segment_size: u16,
}

/// What came of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Sent,
    /// There is no room for it; the link's fd becomes readable when there is some.
    Full,
}
