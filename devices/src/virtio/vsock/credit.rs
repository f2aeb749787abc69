//! Credit: how much each side of a connection may send before the other has made room (virtio 1.3,
//! section 5.10.6.3).
//!
//! All counters are bytes since the connection began, modulo 2³². The guest's numbers are not
//! trusted: whatever it says, no subtraction underflows and no more than [`WINDOW`] bytes of its
//! data are ours to keep.

use std::num::Wrapping;

/// How many bytes of guest data the host side of one connection holds at most: its `buf_alloc`.
pub(super) const WINDOW: u32 = 256 * 1024;

/// Tell the guest of room once it has this much less of it than we do. Half of the window keeps a
/// guest busy that sends up to 128 KiB at a time, for one packet in 128 KiB.
const UPDATE_AFTER: u32 = WINDOW / 2;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Credit {
    /// Sent to the guest.
    tx_cnt: Wrapping<u32>,
    /// Of these the guest has read so many.
    peer_fwd_cnt: Wrapping<u32>,
    /// The guest's buffer.
    peer_buf_alloc: u32,
    /// Received from the guest.
    rx_cnt: Wrapping<u32>,
    /// Of these the host side has taken so many.
    fwd_cnt: Wrapping<u32>,
    /// The `fwd_cnt` that the guest was last told.
    told_fwd_cnt: Wrapping<u32>,
}

impl Credit {
    /// Takes over what a packet's header says of the guest's buffer.
    ///
    /// A `fwd_cnt` that goes back is stale (a driver stamps packets before it orders them), and one
    /// ahead of what was sent is a lie; both are ignored, which can only slow the guest itself.
    pub(super) fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.peer_buf_alloc = buf_alloc;
        let fwd_cnt = Wrapping(fwd_cnt);
        if self.tx_cnt - fwd_cnt <= self.in_flight() {
            self.peer_fwd_cnt = fwd_cnt;
        }
    }

    fn in_flight(&self) -> Wrapping<u32> {
        self.tx_cnt - self.peer_fwd_cnt
    }

    /// How many bytes the guest has room for.
    pub(super) fn available(&self) -> u32 {
        self.peer_buf_alloc.saturating_sub(self.in_flight().0)
    }

    /// `count` bytes, within [`available`](Self::available), were sent to the guest.
    pub(super) fn sent(&mut self, count: u32) {
        debug_assert!(count <= self.available());
        self.tx_cnt += count;
    }

    /// The guest sent `count` bytes. False, and nothing has changed, if it had no room for them.
    #[must_use]
    pub(super) fn receive(&mut self, count: u32) -> bool {
        let fits = count <= WINDOW - self.held();
        if fits {
            self.rx_cnt += count;
        }
        fits
    }

    /// The host side took `count` bytes of those it [held](Self::held).
    pub(super) fn forwarded(&mut self, count: u32) {
        debug_assert!(count <= self.held());
        self.fwd_cnt += count;
    }

    /// How many bytes of the guest's wait for the host side to take them; at most [`WINDOW`].
    pub(super) fn held(&self) -> u32 {
        (self.rx_cnt - self.fwd_cnt).0
    }

    /// Whether to send the guest a credit update.
    pub(super) fn update_is_due(&self) -> bool {
        (self.fwd_cnt - self.told_fwd_cnt).0 >= UPDATE_AFTER
    }

    /// The `buf_alloc` and `fwd_cnt` for a packet that is about to be sent.
    pub(super) fn stamp(&mut self) -> (u32, u32) {
        self.told_fwd_cnt = self.fwd_cnt;
        (WINDOW, self.fwd_cnt.0)
    }
}
