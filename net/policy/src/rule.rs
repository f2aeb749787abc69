//! Rules: their parts, their text form, and which of them open a protected destination.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net};

use crate::address::protected;
use crate::error::ParseError;
use crate::protocol::Protocol;

const LOOPBACK: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8));

const EXPECTED: &str = "write [tcp:|udp:|icmp:]TARGET[:PORT[-PORT]] with an address, a network \
    (10.0.0.0/8), a name (example.org, *.example.org), `host` or `any` as TARGET, and IPv6 \
    addresses in brackets";

/// What happens to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The flow is opened.
    Allow,
    /// The flow is refused.
    Deny,
}

/// One rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What happens to a flow that matches.
    pub action: Action,
    /// The protocol; none is every protocol.
    pub protocol: Option<Protocol>,
    /// The destination.
    pub target: Target,
    /// The destination's ports; none is every port.
    pub ports: Option<RangeInclusive<u16>>,
}

/// The destination of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every destination.
    Any,
    /// The host: its loopback, which the guest knows as `host.boxlite.internal`, and the addresses of
    /// its interfaces.
    Host,
    /// A network or an address.
    Net(IpNet),
    /// The addresses to which the guest's queries for a name were answered.
    Name(NamePattern),
}

/// A DNS name (`example.org`), or all names below one (`*.example.org`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern {
    /// Only names below `name` match.
    wildcard: bool,
    /// In lower case, without a dot at its end.
    name: String,
}

impl Rule {
    /// Parses a rule that allows, `[tcp:|udp:|icmp:]TARGET[:PORT[-PORT]]`.
    ///
    /// # Errors
    /// The text is not a rule; the error has the expected form.
    pub fn allow(text: &str) -> Result<Self, ParseError> {
        Self::parse(Action::Allow, text)
    }

    /// Parses a rule that denies, of the same form.
    ///
    /// # Errors
    /// The text is not a rule; the error has the expected form.
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

    /// True if the rule is about every flow.
    pub fn is_everything(&self) -> bool {
        self.target == Target::Any && self.is_whole()
    }

    /// True if the rule is about every protocol and port of its target.
    pub(crate) fn is_whole(&self) -> bool {
        self.protocol.is_none() && self.ports.is_none()
    }

    /// True if the rule can open a protected destination: its target holds protected addresses only.
    pub(crate) fn names_protected(&self) -> bool {
        match &self.target {
            Target::Any | Target::Name(_) => false,
            Target::Host => true,
            Target::Net(net) => {
                net.prefix_len() == net.max_prefix_len()
                    || protected().chain([LOOPBACK]).any(|closed| closed.contains(net))
            }
        }
    }
}

/// Parses a rule with its action in front, as `Display` writes it: `deny udp:any:53`.
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
    /// True if the pattern matches `name`, which is in lower case and has no dot at its end.
    pub fn matches(&self, name: &str) -> bool {
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

/// A network of IPv4-mapped addresses (`::ffff:0:0/96`) is turned into the IPv4 network.
fn canonical(net: IpNet) -> IpNet {
    let mapped = match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => v6.network().to_ipv4_mapped(),
        _ => None,
    };
    let v4 = mapped.and_then(|v4| Ipv4Net::new(v4, net.prefix_len() - 96).ok());
    v4.map_or(net, IpNet::V4)
}

/// Splits off the ports: they follow the last colon that is not part of an IPv6 address.
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
