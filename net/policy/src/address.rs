//! Classes of addresses. An IPv6 address that embeds an IPv4 address is in the classes of both.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::embedded::faces;

/// Metadata services of clouds, which give instances their credentials, outside the link-local networks.
const METADATA: [Ipv4Net; 4] = [
    // Alibaba.
    Ipv4Net::new_assert(Ipv4Addr::new(100, 100, 100, 200), 32),
    // Volcano Engine, BytePlus.
    Ipv4Net::new_assert(Ipv4Addr::new(100, 96, 0, 96), 32),
    // Azure.
    Ipv4Net::new_assert(Ipv4Addr::new(168, 63, 129, 16), 32),
    // Oracle.
    Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 0, 192), 32),
];
const METADATA6: [Ipv6Net; 6] = [
    // Amazon: instances, pods, and other services of the platform.
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0), 32),
    // Google.
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0), 64),
    // Oracle.
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0, 0), 64),
    // Scaleway.
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0), 64),
    // Akamai.
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 0), 64),
    // Alibaba.
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0, 0), 64),
];
const LINK_LOCAL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16);
const LINK_LOCAL6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);

/// Networks that only a rule that names them opens.
pub(crate) fn protected() -> impl Iterator<Item = IpNet> {
    let v4 = METADATA.into_iter().chain([LINK_LOCAL]).map(IpNet::V4);
    v4.chain(METADATA6.into_iter().chain([LINK_LOCAL6]).map(IpNet::V6))
}

/// True for link-local addresses and metadata services in any form, and for an IPv6 address that embeds an
/// address of the host's loopback. Only a rule that names such an address opens it.
pub fn is_protected(ip: IpAddr) -> bool {
    let closed = |face: IpAddr| protected().any(|net| net.contains(&face));
    faces(ip).any(|face| closed(face) || ip.is_ipv6() && face.is_ipv4() && is_local(face))
}

/// True for an address of the host itself or of its link, to which no public name should resolve.
pub fn is_local(ip: IpAddr) -> bool {
    faces(ip).any(|face| match face {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unspecified() || v6.is_unicast_link_local(),
    })
}

/// True for an address of a private network.
pub fn is_private(ip: IpAddr) -> bool {
    faces(ip).any(|face| match face {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            // 100.64.0.0/10 is for carriers, and for overlay networks.
            v4.is_private() || a == 100 && b & 0xc0 == 64
        }
        IpAddr::V6(v6) => v6.is_unique_local(),
    })
}

/// True for an address that names one host, whichever host sends to it: neither multicast, nor loopback,
/// nor link-local, nor an IPv4 address in a form that sockets treat as that address.
pub fn is_global_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let [first, ..] = v4.octets();
            // 0.0.0.0/8 and 240.0.0.0/4 mean hosts to some systems, the sender itself among them.
            first != 0 && first < 240 && !v4.is_loopback() && !v4.is_multicast()
        }
        IpAddr::V6(v6) => {
            // ::/96 and ::ffff:0:0/96 are IPv4 addresses to a socket, 127.0.0.1 among them.
            let embeds = v6.segments()[..5] == [0; 5] && matches!(v6.segments()[5], 0 | 0xffff);
            // ::ffff:0:0:0/96 is one more form of IPv4 (RFC 2765).
            let translated = v6.segments()[..4] == [0; 4] && v6.segments()[4] == 0xffff;
            !embeds && !translated && !v6.is_multicast() && !v6.is_unicast_link_local()
        }
    }
}
