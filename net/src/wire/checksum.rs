//! The Internet checksum (RFC 1071) over headers, and payloads in pieces.

use std::io::IoSlice;
use std::net::IpAddr;

use smoltcp::wire::checksum;

/// The sum of the pseudo header, not yet inverted.
pub(super) fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, len: u32) -> u16 {
    checksum::pseudo_header(&source.into(), &destination.into(), protocol.into(), len)
}

/// The sum over consecutive `pieces`, not yet inverted.
pub(super) fn sum(start: u16, pieces: &[IoSlice<'_>]) -> u16 {
    let mut total = start;
    let mut odd = false;
    for piece in pieces {
        let sum = checksum::data(piece);
        // In a piece that starts at an odd offset, the bytes of each word are swapped.
        total = checksum::combine(&[total, if odd { sum.swap_bytes() } else { sum }]);
        odd ^= piece.len() % 2 == 1;
    }
    total
}

/// True if a packet's checksum is correct.
pub(super) fn is_valid(source: IpAddr, destination: IpAddr, protocol: u8, packet: &[u8]) -> bool {
    let len = u32::try_from(packet.len()).unwrap_or(u32::MAX);
    let pseudo = pseudo_header(source, destination, protocol, len);
    checksum::combine(&[pseudo, checksum::data(packet)]) == !0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_sum_to_the_whole(data: Vec<u8>, cuts in proptest::collection::vec(0..64_usize, 0..8)) {
            let mut pieces = Vec::new();
            let mut rest = &data[..];
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(IoSlice::new(piece));
                rest = after;
            }
            pieces.push(IoSlice::new(rest));
            let whole = sum(0, &[IoSlice::new(&data)]);
            let parts = sum(0, &pieces);
            // 0 and 0xffff are the same number in ones' complement.
            prop_assert!(whole == parts || whole.wrapping_add(1) <= 1 && parts.wrapping_add(1) <= 1);
        }
    }
}
