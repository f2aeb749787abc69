//! Published ports: ports of the host that lead to ports of the guest.
//!
//! [`Listener`] takes a port, on the thread that asks for it; [`Ports`] accepts what arrives there, on
//! the network's thread, and hands it to `tcp` and `udp`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use boxlite_net_policy::{PublishError, PublishedPort, Transport};
use slab::Slab;

use crate::context::{Context, Source};
use crate::tcp;
use crate::udp::Udp;

/// Connections that wait for a guest, which may be booting.
const BACKLOG: i32 = 4096;
/// Connections accepted, or datagrams received, on a port before other work has its turn.
const BUDGET: usize = 256;

/// A socket that listens on a published port.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Listener {
    /// Starts to listen. The returned port has the number that was bound.
    pub(crate) fn bind(port: PublishedPort) -> Result<(PublishedPort, Self), PublishError> {
        let (host, listener) =
            Self::listen(port).map_err(|source| PublishError { port, source })?;
        Ok((PublishedPort { host, ..port }, listener))
    }

    fn listen(port: PublishedPort) -> io::Result<(SocketAddr, Self)> {
        match port.protocol {
            Transport::Tcp => {
                let socket = TcpListener::bind(port.host)?;
                // The standard library's backlog is for servers that accept at once.
                rustix::net::listen(&socket, BACKLOG)?;
                socket.set_nonblocking(true)?;
                Ok((socket.local_addr()?, Self::Tcp(socket)))
            }
            Transport::Udp => {
                let socket = UdpSocket::bind(port.host)?;
                socket.set_nonblocking(true)?;
                Ok((socket.local_addr()?, Self::Udp(socket)))
            }
        }
    }
}

/// The published ports of a network.
#[derive(Default)]
pub(crate) struct Ports(Slab<Published>);

struct Published {
    port: PublishedPort,
    socket: Socket,
    /// More may have arrived: epoll, edge-triggered, does not report it again.
    ready: bool,
}

enum Socket {
    Tcp(TcpListener),
    /// Shared with the flows that answer through it.
    Udp(Rc<UdpSocket>),
}

impl Ports {
    /// Starts to accept on a port that is bound.
    pub(crate) fn add(&mut self, port: PublishedPort, listener: Listener, cx: &Context) {
        let socket = match listener {
            Listener::Tcp(socket) => Socket::Tcp(socket),
            Listener::Udp(socket) => Socket::Udp(Rc::new(socket)),
        };
        let entry = self.0.vacant_entry();
        let source = Source::Port(entry.key());
        let watched = match &socket {
            Socket::Tcp(socket) => cx.watch(socket, source),
            Socket::Udp(socket) => cx.watch(&**socket, source),
        };
        if let Err(e) = watched {
            tracing::error!("network: published port {port} does not work: {e}");
        }
        entry.insert(Published { port, socket, ready: true });
    }

    /// Closes a port and its UDP flows; TCP flows live on. False if there is no such port.
    pub(crate) fn remove(&mut self, port: PublishedPort, udp: &mut Udp, cx: &mut Context) -> bool {
        let index = self.0.iter().find(|(_, known)| known.port == port).map(|(index, _)| index);
        let Some(removed) = index.map(|index| self.0.remove(index)) else { return false };
        if let Socket::Udp(socket) = &removed.socket {
            udp.close_published(socket, cx);
        }
        true
    }

    /// Epoll reports that something arrived at a port.
    pub(crate) fn on_socket(&mut self, index: usize) {
        if let Some(published) = self.0.get_mut(index) {
            published.ready = true;
        }
    }

    /// Looks at every port again: epoll does not report a second time what could not be accepted for
    /// want of file descriptors.
    pub(crate) fn housekeep(&mut self) {
        self.0.iter_mut().for_each(|(_, published)| published.ready = true);
    }

    /// Accepts what arrived, a budget for each port. True if there is more.
    pub(crate) fn serve(
        &mut self,
        tcp: &mut tcp::Table,
        udp: &mut Udp,
        buffer: &mut [u8],
        cx: &mut Context,
    ) -> bool {
        let mut more = false;
        for (_, published) in &mut self.0 {
            // Without a guest, connections wait in the host's sockets.
            if !published.ready || cx.out.any_link().is_none() {
                continue;
            }
            let guest = published.port.guest;
            published.ready = match &published.socket {
                Socket::Tcp(socket) => accept(socket, guest, tcp, cx),
                Socket::Udp(socket) => receive(socket, guest, udp, buffer, cx),
            };
            more |= published.ready && cx.may_send();
        }
        more
    }
}

/// Accepts connections. True if there may be more.
fn accept(listener: &TcpListener, port: u16, tcp: &mut tcp::Table, cx: &mut Context) -> bool {
    for _ in 0..BUDGET {
        match listener.accept() {
            Ok((stream, peer)) => {
                if stream.set_nonblocking(true).is_err() {
                    continue;
                }
                let (remote, guest) = ends(peer, port, cx);
                tcp.open_from_host(OwnedFd::from(stream), peer, remote, guest, cx);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                ) => {}
            Err(e) => {
                // Out of file descriptors, most likely; housekeeping tries again.
                cx.warn_exhausted("cannot accept a connection", e);
                return false;
            }
        }
    }
    true
}

/// Receives datagrams. True if there may be more.
fn receive(
    socket: &Rc<UdpSocket>,
    port: u16,
    udp: &mut Udp,
    buffer: &mut [u8],
    cx: &mut Context,
) -> bool {
    let guest = SocketAddr::new(cx.addresses.guest.into(), port);
    for _ in 0..BUDGET {
        if !cx.may_send() {
            return true;
        }
        match socket.recv_from(buffer) {
            Ok((n, peer)) => {
                let remote = seen_as(peer, cx);
                let data = buffer.get(..n).unwrap_or_default();
                udp.on_published(socket, peer, remote, guest, data, cx);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
            // A peer had closed its socket before the guest's answer reached it.
            Err(_) => {}
        }
    }
    true
}

/// The address under which the guest sees a peer over IPv4: the peer's own, if answers to that address
/// come back here.
fn seen_as(peer: SocketAddr, cx: &Context) -> SocketAddr {
    let a = &cx.addresses;
    let host = |v4: Ipv4Addr| v4.is_loopback() || v4.is_unspecified() || v4 == a.loopback;
    let ip = match peer.ip().to_canonical() {
        IpAddr::V4(v4) if !host(v4) && !a.on_link(v4.into()) => v4,
        // The host itself, or a peer with an IPv6 address.
        _ => a.host,
    };
    SocketAddr::new(ip.into(), peer.port())
}

/// The addresses of a connection to the guest's `port`: the peer's, as the guest sees it, and the guest's.
/// A peer with a global IPv6 address arrives over IPv6; if the guest serves only IPv4, `tcp` asks again
/// over IPv4, from the address that stands for the host.
pub(crate) fn ends(peer: SocketAddr, port: u16, cx: &Context) -> (SocketAddr, SocketAddr) {
    let a = &cx.addresses;
    let ip = peer.ip().to_canonical();
    let local = ip.is_loopback() || ip.is_unspecified() || ip == IpAddr::V6(a.loopback6);
    if ip.is_ipv6() && !local && !a.on_link(ip) {
        return (SocketAddr::new(ip, peer.port()), SocketAddr::new(a.guest6.into(), port));
    }
    (seen_as(peer, cx), SocketAddr::new(a.guest.into(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_named() {
        let (bound, _listener) = Listener::bind(PublishedPort::tcp(0, 80)).unwrap();
        assert_ne!(bound.host.port(), 0);
        let error = Listener::bind(bound).err().unwrap().to_string();
        let named = format!("cannot publish tcp port {} of 127.0.0.1", bound.host.port());
        assert!(error.contains(&named) && error.contains("in use"), "{error}");
    }
}
