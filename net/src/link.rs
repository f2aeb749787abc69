//! The guest's side of a network: a [`Link`] carries its Ethernet frames.
//!
//! A virtio-net device, a TAP device ([`TapLink`](crate::sys::TapLink)) and a test ([`memory`]) each
//! implement it. Frames cross it one by one, in buffers that are reused. What is done once for many frames
//! (interrupts, doorbells) is done in [`Link::flush`].

use std::any::Any;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

pub use boxlite_net_frame::{MAX_FRAME, Offload, OffloadFeatures, PartialChecksum, Segmentation};

pub mod memory;
pub mod pcap;

/// The guest's end of a network. All calls come from the network's thread.
pub trait Link: Any + Send {
    /// A descriptor that becomes readable when there are frames to receive, or room to send after
    /// [`Sent::Full`]. It is watched edge-triggered: a doorbell (eventfd) may be cleared in
    /// [`Link::woken`], but need not be.
    fn fd(&self) -> BorrowedFd<'_>;

    /// The offloads that the guest accepts in frames that it receives.
    fn features(&self) -> OffloadFeatures;

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

/// A frame that the guest sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its length in bytes.
    pub len: usize,
    /// The TCP or UDP checksum need not be verified: it is partial, or known to be correct.
    pub checksum_valid: bool,
}

/// The outcome of [`Link::send`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The frame is sent.
    Sent,
    /// There is no room for the frame; [`Link::fd`] becomes readable when there is.
    Full,
}
