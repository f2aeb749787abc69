//! The addresses of a box's link.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use boxlite_net_policy::{IpNet, Ipv4Net, Ipv6Net};
use smoltcp::wire::EthernetAddress;

/// The addresses of a box's link. All of them lie in `subnet` and `subnet6`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The IPv4 network of the link.
    pub subnet: Ipv4Net,
    /// Router and resolver.
    pub gateway: Ipv4Addr,
    /// The guest.
    pub guest: Ipv4Addr,
    /// Stands for the host's loopback: `host.boxlite.internal`.
    pub host: Ipv4Addr,
    /// The IPv6 network of the link, a /64.
    pub subnet6: Ipv6Net,
    /// Router and resolver.
    pub gateway6: Ipv6Addr,
    /// The guest, where it is not configured by router advertisements.
    pub guest6: Ipv6Addr,
    /// Stands for the host's loopback, too.
    pub host6: Ipv6Addr,
    /// The address that `host` is translated to: 127.0.0.1, or the address of the real host's loopback
    /// where this process runs in a nested host.
    pub loopback: Ipv4Addr,
    /// The address that `host6` is translated to.
    pub loopback6: Ipv6Addr,
    /// Networks of this process's machine that the guest never reaches by their own addresses.
    pub closed: Vec<IpNet>,
    /// The real host's own addresses, where this process runs in a nested host. Only a rule that names
    /// them opens them, as it is with this machine's own addresses.
    pub own: Vec<IpAddr>,
    /// The gateway's Ethernet address.
    pub gateway_mac: [u8; 6],
    /// The guest's Ethernet address until its frames show another.
    pub guest_mac: [u8; 6],
}

impl Default for Addresses {
    /// 192.168.127.0/24 and `fdb0:786c:6974::/64`: gateway 1, guest 2, host 254.
    fn default() -> Self {
        let v4 = |host| Ipv4Addr::new(192, 168, 127, host);
        let v6 = |host| Ipv6Addr::new(0xfdb0, 0x786c, 0x6974, 0, 0, 0, 0, host);
        Self {
            subnet: Ipv4Net::new_assert(v4(0), 24),
            gateway: v4(1),
            guest: v4(2),
            host: v4(254),
            subnet6: Ipv6Net::new_assert(v6(0), 64),
            gateway6: v6(1),
            guest6: v6(2),
            host6: v6(0xfe),
            loopback: Ipv4Addr::LOCALHOST,
            loopback6: Ipv6Addr::LOCALHOST,
            closed: Vec::new(),
            own: Vec::new(),
            gateway_mac: [0x02, 0x62, 0x6f, 0x78, 0x00, 0x01],
            guest_mac: [0x02, 0x62, 0x6f, 0x78, 0x00, 0x02],
        }
    }
}

impl Addresses {
    /// The gateway's link-local address: the source of router advertisements.
    pub(crate) const GATEWAY_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

    pub(crate) fn gateway_mac(&self) -> EthernetAddress {
        EthernetAddress(self.gateway_mac)
    }

    /// The gateway's address of the same IP version as a guest's.
    pub(crate) fn gateway_of(&self, guest: SocketAddr) -> IpAddr {
        if guest.is_ipv4() { self.gateway.into() } else { self.gateway6.into() }
    }

    /// True for an address of the gateway.
    pub(crate) fn is_gateway(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4 == self.gateway,
            IpAddr::V6(v6) => v6 == self.gateway6 || v6 == Self::GATEWAY_LINK_LOCAL,
        }
    }

    /// True for an address that stands for the host's loopback.
    pub(crate) fn is_host(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4 == self.host,
            IpAddr::V6(v6) => v6 == self.host6,
        }
    }

    /// True for every address of the link.
    pub(crate) fn on_link(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.subnet.contains(&v4),
            IpAddr::V6(v6) => self.subnet6.contains(&v6) || v6.is_unicast_link_local(),
        }
    }

    /// True for an address that a guest may send from.
    pub(crate) fn may_be_guest(&self, address: IpAddr) -> bool {
        let network = match address {
            IpAddr::V4(v4) => v4 == self.subnet.network() || v4 == self.subnet.broadcast(),
            IpAddr::V6(v6) => v6 == self.subnet6.network(),
        };
        self.on_link(address) && !network && !self.is_gateway(address) && !self.is_host(address)
    }
}
