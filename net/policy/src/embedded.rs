//! IPv4 addresses embedded in IPv6 addresses. A translator, a tunnel or a socket turns one into the
//! other, so a rule about an address is about all of its forms.
//!
//! Some forms are certain, others depend on how a network is set up. A denial holds for every possible
//! form; a permission holds for the certain forms only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The most IPv4 addresses that one IPv6 address can embed.
const MAX: usize = 8;

/// The address itself and every IPv4 address at which packets to it may arrive.
pub fn faces(ip: IpAddr) -> impl Iterator<Item = IpAddr> {
    let embedded = match ip {
        IpAddr::V4(_) => [None; MAX],
        IpAddr::V6(v6) => embedded(v6),
    };
    std::iter::once(ip).chain(embedded.into_iter().flatten().map(IpAddr::V4))
}

/// The address itself and the IPv4 address to which it is certainly translated, if there is one.
pub(crate) fn certain_faces(ip: IpAddr) -> impl Iterator<Item = IpAddr> {
    let translated = match ip {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().or_else(|| nat64(v6)).map(IpAddr::V4),
    };
    std::iter::once(ip).chain(translated)
}

/// The IPv4 address behind the well-known prefix of NAT64, 64:ff9b::/96 (RFC 6052).
fn nat64(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    (v6.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0]).then(|| at(v6, [12, 13, 14, 15]))
}

/// The IPv4 address in the bytes at these positions.
fn at(v6: Ipv6Addr, places: [usize; 4]) -> Ipv4Addr {
    let bytes = v6.octets();
    Ipv4Addr::from(places.map(|place| bytes.get(place).copied().unwrap_or(0)))
}

fn embedded(v6: Ipv6Addr) -> [Option<Ipv4Addr>; MAX] {
    let segments = v6.segments();
    let last = at(v6, [12, 13, 14, 15]);
    let mut found = [None; MAX];
    match segments {
        // Compatible (RFC 4291), mapped, translated (RFC 2765), by the well-known prefix of NAT64.
        [0, 0, 0, 0, 0, 0 | 0xffff, ..]
        | [0, 0, 0, 0, 0xffff, 0, ..]
        | [0x64, 0xff9b, 0, 0, 0, 0, ..] => found[0] = Some(last),
        // NAT64 by a prefix of the network's own (RFC 8215), whose length is unknown here: 48, 56, 64
        // or 96 bits (RFC 6052, section 2.2).
        [0x64, 0xff9b, 1, ..] => {
            let layouts = [[6, 7, 9, 10], [7, 9, 10, 11], [9, 10, 11, 12], [12, 13, 14, 15]];
            for (found, places) in found.iter_mut().zip(layouts) {
                // A zero may be padding: bits that the actual layout does not use are zero.
                *found = Some(at(v6, places)).filter(|v4| v4.octets()[0] != 0);
            }
        }
        // 6to4 (RFC 3056).
        [0x2002, ..] => found[0] = Some(at(v6, [2, 3, 4, 5])),
        // Teredo (RFC 4380): the server, and the client with its bits inverted.
        [0x2001, 0, ..] => {
            found[0] = Some(at(v6, [4, 5, 6, 7]));
            found[1] = Some(Ipv4Addr::from(!u32::from(last)));
        }
        _ => {}
    }
    // ISATAP (RFC 5214): in the lower half, below any prefix.
    if matches!(segments[4..6], [0 | 0x200, 0x5efe]) {
        found[MAX - 1] = Some(last);
    }
    found
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Every form that an IPv4 address has in IPv6.
    pub(crate) fn forms(v4: Ipv4Addr) -> Vec<Ipv6Addr> {
        let [a, b, c, d] = v4.octets();
        let [hi, lo] = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
        let v6 = |segments: [u16; 8]| Ipv6Addr::from(segments);
        let [first, rest] = [u16::from(a), u16::from_be_bytes([b, c])];
        let last = u16::from(d) << 8;
        vec![
            v6([0, 0, 0, 0, 0, 0, hi, lo]),
            v6([0, 0, 0, 0, 0, 0xffff, hi, lo]),
            v6([0, 0, 0, 0, 0xffff, 0, hi, lo]),
            v6([0x64, 0xff9b, 0, 0, 0, 0, hi, lo]),
            v6([0x64, 0xff9b, 1, 0, 0, 0, hi, lo]),
            v6([0x64, 0xff9b, 1, 0xfffe, 7, 9, hi, lo]),
            v6([0x64, 0xff9b, 1, hi, u16::from(c), last, 0, 0]),
            v6([0x64, 0xff9b, 1, 0x1200 | first, u16::from(b), lo, 0, 0]),
            v6([0x64, 0xff9b, 1, 0x1234, first, rest, last, 0]),
            v6([0x2002, hi, lo, 0, 0, 0, 0, 1]),
            v6([0x2002, hi, lo, 7, 1, 2, 3, 4]),
            v6([0x2001, 0, hi, lo, 0, 0, 0x1234, 0x5678]),
            v6([0x2001, 0, 0x4136, 0xe378, 0x8000, 0x63bf, !hi, !lo]),
            v6([0x2001, 0xdb8, 0, 7, 0, 0x5efe, hi, lo]),
            v6([0xfd12, 0x3456, 0, 7, 0x200, 0x5efe, hi, lo]),
        ]
    }

    #[test]
    fn every_form_shows_its_address() {
        let v4 = Ipv4Addr::new(198, 51, 100, 7);
        for form in forms(v4) {
            assert!(faces(form.into()).any(|face| face == IpAddr::V4(v4)), "{form}");
        }
        for plain in ["2606:2800::1", "fd12::1", "64:ff9b:2::c633:6407", "2001:db8::c633:6407"] {
            let plain: IpAddr = plain.parse().unwrap();
            assert_eq!(faces(plain).collect::<Vec<_>>(), [plain]);
        }
    }

    #[test]
    fn only_what_is_sure_to_be_translated_is_certain() {
        let v4 = Ipv4Addr::new(198, 51, 100, 7);
        let certain =
            forms(v4).into_iter().filter(|form| certain_faces((*form).into()).count() > 1);
        let expected: [Ipv6Addr; 2] =
            ["::ffff:198.51.100.7", "64:ff9b::c633:6407"].map(|a| a.parse().unwrap());
        assert_eq!(certain.collect::<Vec<Ipv6Addr>>(), expected);
    }
}
