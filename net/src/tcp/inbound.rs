//! What the guest sends: put in order, given to the host's socket, acknowledged.

use std::os::fd::AsFd;

use rustix::io::Errno;

use super::gaps::{self, Gaps};
use crate::pool::{Backlog, Budget};
use crate::sockets;
use crate::wire::Segment;
use crate::wire::Seq;

/// The window that the guest has while the host takes everything.
const WINDOW: usize = 2 << 20;
/// The window where memory is short.
const TIGHT_WINDOW: usize = 64 << 10;
/// The scale of the windows that we advertise: up to 8 MiB fit.
pub(super) const SCALE: u8 = 7;

/// The stream from the guest to the host.
pub(super) struct Inbound {
    /// The next byte that is expected: everything before is the host's, or in `pending`.
    pub(super) next: Seq,
    /// The end of the window that the guest was given; it never moves back.
    edge: Seq,
    /// 0 if the guest does not scale.
    pub(super) scale: u8,
    /// What the host's socket had no room for.
    pending: Backlog,
    gaps: Gaps,
    /// Where the last segment out of order began.
    recent: Seq,
    /// Where the guest's FIN is, once it came.
    fin: Option<Seq>,
    /// The guest's FIN has been reached: no more follows.
    pub(super) ended: bool,
    /// The host knows that.
    pub(super) end_passed: bool,
}

/// How a segment was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It took nothing of the sequence space.
    Empty,
    /// The stream went on.
    InOrder,
    /// The guest must hear at once what is missing, or what the window is.
    Unexpected,
}

impl Inbound {
    /// A stream whose first byte will be `next`.
    pub(super) fn new(next: Seq, scale: u8) -> Self {
        Self {
            next,
            edge: next,
            scale,
            pending: Backlog::default(),
            gaps: Gaps::default(),
            recent: next,
            fin: None,
            ended: false,
            end_passed: false,
        }
    }

    /// The window for the wire. It is at most 64 KiB before both sides have agreed on a scale.
    pub(super) fn advertise(&mut self, scaled: bool, budget: &Budget) -> u16 {
        let most = if budget.is_tight() { TIGHT_WINDOW } else { WINDOW };
        let wanted = most.saturating_sub(self.pending.len() + self.gaps.len());
        let scale = if scaled { self.scale } else { 0 };
        let window = (self.next + wanted).max(self.edge).since(self.next) >> scale;
        let window = u16::try_from(window).unwrap_or(u16::MAX);
        self.edge = (self.next + (usize::from(window) << scale)).max(self.edge);
        window
    }

    /// The window has grown so much that the guest should hear of it.
    pub(super) fn has_news(&self, mss: usize) -> bool {
        let stored = self.pending.len() + self.gaps.len();
        let advertised = self.edge.since(self.next);
        advertised < mss.min(WINDOW / 4) && WINDOW.saturating_sub(stored) >= WINDOW / 2
    }

    /// Takes the segment's data and FIN. `writable` says whether the socket takes data.
    ///
    /// # Errors
    /// The socket's.
    pub(super) fn accept(
        &mut self,
        segment: &Segment<'_>,
        socket: impl AsFd,
        writable: &mut bool,
        budget: &mut Budget,
    ) -> Result<Arrival, Errno> {
        if segment.payload.is_empty() && !segment.fin {
            // An old one may be a keepalive, which wants an answer.
            let old = self.next.is_after(segment.seq);
            return Ok(if old { Arrival::Unexpected } else { Arrival::Empty });
        }
        if self.ended {
            // The end again; what claims to follow it is not of the stream.
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
            budget.give_back(gaps::cost(data.len()));
            let known = self.next.since(seq).min(data.len());
            let rest = data.get(known..).unwrap_or_default();
            // The end may have come after this did.
            let left = self.fin.map_or(usize::MAX, |fin| fin.since(self.next));
            let rest = rest.get(..left).unwrap_or(rest);
            let taken = self.deliver(rest, &socket, writable, budget)?;
            self.next += taken;
            if taken < rest.len() {
                // There is no memory for it; the guest will send it again.
                break;
            }
        }
        if self.fin == Some(self.next) && !self.ended {
            self.ended = true;
            self.next += 1;
        }
        let moved = self.next != before;
        Ok(if moved && !filled { Arrival::InOrder } else { Arrival::Unexpected })
    }

    /// Gives data to the host, or keeps it. Returns how much of it is safe.
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

    /// Gives the host what was kept, and tells it of the end.
    ///
    /// # Errors
    /// The socket's.
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
        if self.pending.is_empty() && self.ended && !self.end_passed {
            sockets::end(socket);
            self.end_passed = true;
        }
        Ok(())
    }

    /// Nothing is missing, so that selective acknowledgements have nothing to say.
    pub(super) fn gaps(&self) -> Option<[Option<(Seq, Seq)>; 3]> {
        (!self.gaps.is_empty()).then(|| self.gaps.ranges(self.recent))
    }

    /// Frees what is kept.
    pub(super) fn clear(&mut self, budget: &mut Budget) {
        budget.give_back(self.gaps.cost());
        self.pending.clear(budget);
        self.gaps.clear();
    }

    /// A segment that begins here is one that the guest may send (RFC 9293, section 3.10.7.4).
    pub(super) fn may_begin(&self, seq: Seq) -> bool {
        !self.next.is_after(seq) && !seq.is_after(self.edge)
    }
}
