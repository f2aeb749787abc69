//! The stream from the host to the guest: data is read from the host's socket and kept until the guest
//! acknowledges it.
//!
//! The link loses nothing, so the guest's window is the limit, and congestion control (NewReno, RFC 5681
//! and 6582) begins with a loss.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::AsFd;
use std::time::Instant;

use rustix::io::Errno;

use super::rto::Rto;
use crate::pool::{Pool, SMALL};
use crate::sockets;
use crate::wire::Seq;
use crate::wire::egress::MAX_PIECES;
use crate::wire::segment::Options;

/// A chunk with less room than this is full.
const MIN_ROOM: usize = 16 << 10;
/// The most small buffers of a flow.
const MAX_SMALL: usize = 16;
/// Duplicate acknowledgements that mean a loss.
const DUPLICATES: u8 = 3;
/// Timeouts in a row after which the connection is given up: about 14 minutes.
const MAX_RETRIES: u8 = 15;
/// The least MSS that is honoured: smaller ones only cost work.
const MIN_MSS: usize = 88;
/// The MSS of a guest that names none (RFC 9293, section 3.7.1).
const DEFAULT_MSS: u16 = 536;

/// The stream from the host to the guest.
pub(super) struct Outbound {
    /// The first byte that is not acknowledged; `queue` begins with it.
    pub(super) una: Seq,
    /// The next byte to send; goes back to `una` after a timeout.
    pub(super) next: Seq,
    /// The end of all bytes ever sent.
    max: Seq,
    /// The guest's receive window, from `una`.
    window: usize,
    max_window: usize,
    /// The segment of the last window update (RFC 9293, section 3.10.7.4).
    window_seq: Seq,
    window_ack: Seq,
    scale: u8,
    pub(super) mss: usize,
    congestion: Option<Congestion>,
    duplicates: u8,
    /// The end of the bytes sent when a loss was detected.
    recover: Option<Seq>,
    /// The first byte that the guest has beyond a gap.
    sacked: Option<Seq>,
    queue: VecDeque<Chunk>,
    queued: usize,
    /// The host has closed its write half.
    pub(super) eof: bool,
    /// A FIN was sent, after all queued bytes.
    fin_sent: bool,
    pub(super) fin_acked: bool,
    rto: Rto,
    /// The round trip being measured: an end, and the time at which it was sent.
    timed: Option<(Seq, Instant)>,
    /// The retransmission deadline.
    pub(super) expires: Option<Instant>,
}

struct Congestion {
    window: usize,
    threshold: usize,
}

struct Chunk {
    data: Box<[u8]>,
    start: usize,
    end: usize,
}

/// A segment that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) seq: Seq,
    pub(super) len: usize,
    pub(super) fin: bool,
    /// Nothing more is queued behind it.
    pub(super) push: bool,
}

/// The meaning of an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ack {
    Fine,
    /// A segment is lost: send [`Outbound::missing`] again.
    Loss,
    /// It acknowledges bytes that were never sent.
    Invalid,
}

impl Outbound {
    /// A stream whose SYN has the number `iss`.
    pub(super) fn new(iss: Seq) -> Self {
        Self {
            una: iss,
            next: iss,
            max: iss,
            window: 0,
            max_window: 0,
            window_seq: Seq(0),
            window_ack: iss,
            scale: 0,
            mss: DEFAULT_MSS.into(),
            congestion: None,
            duplicates: 0,
            recover: None,
            sacked: None,
            queue: VecDeque::new(),
            queued: 0,
            eof: false,
            fin_sent: false,
            fin_acked: false,
            rto: Rto::new(),
            timed: None,
            expires: None,
        }
    }

    /// Takes the options of the guest's SYN. `most` is the largest MSS of the link.
    pub(super) fn negotiate(&mut self, options: &Options, most: u16) {
        let mss = options.mss.unwrap_or(DEFAULT_MSS).min(most);
        self.mss = usize::from(mss).max(MIN_MSS);
        self.scale = options.window_scale.unwrap_or(0);
    }

    /// A SYN was sent.
    pub(super) fn syn_sent(&mut self, now: Instant) {
        self.next = self.una + 1;
        self.max = self.next;
        if self.rto.backoff == 0 {
            self.timed = Some((self.next, now));
        }
        self.expires = Some(now + self.rto.timeout());
    }

    /// True if this acknowledges the SYN.
    pub(super) fn syn_acked(&mut self, ack: Seq, now: Instant) -> bool {
        if ack != self.una + 1 {
            return false;
        }
        self.una = ack;
        self.window_ack = ack;
        self.measure(ack, now);
        self.rto.backoff = 0;
        self.expires = None;
        true
    }

    /// Takes the window of a segment, unless the segment is older than the last update. True if the
    /// window changed.
    pub(super) fn update_window(&mut self, seq: Seq, ack: Seq, window: u16, syn: bool) -> bool {
        let newer = seq.is_after(self.window_seq)
            || seq == self.window_seq && !self.window_ack.is_after(ack)
            || syn;
        if !newer || ack != self.una {
            return false;
        }
        let scale = if syn { 0 } else { self.scale };
        let window = usize::from(window) << scale;
        let changed = window != self.window;
        if changed && self.window == 0 {
            self.rto.backoff = 0;
        }
        self.window = window;
        self.max_window = self.max_window.max(window);
        (self.window_seq, self.window_ack) = (seq, ack);
        changed
    }

    /// Takes an acknowledgement and frees what it covers.
    pub(super) fn on_ack(
        &mut self,
        ack: Seq,
        options: &Options,
        now: Instant,
        pool: &mut Pool,
    ) -> Ack {
        if ack.is_after(self.max) {
            return Ack::Invalid;
        }
        self.sacked = options
            .sack
            .into_iter()
            .flatten()
            .map(|(from, _)| from)
            .filter(|from| from.is_after(ack) && self.max.is_after(*from))
            .reduce(Seq::min);
        if !ack.is_after(self.una) {
            return Ack::Fine;
        }
        let acked = ack.since(self.una);
        let fin = self.fin_sent && ack == self.una + self.queued + 1;
        self.fin_acked |= fin;
        self.release(acked - usize::from(fin), pool);
        self.una = ack;
        self.next = self.next.max(ack);
        self.measure(ack, now);
        self.rto.backoff = 0;
        self.duplicates = 0;
        self.expires = (self.max != self.una).then(|| now + self.rto.timeout());
        if let Some(congestion) = &mut self.congestion {
            let step = if congestion.window < congestion.threshold {
                acked
            } else {
                (self.mss * self.mss / congestion.window.max(1)).max(1)
            };
            congestion.window = congestion.window.saturating_add(step);
            if self.recover.is_none() && congestion.window > self.max_window {
                self.congestion = None;
            }
        }
        match self.recover {
            Some(recover) if recover.is_after(ack) => Ack::Loss,
            Some(_) => {
                self.recover = None;
                Ack::Fine
            }
            None => Ack::Fine,
        }
    }

    /// A duplicate acknowledgement arrived (RFC 5681, section 2).
    pub(super) fn duplicate_ack(&mut self) -> Ack {
        if self.una == self.max || self.recover.is_some() {
            return Ack::Fine;
        }
        self.duplicates += 1;
        if self.duplicates < DUPLICATES {
            return Ack::Fine;
        }
        self.duplicates = 0;
        self.recover = Some(self.max);
        let window = (self.max.since(self.una) / 2).max(2 * self.mss);
        self.congestion = Some(Congestion { window, threshold: window });
        Ack::Loss
    }

    /// The segment to send again after a loss: the first that is not acknowledged.
    pub(super) fn missing(&mut self, burst: usize) -> Due {
        self.timed = None;
        let hole = self.sacked.map_or(usize::MAX, |from| from.since(self.una));
        let len = self.queued.min(burst).min(hole);
        let last = len == self.queued;
        Due { seq: self.una, len, fin: last && self.fin_sent, push: last }
    }

    /// The retransmission timeout expired. False if it did too often in a row.
    pub(super) fn timeout(&mut self) -> bool {
        if self.rto.backoff >= MAX_RETRIES {
            return false;
        }
        self.rto.back_off();
        let flight = self.max.since(self.una);
        let threshold = (flight / 2).max(2 * self.mss);
        self.congestion = Some(Congestion { window: self.mss, threshold });
        // Everything is sent again, so partial acknowledgements need no reaction.
        self.recover = None;
        self.timed = None;
        self.duplicates = 0;
        self.next = self.una;
        true
    }

    /// Timeouts in a row.
    pub(super) fn retries(&self) -> u8 {
        self.rto.backoff
    }

    pub(super) fn wait(&mut self, now: Instant) {
        self.expires = Some(now + self.rto.timeout());
    }

    /// Bytes that the windows still allow.
    fn room(&self) -> usize {
        let congestion = self.congestion.as_ref().map_or(usize::MAX, |c| c.window);
        self.window.min(congestion).saturating_sub(self.next.since(self.una))
    }

    fn unsent(&self) -> usize {
        self.queued.saturating_sub(self.next.since(self.una))
    }

    /// True if nothing is in flight and the window is closed: the window must be probed.
    pub(super) fn is_closed(&self) -> bool {
        self.window == 0 && self.is_idle()
    }

    /// True if nothing is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.max == self.una
    }

    /// True if there is more to send, queued or in the host's socket.
    pub(super) fn has_more(&self, readable: bool) -> bool {
        self.unsent() > 0 || readable && !self.eof
    }

    /// Reads from the host's socket as much as the windows allow, up to `burst` bytes ahead.
    ///
    /// # Errors
    /// The error of the host's socket.
    pub(super) fn fill(
        &mut self,
        socket: impl AsFd,
        readable: &mut bool,
        hung_up: bool,
        burst: usize,
        pool: &mut Pool,
    ) -> Result<(), Errno> {
        while *readable && !self.eof {
            let wanted = self.room().min(burst).saturating_sub(self.unsent());
            if wanted == 0 {
                break;
            }
            let room = self.queue.back().map_or(0, |chunk| chunk.data.len() - chunk.end);
            let fresh = room < wanted.min(MIN_ROOM);
            if fresh {
                let Some(data) = pool.take() else { break };
                self.queue.push_back(Chunk { data, start: 0, end: 0 });
            }
            let Some(chunk) = self.queue.back_mut() else { break };
            let end = chunk.data.len().min(chunk.end + wanted);
            let buffer = chunk.data.get_mut(chunk.end..end).unwrap_or_default();
            let len = buffer.len();
            let result = sockets::receive(&socket, buffer);
            let n = *result.as_ref().ok().and_then(Option::as_ref).unwrap_or(&0);
            chunk.end += n;
            self.queued += n;
            let small = n < SMALL && self.queue.len() <= MAX_SMALL;
            if fresh && (small || n == 0) {
                self.shrink_last(pool);
            }
            match result? {
                Some(0) => self.eof = true,
                // A short read empties the socket; epoll reports its end separately.
                Some(n) => *readable = n == len || hung_up,
                None => *readable = false,
            }
        }
        Ok(())
    }

    /// Replaces the last chunk's buffer by a small one, or returns it if it is empty.
    fn shrink_last(&mut self, pool: &mut Pool) {
        let Some(chunk) = self.queue.pop_back() else { return };
        let held = chunk.data.get(chunk.start..chunk.end).unwrap_or_default();
        if !held.is_empty() {
            let Some(mut data) = pool.take_small() else { return self.queue.push_back(chunk) };
            if let Some(room) = data.get_mut(..held.len()) {
                room.copy_from_slice(held);
            }
            self.queue.push_back(Chunk { data, start: 0, end: held.len() });
        }
        pool.put_back(chunk.data);
    }

    /// The segment to send next, at most `burst` bytes.
    pub(super) fn due(&self, burst: usize) -> Option<Due> {
        let (unsent, room) = (self.unsent(), self.room());
        let mut len = unsent.min(room).min(burst);
        let idle = self.next == self.una;
        if len < unsent && len < self.mss.min(self.max_window / 2) && !idle {
            // A small segment would only make the window look smaller (RFC 9293, section 3.8.6.2.1).
            return None;
        }
        if len < unsent && len > self.mss {
            len = len / self.mss * self.mss;
        }
        let fin = self.eof
            && len == unsent
            && !self.fin_acked
            && self.next.since(self.una) <= self.queued
            && (room > len || idle);
        (len > 0 || fin).then_some(Due { seq: self.next, len, fin, push: len == unsent })
    }

    /// The bytes of a segment, in pieces; then the number of pieces, and of bytes.
    pub(super) fn pieces(&self, due: Due) -> ([IoSlice<'_>; MAX_PIECES], usize, usize) {
        let mut pieces = [IoSlice::new(&[]); MAX_PIECES];
        let (mut skip, mut left, mut count) = (due.seq.since(self.una), due.len, 0);
        for chunk in &self.queue {
            let data = chunk.data.get(chunk.start..chunk.end).unwrap_or_default();
            let Some(data) = data.get(skip..).filter(|data| !data.is_empty()) else {
                skip -= data.len();
                continue;
            };
            skip = 0;
            let data = data.get(..left).unwrap_or(data);
            left -= data.len();
            let Some(piece) = pieces.get_mut(count) else { break };
            *piece = IoSlice::new(data);
            count += 1;
            if left == 0 {
                break;
            }
        }
        let len = pieces.iter().map(|piece| piece.len()).sum();
        (pieces, count, len)
    }

    /// A segment was sent. True if it is a retransmission.
    pub(super) fn sent(&mut self, due: Due, now: Instant) -> bool {
        let end = due.seq + due.len + usize::from(due.fin);
        let again = self.max.is_after(due.seq);
        self.fin_sent |= due.fin;
        self.next = self.next.max(end);
        self.max = self.max.max(end);
        if !again && self.timed.is_none() {
            self.timed = Some((end, now));
        }
        if self.expires.is_none() || again {
            self.expires = Some(now + self.rto.timeout());
        }
        again
    }

    fn measure(&mut self, ack: Seq, now: Instant) {
        if let Some((end, sent)) = self.timed
            && !end.is_after(ack)
        {
            self.rto.measure(now.saturating_duration_since(sent));
            self.timed = None;
        }
    }

    /// Frees acknowledged bytes.
    fn release(&mut self, mut len: usize, pool: &mut Pool) {
        self.queued = self.queued.saturating_sub(len);
        while let Some(chunk) = self.queue.front_mut() {
            let held = chunk.end - chunk.start;
            if len < held {
                chunk.start += len;
                return;
            }
            len -= held;
            self.queue.pop_front().into_iter().for_each(|chunk| pool.put_back(chunk.data));
        }
        if self.queue.capacity() > 64 {
            self.queue = VecDeque::new();
        }
    }

    /// Frees everything.
    pub(super) fn clear(&mut self, pool: &mut Pool) {
        self.queue.drain(..).for_each(|chunk| pool.put_back(chunk.data));
        self.queued = 0;
    }
}
