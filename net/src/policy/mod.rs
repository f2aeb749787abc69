//! What a guest may reach.
//!
//! Rules are asked in order, and the first that matches decides; where none does, the default
//! decides. Some destinations are protected: the host's loopback and its own addresses, link-local
//! addresses and the metadata services of clouds. Only a rule that names them opens them; `any`, or a network that
//! merely contains them, does not. An IPv6 address that holds an IPv4 address is asked about as
//! both. Multicast, loopback addresses and other boxes are never reached.

mod embedded;
mod gate;
mod names;
mod rule;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use rule::{Rule, Target};

use embedded::certain_faces;
pub(crate) use embedded::faces;
pub(crate) use gate::{Flow, Gate, Verdict};

use crate::addresses::Addresses;

/// Let through, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Let through.
    Allow,
    /// Refused, and logged once.
    Deny,
}

/// What a guest may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The first that matches decides.
    pub rules: Vec<Rule>,
    /// What holds where no rule matches. Protected destinations are denied even so.
    pub default: Action,
}

impl Default for Policy {
    /// Everything but what is protected.
    fn default() -> Self {
        Self { rules: Vec::new(), default: Action::Allow }
    }
}

impl Policy {
    /// Nothing.
    pub fn none() -> Self {
        Self { rules: Vec::new(), default: Action::Deny }
    }

    /// These rules. Where one of them allows something outside, whatever is not allowed is denied;
    /// where they only deny, or open the host, the rest is allowed.
    pub fn from_rules(rules: Vec<Rule>) -> Self {
        let lists = |rule: &Rule| rule.action == Action::Allow && rule.target != Target::Host;
        let default = if rules.iter().any(lists) { Action::Deny } else { Action::Allow };
        Self { rules, default }
    }

    /// Names that are denied while most addresses are not: a guest that knows the address, or resolves
    /// names by other ways than the gateway, gets there all the same.
    pub fn names_walked_around(&self) -> impl Iterator<Item = &Rule> {
        let whole = |rule: &&Rule| rule.protocol.is_none() && rule.ports.is_none();
        let all = |rule: &&Rule| rule.target == Target::Any;
        let mut denials = self.rules.iter().filter(|rule| rule.action == Action::Deny);
        let closed = self.default == Action::Deny || denials.any(|rule| all(&rule) && whole(&rule));
        let wide = |rule: &&Rule| match &rule.target {
            Target::Any => true,
            Target::Net(net) => net.prefix_len() < net.max_prefix_len(),
            Target::Host | Target::Name(_) => false,
        };
        let mut permissions = self.rules.iter().filter(|rule| rule.action == Action::Allow);
        let open = !closed || permissions.any(|rule| wide(&rule));
        self.rules.iter().filter(move |rule| {
            open && rule.action == Action::Deny && matches!(rule.target, Target::Name(_))
        })
    }
}

/// Where a destination that a guest names is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// The gateway itself.
    Gateway,
    /// The host's loopback, under its own name.
    Host(SocketAddr),
    /// Wherever the host's routes lead.
    Outside(SocketAddr),
    /// Nowhere.
    Nowhere,
}

impl Route {
    pub(crate) fn to(addresses: &Addresses, destination: SocketAddr) -> Self {
        let ip = destination.ip();
        if addresses.is_gateway(ip) {
            return Self::Gateway;
        }
        if addresses.is_host(ip) {
            let loopback: IpAddr = match ip {
                IpAddr::V4(_) => addresses.loopback.into(),
                IpAddr::V6(_) => addresses.loopback6.into(),
            };
            return Self::Host(SocketAddr::new(loopback, destination.port()));
        }
        let closed = addresses.closed.iter().any(|net| net.contains(&ip));
        if closed || addresses.on_link(ip) || !is_global_unicast(ip) {
            return Self::Nowhere;
        }
        Self::Outside(destination)
    }
}

/// An address that a packet may be sent to, seen from anywhere on the Internet or in a private
/// network.
fn is_global_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let [first, ..] = v4.octets();
            // 0.0.0.0/8 and 240.0.0.0/4 mean hosts to some systems, the own one among them.
            first != 0 && first < 240 && !v4.is_loopback() && !v4.is_multicast()
        }
        IpAddr::V6(v6) => {
            // ::/96 and ::ffff:0:0/96 are IPv4 addresses to a socket, 127.0.0.1 among them.
            let embeds = v6.segments()[..5] == [0; 5] && matches!(v6.segments()[5], 0 | 0xffff);
            // ::ffff:0:0:0/96 is one more name for IPv4 (RFC 2765).
            let translated = v6.segments()[..4] == [0; 4] && v6.segments()[4] == 0xffff;
            !embeds && !translated && !v6.is_multicast() && !v6.is_unicast_link_local()
        }
    }
}

/// Where clouds serve instances their credentials, beside link-local addresses.
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

/// Networks that are open to rules that name them only.
fn protected() -> impl Iterator<Item = IpNet> {
    let v4 = METADATA.into_iter().chain([LINK_LOCAL]).map(IpNet::V4);
    v4.chain(METADATA6.into_iter().chain([LINK_LOCAL6]).map(IpNet::V6))
}

/// Link-local addresses and metadata services, in any form, and the host's loopback in disguise:
/// open to a rule that names them only.
pub(crate) fn is_protected(ip: IpAddr) -> bool {
    let closed = |face: IpAddr| protected().any(|net| net.contains(&face));
    faces(ip).any(|face| closed(face) || ip.is_ipv6() && face.is_ipv4() && is_local(face))
}

/// An address that no name out of the Internet should lead to: the host's own, and those of its
/// link.
pub(crate) fn is_local(ip: IpAddr) -> bool {
    faces(ip).any(|face| match face {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unspecified() || v6.is_unicast_link_local(),
    })
}

/// An address of a private network.
pub(crate) fn is_private(ip: IpAddr) -> bool {
    faces(ip).any(|face| match face {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            // 100.64.0.0/10 is for carriers, and for overlay networks.
            v4.is_private() || a == 100 && b & 0xc0 == 64
        }
        IpAddr::V6(v6) => v6.is_unique_local(),
    })
}

#[cfg(test)]
mod tests;
