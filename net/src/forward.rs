//! Ports of the host that lead to the guest.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::str::FromStr;

use crate::error::{ForwardError, ParseError};

const EXPECTED: &str = "write [IP:]HOST:GUEST[/tcp|udp], as in 8080:80, 0.0.0.0:53:53/udp or \
    [::1]:8080:80; HOST may be 0 for a free port";

/// Connections that wait for a guest, which may be booting.
const BACKLOG: i32 = 4096;

/// What a flow or a port is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP echo, of either IP version. It has no ports.
    Icmp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}

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

/// A [`PortForward`] that is listening: its port is known.
pub type BoundForward = PortForward;

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

/// A socket that listens for a forward.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl PortForward {
    /// Starts to listen; from then on the port is taken.
    pub(crate) fn bind(self) -> Result<(BoundForward, Listener), ForwardError> {
        let fail = |source| ForwardError { address: self.listen, protocol: self.protocol, source };
        let (listen, listener) = match self.protocol {
            Protocol::Tcp => {
                let socket = TcpListener::bind(self.listen).map_err(fail)?;
                // The standard library's backlog is for servers that accept at once.
                rustix::net::listen(&socket, BACKLOG).map_err(|e| fail(e.into()))?;
                socket.set_nonblocking(true).map_err(fail)?;
                (socket.local_addr().map_err(fail)?, Listener::Tcp(socket))
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind(self.listen).map_err(fail)?;
                socket.set_nonblocking(true).map_err(fail)?;
                (socket.local_addr().map_err(fail)?, Listener::Udp(socket))
            }
            Protocol::Icmp => {
                return Err(fail(std::io::Error::other("only TCP and UDP have ports")));
            }
        };
        Ok((Self { listen, ..self }, listener))
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

    #[test]
    fn a_port_in_use_is_named() {
        let (bound, _listener) = "0:80".parse::<PortForward>().unwrap().bind().unwrap();
        assert_ne!(bound.listen.port(), 0);
        let error = bound.bind().err().unwrap().to_string();
        assert!(
            error.contains(&format!("tcp port {} of 127.0.0.1", bound.listen.port())),
            "{error}"
        );
        assert!(error.contains("in use"), "{error}");
    }
}
