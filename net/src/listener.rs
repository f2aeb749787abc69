//! Sockets that listen on published ports.

use std::net::{TcpListener, UdpSocket};

use boxlite_net_policy::{ForwardError, PortForward, Protocol};

/// Connections that wait for a guest, which may be booting.
const BACKLOG: i32 = 4096;

/// A socket that listens on a published port.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Listener {
    /// Starts to listen. The port of the result has the number that was bound.
    pub(crate) fn bind(port: PortForward) -> Result<(PortForward, Self), ForwardError> {
        let PortForward { protocol, listen, .. } = port;
        let fail = |source| ForwardError { address: listen, protocol, source };
        let (listen, listener) = match protocol {
            Protocol::Tcp => {
                let socket = TcpListener::bind(listen).map_err(fail)?;
                // The standard library's backlog is for servers that accept at once.
                rustix::net::listen(&socket, BACKLOG).map_err(|e| fail(e.into()))?;
                socket.set_nonblocking(true).map_err(fail)?;
                (socket.local_addr().map_err(fail)?, Self::Tcp(socket))
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind(listen).map_err(fail)?;
                socket.set_nonblocking(true).map_err(fail)?;
                (socket.local_addr().map_err(fail)?, Self::Udp(socket))
            }
            Protocol::Icmp => {
                return Err(fail(std::io::Error::other("only TCP and UDP have ports")));
            }
        };
        Ok((PortForward { listen, ..port }, listener))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_named() {
        let (bound, _listener) = Listener::bind("0:80".parse().unwrap()).unwrap();
        assert_ne!(bound.listen.port(), 0);
        let error = Listener::bind(bound).err().unwrap().to_string();
        assert!(
            error.contains(&format!("tcp port {} of 127.0.0.1", bound.listen.port())),
            "{error}"
        );
        assert!(error.contains("in use"), "{error}");
    }
}
