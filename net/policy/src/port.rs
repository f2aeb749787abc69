//! Published ports.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use crate::error::ParseError;
use crate::protocol::Protocol;

const EXPECTED: &str = "write [IP:]HOST:GUEST[/tcp|udp], as in 8080:80, 0.0.0.0:53:53/udp or \
    [::1]:8080:80; HOST may be 0 for a free port";

/// A port of the host that leads to one of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortForward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where the host listens. Port 0 is any that is free.
    pub listen: SocketAddr,
    /// The guest's port.
    pub guest: u16,
}

impl FromStr for PortForward {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = |problem: &str| ParseError {
            text: text.to_owned(),
            problem: problem.to_owned(),
            expected: EXPECTED,
        };
        let (ports, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some((_, other)) => return Err(wrong(&format!("`{other}` is neither tcp nor udp"))),
        };
        let (rest, guest) =
            ports.rsplit_once(':').ok_or_else(|| wrong("there is one port only"))?;
        let (address, host) = match rest.rsplit_once(':') {
            Some((address, host)) => (Some(address), host),
            None => (None, rest),
        };
        let port = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let port = if digits { text.parse::<u16>().ok() } else { None };
            port.ok_or_else(|| wrong(&format!("`{text}` is no port from 0 to 65535")))
        };
        let guest = port(guest)?;
        if guest == 0 {
            return Err(wrong("the guest's port cannot be 0"));
        }
        let address: IpAddr = match address {
            None => Ipv4Addr::LOCALHOST.into(),
            Some(address) => {
                let inside = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
                let parsed = match inside {
                    Some(inside) => inside.parse().map(IpAddr::V6).ok(),
                    None => address.parse().map(IpAddr::V4).ok(),
                };
                parsed.ok_or_else(|| wrong(&format!("`{address}` is no address")))?
            }
        };
        Ok(Self { protocol, listen: SocketAddr::new(address, port(host)?), guest })
    }
}

impl fmt::Display for PortForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.listen, self.guest, self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_are_read_as_they_are_written() {
        let parse = |text: &str| text.parse::<PortForward>().map(|forward| forward.to_string());
        assert_eq!(parse("8080:80").unwrap(), "127.0.0.1:8080:80/tcp");
        assert_eq!(parse("0:80/tcp").unwrap(), "127.0.0.1:0:80/tcp");
        assert_eq!(parse("0.0.0.0:53:5353/udp").unwrap(), "0.0.0.0:53:5353/udp");
        assert_eq!(parse("[::1]:8080:80").unwrap(), "[::1]:8080:80/tcp");
        for wrong in [
            "",
            "80",
            "80:",
            ":80",
            "80:0",
            "80:80/sctp",
            "80:+80",
            "x:80:80",
            "::1:80:80",
            "1:65536",
        ] {
            let error = parse(wrong).unwrap_err().to_string();
            assert!(error.contains("HOST:GUEST"), "{wrong}: {error}");
        }
    }
}
