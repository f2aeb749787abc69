//! Data that arrived out of order.

use crate::wire::Seq;

/// The most pieces. More are dropped, and the guest sends them again.
const MAX_PIECES: usize = 256;

/// Bytes that a piece costs beside its data: its entry, twice where the vector has grown, and the
/// overhead of the allocator.
const OVERHEAD: usize = 128;

/// The memory of a piece of `len` bytes.
pub(super) fn cost(len: usize) -> usize {
    len.saturating_add(OVERHEAD)
}

/// Pieces of the stream beyond the next expected byte: in order, without overlaps.
#[derive(Default)]
pub(super) struct Gaps {
    pieces: Vec<(Seq, Vec<u8>)>,
}

impl Gaps {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The number of bytes in all pieces.
    pub(super) fn len(&self) -> usize {
        self.pieces.iter().map(|(_, data)| data.len()).sum()
    }

    /// The memory of all pieces.
    pub(super) fn cost(&self) -> usize {
        self.pieces.iter().map(|(_, data)| cost(data.len())).sum()
    }

    /// The part of `data` at `seq` that is new and fits in one piece: its index among the pieces, and its
    /// range in `data`.
    pub(super) fn missing(&self, seq: Seq, data: &[u8]) -> Option<(usize, usize, usize)> {
        if self.pieces.len() == MAX_PIECES {
            return None;
        }
        let place = self.pieces.partition_point(|(start, _)| !start.is_after(seq));
        let before = place.checked_sub(1).and_then(|i| self.pieces.get(i));
        let from = before.map_or(0, |(start, data)| (*start + data.len()).since(seq));
        let to = self.pieces.get(place).map_or(data.len(), |(start, _)| start.since(seq));
        let to = to.min(data.len());
        (from < to).then_some((place, from, to))
    }

    /// Inserts what [`Gaps::missing`] found.
    pub(super) fn insert(
        &mut self,
        seq: Seq,
        data: &[u8],
        (place, from, to): (usize, usize, usize),
    ) {
        if let Some(part) = data.get(from..to) {
            self.pieces.insert(place.min(self.pieces.len()), (seq + from, part.to_vec()));
        }
    }

    /// Removes and returns the first piece, if the stream has reached it.
    pub(super) fn take(&mut self, next: Seq) -> Option<(Seq, Vec<u8>)> {
        let (start, _) = self.pieces.first()?;
        if start.is_after(next) {
            return None;
        }
        let piece = self.pieces.remove(0);
        if self.pieces.len() < self.pieces.capacity() / 4 {
            self.pieces.shrink_to_fit();
        }
        Some(piece)
    }

    pub(super) fn clear(&mut self) {
        self.pieces = Vec::new();
    }

    /// The ranges of a selective acknowledgement (RFC 2018): the one with `recent` first.
    pub(super) fn ranges(&self, recent: Seq) -> [Option<(Seq, Seq)>; 3] {
        let mut ranges: Vec<(Seq, Seq)> = Vec::new();
        for (start, data) in &self.pieces {
            let end = *start + data.len();
            match ranges.last_mut() {
                Some((_, last)) if *last == *start => *last = end,
                _ => ranges.push((*start, end)),
            }
        }
        if let Some(first) =
            ranges.iter().position(|(from, to)| !from.is_after(recent) && to.is_after(recent))
        {
            ranges.swap(0, first);
        }
        let mut ranges = ranges.into_iter();
        std::array::from_fn(|_| ranges.next())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever pieces come, in whatever order, the stream comes out as it is.
        #[test]
        fn pieces_make_the_stream(
            start: u32,
            pieces in proptest::collection::vec((0..900_usize, 1..200_usize), 0..400),
        ) {
            let stream: Vec<u8> = (0..1100_u32).map(|n| (n * 7 % 251) as u8).collect();
            let origin = Seq(start);
            let mut gaps = Gaps::default();
            for (at, len) in pieces {
                let data = &stream[at..at + len];
                if let Some(missing) = gaps.missing(origin + at, data) {
                    gaps.insert(origin + at, data, missing);
                }
                prop_assert!(gaps.pieces.len() <= MAX_PIECES);
                let data: usize = gaps.pieces.iter().map(|(_, data)| data.capacity()).sum();
                let entries = gaps.pieces.capacity() * size_of::<(Seq, Vec<u8>)>();
                // The smallest table has room for four.
                prop_assert!(data + entries <= gaps.cost() + 4 * size_of::<(Seq, Vec<u8>)>());
                let sorted = gaps.pieces.windows(2).all(|w| !(w[0].0 + w[0].1.len()).is_after(w[1].0));
                prop_assert!(sorted);
                for (from, to) in gaps.ranges(origin + at).into_iter().flatten() {
                    prop_assert!(to.is_after(from));
                }
            }
            let mut next = origin;
            while let Some((seq, data)) = gaps.take(next) {
                prop_assert_eq!(seq, next);
                let at = seq.since(origin);
                prop_assert_eq!(&data[..], &stream[at..at + data.len()]);
                next += data.len();
            }
        }
    }
}
