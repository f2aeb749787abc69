//! What a box's guest is to know of its network: a word of the kernel command line.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Names that the host has on a box's network.
pub const HOST_NAMES: [&str; 2] = ["host.boxlite.internal", "host.docker.internal"];

/// The search domains that are passed on: as many as C libraries used to take.
pub const MAX_SEARCH: usize = 6;
/// Their length in bytes, all together, with what is between them.
pub const MAX_SEARCH_LEN: usize = 256;

/// How `eth0` of a box is configured. Nothing is asked for on the link, so that nothing is waited
/// for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkParams {
    /// The guest's IPv4 address, and the length of its network's prefix.
    pub address: (Ipv4Addr, u8),
    /// Router and name server.
    pub gateway: Ipv4Addr,
    /// The host's loopback.
    pub host: Ipv4Addr,
    /// The guest's IPv6 address, and the length of its network's prefix.
    pub address6: (Ipv6Addr, u8),
    /// Router.
    pub gateway6: Ipv6Addr,
}

impl fmt::Display for NetworkParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, gateway, host, address6, gateway6 } = self;
        let ((address, prefix), (address6, prefix6)) = (address, address6);
        write!(f, "{address}/{prefix},{gateway},{host},{address6}/{prefix6},{gateway6}")
    }
}

/// The host speaks of the network in words that this agent does not know.
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

/// The search domains of a list that can be passed on: those that are names, and not too many.
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
    fn what_is_written_is_read_and_what_is_wrong_is_not() {
        let text = "192.168.127.2/24,192.168.127.1,192.168.127.254,fd00::2/64,fd00::1";
        assert_eq!(text.parse::<NetworkParams>().unwrap().to_string(), text);
        for wrong in ["", "1.2.3.4", "1.2.3.4/33,1.2.3.4,1.2.3.4,::1/64,::1", "1.2.3.4/24,::1"] {
            assert!(wrong.parse::<NetworkParams>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn search_domains_are_names_and_few() {
        assert_eq!(search_domains(["a.org", "b\nnameserver 6.6.6.6", "", "c"]), ["a.org", "c"]);
        assert_eq!(search_domains(["x"; 20]).len(), MAX_SEARCH);
        let long = "y".repeat(200);
        assert_eq!(search_domains([&*long, &*long, "z"]), [&*long]);
    }
}
