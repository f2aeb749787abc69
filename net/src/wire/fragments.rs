//! Reassembly of IP fragments of the guest (RFC 791, section 3.2; RFC 8200, section 4.5).

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::parse::{Fragment, Packet};

/// The most incomplete packets. The oldest makes room.
const MAX_PACKETS: usize = 16;
/// The most fragments of a packet: more than 64 KiB need on a 1280-byte link.
const MAX_FRAGMENTS: usize = 64;
const MAX_LEN: usize = 65_535;
/// Short, since a guest sends all fragments of a packet at once.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Incomplete packets: at most [`MAX_PACKETS`] of 64 KiB.
#[derive(Default)]
pub(crate) struct Reassembly {
    packets: Vec<Incomplete>,
    /// The packet that was completed last.
    whole: Vec<u8>,
}

struct Incomplete {
    key: (IpAddr, IpAddr, u8, u32),
    expires: Instant,
    data: Vec<u8>,
    /// Received ranges, as `start..end`.
    ranges: Vec<(usize, usize)>,
    /// Known once the last fragment has arrived.
    len: Option<usize>,
}

impl Reassembly {
    /// Adds a fragment. Returns the packet if it is complete.
    pub(crate) fn add(&mut self, fragment: &Fragment<'_>, now: Instant) -> Option<Packet<'_>> {
        self.packets.retain(|packet| packet.expires > now);
        let key = (fragment.source, fragment.destination, fragment.protocol, fragment.ident);
        let index = self.packets.iter().position(|packet| packet.key == key).unwrap_or_else(|| {
            if self.packets.len() == MAX_PACKETS {
                self.packets.remove(0);
            }
            let expires = now + TIMEOUT;
            self.packets.push(Incomplete {
                key,
                expires,
                data: Vec::new(),
                ranges: Vec::new(),
                len: None,
            });
            self.packets.len() - 1
        });
        let packet = self.packets.get_mut(index)?;
        if !packet.add(fragment) {
            // Overlapping and oversized fragments invalidate the packet (RFC 5722).
            self.packets.remove(index);
            return None;
        }
        if !packet.is_whole() {
            return None;
        }
        self.whole = self.packets.remove(index).data;
        Some(Packet {
            source: fragment.source,
            destination: fragment.destination,
            protocol: fragment.protocol,
            payload: &self.whole,
        })
    }
}

impl Incomplete {
    /// False if the fragment contradicts the others.
    fn add(&mut self, fragment: &Fragment<'_>) -> bool {
        let (start, end) = (fragment.offset, fragment.offset + fragment.payload.len());
        if self.ranges.contains(&(start, end)) {
            // A duplicate.
            return true;
        }
        let overlaps = self.ranges.iter().any(|&(from, to)| start < to && from < end);
        let unaligned = fragment.more && end % 8 != 0;
        if overlaps || unaligned || start == end || end > MAX_LEN {
            return false;
        }
        if self.ranges.len() == MAX_FRAGMENTS || self.len.is_some_and(|len| end > len) {
            return false;
        }
        if !fragment.more {
            if self.len.is_some() || self.data.len() > end {
                return false;
            }
            self.len = Some(end);
        }
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        let Some(room) = self.data.get_mut(start..end) else { return false };
        room.copy_from_slice(fragment.payload);
        self.ranges.push((start, end));
        true
    }

    fn is_whole(&self) -> bool {
        // The ranges do not overlap, so their sum counts each byte once.
        self.len == Some(self.ranges.iter().map(|(from, to)| to - from).sum())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fragment(ident: u32, offset: usize, more: bool, payload: &[u8]) -> Fragment<'_> {
        Fragment {
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 0, 2].into(),
            protocol: 17,
            ident,
            offset,
            more,
            payload,
        }
    }

    proptest! {
        #[test]
        fn fragments_in_any_order_make_the_packet(
            data in proptest::collection::vec(any::<u8>(), 1..4000),
            size in 1..64_usize,
            order in any::<u64>(),
        ) {
            let size = size.max(data.len() / 8 / MAX_FRAGMENTS + 1) * 8;
            let mut parts: Vec<_> = data.chunks(size).enumerate().collect();
            let last = parts.len() - 1;
            parts.sort_by_key(|(i, _)| (*i as u64).wrapping_mul(order | 1).rotate_left(17));
            let mut reassembly = Reassembly::default();
            let now = Instant::now();
            for (n, (i, part)) in parts.iter().enumerate() {
                let whole = reassembly.add(&fragment(7, i * size, *i != last, part), now);
                prop_assert_eq!(whole.map(|p| p.payload == data), (n == last).then_some(true));
            }
        }

        #[test]
        fn any_fragments_are_bounded(
            fragments in proptest::collection::vec((0..40_u32, 0..9000_usize, any::<bool>(), 0..3000_usize), 0..400),
        ) {
            let payload = [1; 3000];
            let mut reassembly = Reassembly::default();
            let now = Instant::now();
            for (ident, offset, more, len) in fragments {
                let _ = reassembly.add(&fragment(ident, offset * 8, more, &payload[..len]), now);
                prop_assert!(reassembly.packets.len() <= MAX_PACKETS);
                prop_assert!(reassembly.packets.iter().all(|p| p.data.len() <= MAX_LEN));
            }
        }
    }

    #[test]
    fn overlaps_spoil_a_packet_and_time_forgets_it() {
        let now = Instant::now();
        let mut reassembly = Reassembly::default();
        assert!(reassembly.add(&fragment(1, 0, true, &[1; 16]), now).is_none());
        assert!(reassembly.add(&fragment(1, 8, true, &[2; 16]), now).is_none());
        assert!(reassembly.packets.is_empty());
        assert!(reassembly.add(&fragment(2, 0, true, &[1; 8]), now).is_none());
        assert!(reassembly.add(&fragment(2, 8, false, &[1; 8]), now + TIMEOUT).is_none());
        assert_eq!(reassembly.packets.len(), 1, "the first half is gone");
    }
}
