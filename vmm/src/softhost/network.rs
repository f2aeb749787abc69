//! QEMU's user network (`-netdev user`), which the software host is on, as it is by default.

use std::net::{Ipv4Addr, Ipv6Addr};

use boxlite_net::{Ipv4Net, Ipv6Net};

/// The network.
pub(crate) const NETWORK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 2, 0), 24);
/// The same for IPv6.
pub(crate) const NETWORK6: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 64);
/// The real host's loopback.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The real host's loopback, too.
pub(crate) const HOST6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2);
/// The software host.
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
