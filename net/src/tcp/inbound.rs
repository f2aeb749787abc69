//! The stream from the guest to the host: data is put in order, written to the host's socket and
//! acknowledged.

use std::os::fd::AsFd;

use rustix::io::Errno;

use super::gaps::{self, Gaps};
use crate::pool::{Backlog, Budget};
use crate::sockets;
use crate::wire::Segment;
use crate::wire::Seq;

/// The receive window while the host's socket accepts everything.
const WINDOW: usize = 2 << 20;
/// The receive window while memory is short.
const TIGHT_WINDOW: usize = 64 << 10;
/// The scale of advertised windows: up to 8 MiB fit.
pub(super) const SCALE: u8 = 7;

/// The stream from the guest to the host.
pub(super) struct Inbound {
    /// The next byte that is expected: all bytes before it are written, or in `pending`.
    pub(super) next: Seq,
    /// The end of the advertised window; it never moves back.
    edge: Seq,
    /// 0 if the guest does not scale.
    pub(super) scale: u8,
    /// Data for which the host's socket had no room.
    pending: Backlog,
    gaps: Gaps,
    /// The start of the last segment that was out of order.
    recent: Seq,
    /// The position of the guest's FIN, once received.
    fin: Option<Seq>,
    /// All data up to the guest's FIN has arrived.
    pub(super) fin_reached: bool,
    /// The write half of the host's socket is closed.
    pub(super) fin_forwarded: bool,
}

/// The outcome of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The segment takes no sequence space.
    Empty,
    /// The stream has advanced.
    InOrder,
    /// The guest needs an acknowledgement at once: something is missing, or old.
    Unexpected,
}

impl Inbound {
    /// A stream whose first byte has the number `next`.
    pub(super) fn new(next: Seq, scale: u8) -> Self {
        Self {
            next,
            edge: next,
            scale,
            pending: Backlog::default(),
            gaps: Gaps::default(),
            recent: next,
            fin: None,
            fin_reached: false,
            fin_forwarded: false,
        }
    }

    /// The window field of the next segment. At most 64 KiB until the scale is negotiated.
    pub(super) fn advertise(&mut self, scaled: bool, budget: &Budget) -> u16 {
        let most = if budget.is_tight() { TIGHT_WINDOW } else { WINDOW };
        let wanted = most.saturating_sub(self.pending.len() + self.gaps.len());
        let scale = if scaled { self.scale } else { 0 };
        let window = (self.next + wanted).max(self.edge).since(self.next) >> scale;
        let window = u16::try_from(window).unwrap_or(u16::MAX);
        self.edge = (self.next + (usize::from(window) << scale)).max(self.edge);
        window
    }

    /// True if the window has grown so much that the guest needs an update.
    pub(super) fn has_news(&self, mss: usize) -> bool {
        let stored = self.pending.len() + self.gaps.len();
        let advertised = self.edge.since(self.next);
        advertised < mss.min(WINDOW / 4) && WINDOW.saturating_sub(stored) >= WINDOW / 2
    }

    /// Accepts a segment's data and FIN. `writable` says whether the socket has room.
    ///
    /// # Errors
    /// The error of the host's socket.
    pub(super) fn accept(
        &mut self,
        segment: &Segment<'_>,
        socket: impl AsFd,
        writable: &mut bool,
        budget: &mut Budget,
    ) -> Result<Arrival, Errno> {
        if segment.payload.is_empty() && !segment.fin {
            // An old one may be a keepalive, which needs an answer.
            let old = self.next.is_after(segment.seq);
            return Ok(if old { Arrival::Unexpected } else { Arrival::Empty });
        }
        if self.fin_reached {
            // The FIN again; data beyond it is invalid.
            return Ok(Arrival::Unexpected);
        }
        let skip = self.next.since(segment.seq).min(segment.payload.len());
        let seq = segment.seq + skip;
        let edge = self.fin.map_or(self.edge, |fin| fin.min(self.edge));
        let room = edge.since(seq);
        let cut = segment.payload.len() - skip > room;
        let data = segment.payload.get(skip..).unwrap_or_default();
        let data = data.get(..room).unwrap_or(data);
        if segment.fin && !cut && self.fin.is_none() {
            let fin = segment.seq + segment.payload.len();
            if !self.next.is_after(fin) {
                self.fin = Some(fin);
            }
        }
        let before = self.next;
        if seq.is_after(self.next) {
            self.recent = seq;
            if let Some(missing @ (_, from, to)) = self.gaps.missing(seq, data)
                && budget.take(gaps::cost(to - from))
            {
                self.gaps.insert(seq, data, missing);
            }
            return Ok(Arrival::Unexpected);
        }
        let taken = self.deliver(data, &socket, writable, budget)?;
        self.next += taken;
        let filled = !self.gaps.is_empty();
        while let Some((seq, data)) = self.gaps.take(self.next) {
            budget.release(gaps::cost(data.len()));
            let known = self.next.since(seq).min(data.len());
            let rest = data.get(known..).unwrap_or_default();
            // The FIN may have arrived after this piece.
            let left = self.fin.map_or(usize::MAX, |fin| fin.since(self.next));
            let rest = rest.get(..left).unwrap_or(rest);
            let taken = self.deliver(rest, &socket, writable, budget)?;
            self.next += taken;
            if taken < rest.len() {
                // There is no memory for the rest; the guest sends it again.
                break;
            }
        }
        if self.fin == Some(self.next) && !self.fin_reached {
            self.fin_reached = true;
            self.next += 1;
        }
        let moved = self.next != before;
        Ok(if moved && !filled { Arrival::InOrder } else { Arrival::Unexpected })
    }

    /// Writes data to the host's socket, or keeps it. Returns how many bytes were taken.
    fn deliver(
        &mut self,
        data: &[u8],
        socket: impl AsFd,
        writable: &mut bool,
        budget: &mut Budget,
    ) -> Result<usize, Errno> {
        let mut sent = 0;
        if self.pending.is_empty() && *writable && !data.is_empty() {
            sent = sockets::send(socket, data)?.unwrap_or(0);
            *writable = sent == data.len();
        }
        let rest = data.get(sent..).unwrap_or_default();
        if rest.is_empty() || !self.pending.push(rest, budget) {
            return Ok(sent);
        }
        Ok(data.len())
    }

    /// Writes what was kept, then closes the write half if the FIN is reached.
    ///
    /// # Errors
    /// The error of the host's socket.
    pub(super) fn flush(
        &mut self,
        socket: impl AsFd,
        writable: &mut bool,
        budget: &mut Budget,
    ) -> Result<(), Errno> {
        while *writable && !self.pending.is_empty() {
            let first = self.pending.first();
            let len = first.len();
            let sent = sockets::send(&socket, first)?.unwrap_or(0);
            *writable = sent == len;
            self.pending.consume(sent, budget);
        }
        if self.pending.is_empty() && self.fin_reached && !self.fin_forwarded {
            sockets::shutdown_write(socket);
            self.fin_forwarded = true;
        }
        Ok(())
    }

    /// The ranges for selective acknowledgements; none if nothing is missing.
    pub(super) fn gaps(&self) -> Option<[Option<(Seq, Seq)>; 3]> {
        (!self.gaps.is_empty()).then(|| self.gaps.ranges(self.recent))
    }

    /// Frees what is kept.
    pub(super) fn clear(&mut self, budget: &mut Budget) {
        budget.release(self.gaps.cost());
        self.pending.clear(budget);
        self.gaps.clear();
    }

    /// True if a segment that begins at `seq` is acceptable (RFC 9293, section 3.10.7.4).
    pub(super) fn may_begin(&self, seq: Seq) -> bool {
        !self.next.is_after(seq) && !seq.is_after(self.edge)
    }
}
