//! Published ports: a port of the host that leads to a port of the guest.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::ParseError;
use crate::protocol::Transport;

const EXPECTED: &str = "write [ADDRESS:][HOST:]GUEST[/tcp|/udp], as in 8080:80, 0.0.0.0:53:53/udp or \
    [::1]:8080:80; without HOST, or with 0, a free port is picked";

/// A port of the host that leads to a port of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PublishedPort {
    /// The protocol of both ports.
    pub protocol: Transport,
    /// Where the host listens. Port 0 stands for a free port until the port is bound.
    pub host: SocketAddr,
    /// The guest's port.
    pub guest: u16,
}

impl PublishedPort {
    /// Publishes TCP port `guest` as port `host` of the host's loopback; 0 picks a free port.
    pub fn tcp(host: u16, guest: u16) -> Self {
        Self { protocol: Transport::Tcp, host: (Ipv4Addr::LOCALHOST, host).into(), guest }
    }

    /// Publishes UDP port `guest` as port `host` of the host's loopback; 0 picks a free port.
    pub fn udp(host: u16, guest: u16) -> Self {
        Self { protocol: Transport::Udp, ..Self::tcp(host, guest) }
    }

    /// Listens on this address of the host instead; `0.0.0.0` stands for all its IPv4 addresses.
    #[must_use]
    pub fn on(mut self, address: impl Into<IpAddr>) -> Self {
        self.host.set_ip(address.into());
        self
    }
}

/// Parses `[ADDRESS:][HOST:]GUEST[/tcp|/udp]`.
impl FromStr for PublishedPort {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        parse(text).map_err(|problem| ParseError {
            text: text.to_owned(),
            problem,
            expected: EXPECTED,
        })
    }
}

fn parse(text: &str) -> Result<PublishedPort, String> {
    let (ports, protocol) = match text.rsplit_once('/') {
        None => (text, Transport::Tcp),
        Some((ports, "tcp")) => (ports, Transport::Tcp),
        Some((ports, "udp")) => (ports, Transport::Udp),
        Some((_, other)) => return Err(format!("`{other}` is neither tcp nor udp")),
    };
    let (host, guest) = match ports.rsplit_once(':') {
        Some((host, guest)) => (Some(host), guest),
        None => (None, ports),
    };
    let guest = parse_number(guest)?;
    if guest == 0 {
        return Err("the guest's port cannot be 0".to_owned());
    }
    let loopback = Ipv4Addr::LOCALHOST.into();
    let (address, host) = match host.map(|host| host.rsplit_once(':').ok_or(host)) {
        None => (loopback, 0),
        Some(Err(host)) => (loopback, parse_number(host)?),
        Some(Ok((address, ""))) => (parse_address(address)?, 0),
        Some(Ok((address, host))) => (parse_address(address)?, parse_number(host)?),
    };
    Ok(PublishedPort { protocol, host: SocketAddr::new(address, host), guest })
}

fn parse_number(text: &str) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = if digits { text.parse().ok() } else { None };
    number.ok_or_else(|| format!("`{text}` is not a port from 0 to 65535"))
}

fn parse_address(text: &str) -> Result<IpAddr, String> {
    let inside = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = match inside {
        Some(inside) => inside.parse().map(IpAddr::V6).ok(),
        None => text.parse().ok(),
    };
    address.ok_or_else(|| format!("`{text}` is not an address"))
}

impl fmt::Display for PublishedPort {
    /// As `docker ps` shows it: `127.0.0.1:8080->80/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}->{}/{}", self.host, self.guest, self.protocol)
    }
}

/// The host cannot listen on a port.
#[derive(Debug, thiserror::Error)]
#[error("cannot publish {} port {} of {}: {}", port.protocol, port.host.port(), port.host.ip(), reason(source))]
pub struct PublishError {
    /// The port that could not be published.
    pub port: PublishedPort,
    /// The kernel's error.
    pub source: io::Error,
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "it is in use by another program; choose another, or 0 for any".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 are for privileged users; choose a higher one".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => "this host has no such address".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The form in a box's files and on the wire to the nested host.
    #[test]
    fn json_is_what_it_was() {
        let ports = [
            (
                PublishedPort::tcp(8080, 80),
                r#"{"protocol":"tcp","host":"127.0.0.1:8080","guest":80}"#,
            ),
            (
                PublishedPort::udp(0, 65535).on([0, 0, 0, 0]),
                r#"{"protocol":"udp","host":"0.0.0.0:0","guest":65535}"#,
            ),
            (
                PublishedPort::tcp(8080, 80).on([0, 0, 0, 0, 0, 0, 0, 1_u16]),
                r#"{"protocol":"tcp","host":"[::1]:8080","guest":80}"#,
            ),
        ];
        for (port, json) in ports {
            assert_eq!(serde_json::to_string(&port).unwrap(), json);
            assert_eq!(serde_json::from_str::<PublishedPort>(json).unwrap(), port);
        }
        let icmp = r#"{"protocol":"icmp","host":"127.0.0.1:8080","guest":80}"#;
        assert!(serde_json::from_str::<PublishedPort>(icmp).is_err());
    }

    #[test]
    fn ports_are_parsed_and_displayed() {
        let parse = |text: &str| text.parse::<PublishedPort>().map(|port| port.to_string());
        for (text, shown) in [
            ("8080:80", "127.0.0.1:8080->80/tcp"),
            ("80", "127.0.0.1:0->80/tcp"),
            ("0:80/tcp", "127.0.0.1:0->80/tcp"),
            ("0.0.0.0:53:5353/udp", "0.0.0.0:53->5353/udp"),
            ("192.0.2.1::80", "192.0.2.1:0->80/tcp"),
            ("[::1]:8080:80", "[::1]:8080->80/tcp"),
            ("::1:8080:80", "[::1]:8080->80/tcp"),
        ] {
            assert_eq!(parse(text).unwrap(), shown, "{text}");
        }
        for wrong in [
            "",
            ":",
            "80:",
            ":80",
            "80:0",
            "80:80/sctp",
            "80/sctp",
            "80:+80",
            "-1:1",
            "x:80",
            "80:x",
            "x:80:80",
            "1:2:3",
            "[192.0.2.1]:80:80",
            "1:65536",
            "70000:1",
        ] {
            let error = parse(wrong).unwrap_err().to_string();
            assert!(error.contains("[HOST:]GUEST"), "{wrong}: {error}");
        }
    }
}
