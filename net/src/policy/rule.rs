//! Rules, and how they are written.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net};

use super::Action;
use crate::error::ParseError;
use crate::forward::Protocol;

const EXPECTED: &str = "write [tcp:|udp:|icmp:]TARGET[:PORT[-PORT]] with an address, a network \
    (10.0.0.0/8), a name (example.org, *.example.org), `host` or `any` as TARGET, and IPv6 \
    addresses in brackets";

/// One line of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it does.
    pub action: Action,
    /// What it is about; every protocol if there is none.
    pub protocol: Option<Protocol>,
    /// Where to.
    pub target: Target,
    /// Which ports; all of them if there are none.
    pub ports: Option<RangeInclusive<u16>>,
}

/// Where a rule's flows go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Anywhere.
    Any,
    /// The host: its loopback, which the guest knows as `host.boxlite.internal`, and the addresses of
    /// its interfaces.
    Host,
    /// A network or an address.
    Net(IpNet),
    /// The addresses that the guest was told for a name.
    Name(NamePattern),
}

/// A DNS name, or all names below one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern {
    /// Only names below it.
    pub(super) wildcard: bool,
    /// In small letters, without a dot at its end.
    pub(super) name: String,
}

impl Rule {
    /// An allowing rule, as `--allow` has it: see the error for how to write one.
    ///
    /// # Errors
    /// Says what cannot be understood, and what could.
    pub fn allow(text: &str) -> Result<Self, ParseError> {
        Self::parse(Action::Allow, text)
    }

    /// A denying rule, as `--deny` has it.
    ///
    /// # Errors
    /// Says what cannot be understood, and what could.
    pub fn deny(text: &str) -> Result<Self, ParseError> {
        Self::parse(Action::Deny, text)
    }

    fn parse(action: Action, text: &str) -> Result<Self, ParseError> {
        let wrong =
            |problem: String| ParseError { text: text.to_owned(), problem, expected: EXPECTED };
        let (protocol, rest) = match text.split_once(':') {
            Some(("tcp", rest)) => (Some(Protocol::Tcp), rest),
            Some(("udp", rest)) => (Some(Protocol::Udp), rest),
            Some(("icmp", rest)) => (Some(Protocol::Icmp), rest),
            _ => (None, text),
        };
        let (target, ports) = split(rest).map_err(wrong)?;
        let ports = ports.map(parse_ports).transpose().map_err(wrong)?;
        if ports.is_some() && protocol == Some(Protocol::Icmp) {
            return Err(wrong("ICMP has no ports".to_owned()));
        }
        Ok(Self { action, protocol, target: Target::parse(target).map_err(wrong)?, ports })
    }
}

/// A rule with its verdict in front, as [`Rule`]'s `Display` writes it: `deny udp:any:53`.
impl std::str::FromStr for Rule {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text.split_once(char::is_whitespace) {
            Some(("allow", rest)) => Self::allow(rest.trim()),
            Some(("deny", rest)) => Self::deny(rest.trim()),
            _ => Err(ParseError {
                text: text.to_owned(),
                problem: "does not begin with `allow` or `deny`".to_owned(),
                expected: EXPECTED,
            }),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.action {
            Action::Allow => "allow ",
            Action::Deny => "deny ",
        })?;
        if let Some(protocol) = self.protocol {
            write!(f, "{protocol}:")?;
        }
        match &self.target {
            Target::Net(net @ IpNet::V6(_)) if self.ports.is_some() => write!(f, "[{net}]")?,
            target => write!(f, "{target}")?,
        }
        match &self.ports {
            None => Ok(()),
            Some(ports) if ports.start() == ports.end() => write!(f, ":{}", ports.start()),
            Some(ports) => write!(f, ":{}-{}", ports.start(), ports.end()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Host => f.write_str("host"),
            Self::Net(net) => write!(f, "{net}"),
            Self::Name(name) => write!(f, "{name}"),
        }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.wildcard { "*." } else { "" }, self.name)
    }
}

impl NamePattern {
    /// `name` is in small letters, without a dot at its end.
    pub(super) fn matches(&self, name: &str) -> bool {
        match name.strip_suffix(&self.name) {
            Some("") => !self.wildcard,
            Some(rest) => self.wildcard && rest.ends_with('.'),
            None => false,
        }
    }
}

impl Target {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "any" | "*" => return Ok(Self::Any),
            "host" | "host.boxlite.internal" | "host.docker.internal" => return Ok(Self::Host),
            _ => {}
        }
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(Self::Net(canonical(net.trunc())));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Net(address.to_canonical().into()));
        }
        let (wildcard, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let fits = |label: &str| {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            (1..=63).contains(&label.len()) && label.bytes().all(known)
        };
        let digits = name.rsplit('.').next().is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()));
        if name.len() > 253 || !name.split('.').all(fits) || digits {
            return Err(format!("`{text}` is neither an address, nor a network, nor a name"));
        }
        Ok(Self::Name(NamePattern { wildcard, name }))
    }
}

/// A network of IPv4 addresses in the form that sockets have for them is one of IPv4.
fn canonical(net: IpNet) -> IpNet {
    let mapped = match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => v6.network().to_ipv4_mapped(),
        _ => None,
    };
    let v4 = mapped.and_then(|v4| Ipv4Net::new(v4, net.prefix_len() - 96).ok());
    v4.map_or(net, IpNet::V4)
}

/// Splits the ports off: they follow the last colon that belongs to no IPv6 address.
fn split(text: &str) -> Result<(&str, Option<&str>), String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (inside, after) = rest.split_once(']').ok_or("there is no `]`")?;
        return match after.strip_prefix(':') {
            Some(ports) => Ok((inside, Some(ports))),
            None if after.is_empty() => Ok((inside, None)),
            None => Err(format!("`{after}` follows the `]`; a network's length goes inside")),
        };
    }
    let is_address = text.parse::<IpNet>().is_ok() || text.parse::<IpAddr>().is_ok();
    match text.rsplit_once(':') {
        Some((target, ports)) if !is_address => Ok((target, Some(ports))),
        _ => Ok((text, None)),
    }
}

fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let port = |text: &str| match text.parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("`{text}` is no port from 1 to 65535")),
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = port(first)?..=port(last)?;
    if range.is_empty() { Err(format!("`{text}` is an empty range")) } else { Ok(range) }
}
