//! The network parameters of a box: a word of the kernel command line.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Names that the host has on a box's network.
pub const HOST_NAMES: [&str; 2] = ["host.boxlite.internal", "host.docker.internal"];

/// Limit on the search domains that the guest gets: as many as C libraries used to support.
pub const MAX_SEARCH: usize = 6;
/// Limit on their total length in bytes, with a separator for each.
pub const MAX_SEARCH_LEN: usize = 256;

/// The configuration of `eth0` of a box. It is complete, so the guest waits for no DHCP and no router
/// advertisement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkParams {
    /// The guest's IPv4 address, and the length of its network's prefix.
    pub address: (Ipv4Addr, u8),
    /// The IPv4 router, which is also the name server.
    pub gateway: Ipv4Addr,
    /// The address that leads to the host's loopback.
    pub host: Ipv4Addr,
    /// The guest's IPv6 address, and the length of its network's prefix.
    pub address6: (Ipv6Addr, u8),
    /// The IPv6 router.
    pub gateway6: Ipv6Addr,
}

impl fmt::Display for NetworkParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, gateway, host, address6, gateway6 } = self;
        let ((address, prefix), (address6, prefix6)) = (address, address6);
        write!(f, "{address}/{prefix},{gateway},{host},{address6}/{prefix6},{gateway6}")
    }
}

/// Network parameters that this agent cannot parse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("boxlite.net={0} cannot be read: the guest's agent is older than the host")]
pub struct BadNetwork(String);

impl FromStr for NetworkParams {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let parse = || {
            let mut words = text.split(',');
            Some(Self {
                address: with_prefix(words.next()?, 32)?,
                gateway: words.next()?.parse().ok()?,
                host: words.next()?.parse().ok()?,
                address6: with_prefix(words.next()?, 128)?,
                gateway6: words.next()?.parse().ok()?,
            })
        };
        parse().ok_or_else(|| BadNetwork(text.to_owned()))
    }
}

fn with_prefix<T: FromStr>(text: &str, longest: u8) -> Option<(T, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let prefix = prefix.parse().ok().filter(|prefix| *prefix <= longest)?;
    Some((address.parse().ok()?, prefix))
}

/// The search domains that the guest gets: valid names, within [`MAX_SEARCH`] and [`MAX_SEARCH_LEN`].
pub fn search_domains<'a>(domains: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let is_name = |domain: &&str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        !domain.is_empty() && domain.bytes().all(known)
    };
    let mut room = MAX_SEARCH_LEN;
    let fits = |domain: &&str| {
        let left = room.checked_sub(domain.len() + 1);
        room = left.unwrap_or(0);
        left.is_some()
    };
    domains
        .into_iter()
        .filter(is_name)
        .take_while(fits)
        .take(MAX_SEARCH)
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_parsed_as_they_are_written() {
        let text = "192.168.127.2/24,192.168.127.1,192.168.127.254,fd00::2/64,fd00::1";
        assert_eq!(text.parse::<NetworkParams>().unwrap().to_string(), text);
        for wrong in ["", "1.2.3.4", "1.2.3.4/33,1.2.3.4,1.2.3.4,::1/64,::1", "1.2.3.4/24,::1"] {
            assert!(wrong.parse::<NetworkParams>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn search_domains_are_valid_and_few() {
        assert_eq!(search_domains(["a.org", "b\nnameserver 6.6.6.6", "", "c"]), ["a.org", "c"]);
        assert_eq!(search_domains(["x"; 20]).len(), MAX_SEARCH);
        let long = "y".repeat(200);
        assert_eq!(search_domains([&*long, &*long, "z"]), [&*long]);
    }
}
