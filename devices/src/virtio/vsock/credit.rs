//! Credit: how much each side of a connection may send before the other has made room (virtio 1.3,
//! section 5.10.6.3).
//!
//! All counters are bytes since the start of the connection, modulo 2³². The guest's numbers are not
//! trusted: with any of them no subtraction underflows, and at most [`WINDOW`] bytes of its data are
//! held.

use std::num::Wrapping;

/// How many bytes of guest data the host side of one connection holds at most: its `buf_alloc`.
pub(super) const WINDOW: u32 = 256 * 1024;

/// A credit update is due once so many bytes were taken since the last `fwd_cnt` that was sent. Half
/// of the window keeps a guest busy that sends up to 128 KiB at a time, with one update per 128 KiB.
const UPDATE_AFTER: u32 = WINDOW / 2;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Credit {
    /// Bytes sent to the guest.
    tx_cnt: Wrapping<u32>,
    /// How many of them the guest has read.
    peer_fwd_cnt: Wrapping<u32>,
    /// Size of the guest's buffer.
    peer_buf_alloc: u32,
    /// Bytes received from the guest.
    rx_cnt: Wrapping<u32>,
    /// How many of them the host side has taken.
    fwd_cnt: Wrapping<u32>,
    /// The `fwd_cnt` that was last sent to the guest.
    last_fwd_cnt: Wrapping<u32>,
}

impl Credit {
    /// Applies the credit in the header of a packet from the guest.
    ///
    /// A `fwd_cnt` that goes back is stale (a driver stamps packets before it orders them), and one
    /// ahead of what was sent is wrong. Both are ignored, which can only slow down the guest itself.
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

    /// Counts `count` bytes, within [`available`](Self::available), as sent to the guest.
    pub(super) fn sent(&mut self, count: u32) {
        debug_assert!(count <= self.available());
        self.tx_cnt += count;
    }

    /// Counts `count` bytes as received. False, and nothing has changed, if the guest had no credit for
    /// them.
    #[must_use]
    pub(super) fn receive(&mut self, count: u32) -> bool {
        let fits = count <= WINDOW - self.held();
        if fits {
            self.rx_cnt += count;
        }
        fits
    }

    /// Counts `count` of the [held](Self::held) bytes as taken by the host side.
    pub(super) fn forwarded(&mut self, count: u32) {
        debug_assert!(count <= self.held());
        self.fwd_cnt += count;
    }

    /// The guest's bytes that the host side has not taken yet; at most [`WINDOW`].
    pub(super) fn held(&self) -> u32 {
        (self.rx_cnt - self.fwd_cnt).0
    }

    /// Whether to send the guest a credit update.
    pub(super) fn update_is_due(&self) -> bool {
        (self.fwd_cnt - self.last_fwd_cnt).0 >= UPDATE_AFTER
    }

    /// The `buf_alloc` and `fwd_cnt` for a packet that is about to be sent.
    pub(super) fn stamp(&mut self) -> (u32, u32) {
        self.last_fwd_cnt = self.fwd_cnt;
        (WINDOW, self.fwd_cnt.0)
    }
}
