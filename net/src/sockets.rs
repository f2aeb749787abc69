//! Sockets of the host: non-blocking, closed on exec.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, RecvFlags, Shutdown, SocketType, sockopt};

use crate::sys::{self, SEND_FLAGS, SOCKET_FLAGS};

/// TCP keepalive towards hosts.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(300);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_COUNT: u32 = 5;

/// The state of a connection attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connect {
    Done,
    Pending,
}

fn socket(
    address: SocketAddr,
    kind: SocketType,
    protocol: Option<Protocol>,
) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, kind, SOCKET_FLAGS, protocol)?;
    sys::prepare(&socket)?;
    Ok(socket)
}

/// Opens a TCP socket and begins to connect to `address`.
pub(crate) fn connect_tcp(address: SocketAddr) -> rustix::io::Result<(OwnedFd, Connect)> {
    let socket = socket(address, SocketType::STREAM, None)?;
    tune(&socket)?;
    let state = connect(&socket, address)?;
    Ok((socket, state))
}

/// Begins to connect, or returns the state of an attempt.
pub(crate) fn connect(socket: &OwnedFd, address: SocketAddr) -> rustix::io::Result<Connect> {
    match rustix::net::connect(socket, &address) {
        Ok(()) | Err(Errno::ISCONN) => Ok(Connect::Done),
        Err(Errno::INPROGRESS | Errno::ALREADY | Errno::AGAIN | Errno::INTR) => {
            Ok(Connect::Pending)
        }
        Err(e) => Err(e),
    }
}

/// Sets the options of a flow's TCP socket: segments of the guest are not delayed, and a host that
/// vanished is noticed.
pub(crate) fn tune(socket: &OwnedFd) -> rustix::io::Result<()> {
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE_COUNT)
}

/// Opens a UDP socket that exchanges datagrams with `address` only.
pub(crate) fn connect_udp(address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let socket = socket(address, SocketType::DGRAM, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

/// Opens an unprivileged ICMP socket that exchanges echoes with `address`.
pub(crate) fn connect_ping(address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let protocol =
        if address.is_ipv4() { rustix::net::ipproto::ICMP } else { rustix::net::ipproto::ICMPV6 };
    let socket = socket(address, SocketType::DGRAM, Some(protocol))?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

/// True if `ip` is an address of this machine, judged by the kernel's choice of a source address: on the
/// way to an own address, the source is that address. Misses a second address of a network. Sends nothing.
pub(crate) fn is_own_address(ip: IpAddr) -> bool {
    let socket = connect_udp(SocketAddr::new(ip, 9));
    let source = socket.and_then(rustix::net::getsockname);
    source.is_ok_and(|source| SocketAddr::try_from(source).is_ok_and(|source| source.ip() == ip))
}

/// Ports to try instead of one that is in use.
pub(crate) fn other_ports(port: u16) -> impl Iterator<Item = u16> {
    const ATTEMPTS: u16 = 64;
    (0..ATTEMPTS).map(move |attempt| 49_152 + (port.wrapping_add(attempt * 257) % 16_384))
}

/// Opens a pair of connected Unix streams.
pub(crate) fn stream_pair() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let unix = AddressFamily::UNIX;
    let pair = rustix::net::socketpair(unix, SocketType::STREAM, SOCKET_FLAGS, None)?;
    sys::prepare(&pair.0)?;
    sys::prepare(&pair.1)?;
    Ok(pair)
}

/// Receives into `buffer`; none if there is nothing to receive.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> rustix::io::Result<Option<usize>> {
    loop {
        match rustix::net::recv(&socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((n, _)) => return Ok(Some(n)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Sends as much as there is room for; none if there is no room.
pub(crate) fn send(socket: impl AsFd, data: &[u8]) -> rustix::io::Result<Option<usize>> {
    loop {
        match rustix::net::send(&socket, data, SEND_FLAGS) {
            Ok(n) => return Ok(Some(n)),
            Err(Errno::AGAIN | Errno::NOBUFS) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Closes the write half.
pub(crate) fn shutdown_write(socket: impl AsFd) {
    // Fails only if the socket is broken, which its next use reports.
    let _ = rustix::net::shutdown(socket, Shutdown::Write);
}

/// Closes a stream so that its peer sees a reset.
pub(crate) fn reset(socket: OwnedFd) {
    // A Unix stream has no reset.
    let _ = sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
}

/// The pending error of a socket, if there is one.
pub(crate) fn error(socket: impl AsFd) -> Option<Errno> {
    sockopt::socket_error(socket).unwrap_or_else(Err).err()
}

/// True if the error says that descriptors or memory are used up.
pub(crate) fn is_exhausted(error: Errno) -> bool {
    matches!(error, Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
}
