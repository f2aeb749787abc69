//! Configures links, addresses and routes by rtnetlink (`man 7 rtnetlink`).
//!
//! Without the crate `netlink-packet-route`: for three messages it adds about 500 KiB to a static agent of
//! 1.4 MiB, which every box loads.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;

use boxlite_proto::network::NetworkParams;
use rustix::io::{self, Errno};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

/// QEMU's user network (`-netdev user`) as it is by default.
const QEMU_GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const QEMU_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const QEMU_RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const QEMU_PREFIX: u8 = 24;

/// Brings the loopback up. The kernel then assigns 127.0.0.1 and ::1.
pub(crate) fn loopback_up() {
    if let Err(e) = Netlink::open().and_then(|mut netlink| netlink.up("lo")) {
        crate::log::warn(format_args!("cannot bring the loopback up: {e}"));
    }
}

/// Configures the nested host's network device, if QEMU gave it one. IPv6 is configured by router
/// advertisements.
pub(crate) fn qemu_user_network() {
    let configure = || {
        let mut netlink = Netlink::open()?;
        match netlink.up(LINK) {
            Err(Errno::NODEV) => return Ok(()),
            result => result?,
        }
        netlink.add_address(LINK, QEMU_GUEST.into(), QEMU_PREFIX)?;
        netlink.add_default_route(QEMU_GATEWAY.into())?;
        let resolv_conf = format!("nameserver {QEMU_RESOLVER}\n");
        super::mounts::replace_file("/etc/resolv.conf", resolv_conf.as_bytes())
    };
    if let Err(e) = configure() {
        crate::log::warn(format_args!("cannot configure the network eth0: {e}"));
    }
}

/// Why the network of a box cannot be configured.
#[derive(Debug, thiserror::Error)]
#[error("cannot configure the box's network: {0}")]
pub(crate) struct NetworkError(#[source] Errno);

/// Configures `eth0` of a box by the host's parameters. The MTU is the device's.
pub(crate) fn box_network(params: &NetworkParams) -> Result<(), NetworkError> {
    // The parameters have everything that a router would advertise.
    if let Err(e) = std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_ra", "0") {
        crate::log::warn(format_args!("cannot disable router advertisements on eth0: {e}"));
    }
    let configure = || {
        let mut netlink = Netlink::open()?;
        netlink.up(LINK)?;
        let ((v4, prefix4), (v6, prefix6)) = (params.address, params.address6);
        netlink.add_address(LINK, v4.into(), prefix4)?;
        netlink.add_address(LINK, v6.into(), prefix6)?;
        netlink.add_default_route(params.gateway.into())?;
        netlink.add_default_route(params.gateway6.into())
    };
    configure().map_err(NetworkError)
}

/// The one network device.
const LINK: &str = "eth0";

struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    fn open() -> io::Result<Self> {
        // Protocol 0 is NETLINK_ROUTE.
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket, sequence: 0 })
    }

    fn up(&mut self, link: &str) -> io::Result<()> {
        let index = index_of(link)?;
        let mut message = Message::new(libc::RTM_NEWLINK, 0);
        // struct ifinfomsg: family, padding, type, index, flags, mask of flags to change
        message.put(&[libc::AF_UNSPEC as u8, 0]);
        message.put(&0_u16.to_ne_bytes());
        message.put(&index.to_ne_bytes());
        message.put(&(libc::IFF_UP as u32).to_ne_bytes());
        message.put(&(libc::IFF_UP as u32).to_ne_bytes());
        self.request(message)
    }

    fn add_address(&mut self, link: &str, address: IpAddr, prefix: u8) -> io::Result<()> {
        let index = index_of(link)?;
        let mut message = Message::new(libc::RTM_NEWADDR, CREATE);
        // struct ifaddrmsg: family, prefix length, flags, scope, index
        message.put(&[family(address), prefix, 0, libc::RT_SCOPE_UNIVERSE]);
        message.put(&index.to_ne_bytes());
        message.address(libc::IFA_LOCAL, address);
        message.address(libc::IFA_ADDRESS, address);
        if address.is_ipv6() {
            // Duplicate address detection takes a second, and the box is alone on its link.
            message.attribute(libc::IFA_FLAGS, &libc::IFA_F_NODAD.to_ne_bytes());
        }
        self.request(message)
    }

    fn add_default_route(&mut self, gateway: IpAddr) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_NEWROUTE, CREATE);
        // struct rtmsg: family, destination and source prefix length, TOS, table, protocol, scope,
        // type, flags
        message.put(&[
            family(gateway),
            0,
            0,
            0,
            libc::RT_TABLE_MAIN,
            libc::RTPROT_BOOT,
            libc::RT_SCOPE_UNIVERSE,
            libc::RTN_UNICAST,
        ]);
        message.put(&0_u32.to_ne_bytes());
        message.address(libc::RTA_GATEWAY, gateway);
        self.request(message)
    }

    /// Sends a request and returns the kernel's acknowledgement.
    fn request(&mut self, message: Message) -> io::Result<()> {
        self.sequence += 1;
        let bytes = message.finish(self.sequence);
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.socket, &bytes, SendFlags::empty(), &kernel)?;
        let mut answer = [0; 4096];
        let (n, _) = recv(&self.socket, &mut answer, RecvFlags::empty())?;
        acknowledgement(answer.get(..n).unwrap_or_default())
    }
}

const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;

/// A netlink message being built: `struct nlmsghdr`, then what follows it.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let flags = flags | (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let mut message = Self(Vec::with_capacity(64));
        // Length and sequence number come last; port 0 is the kernel's choice.
        message.put(&[0; 4]);
        message.put(&kind.to_ne_bytes());
        message.put(&flags.to_ne_bytes());
        message.put(&[0; 8]);
        message
    }

    fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// `struct rtattr`: its length, its kind, its value, padded to four bytes.
    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.put(&(4 + value.len() as u16).to_ne_bytes());
        self.put(&kind.to_ne_bytes());
        self.put(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn address(&mut self, kind: u16, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => self.attribute(kind, &v4.octets()),
            IpAddr::V6(v6) => self.attribute(kind, &v6.octets()),
        }
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// Parses an acknowledgement: a header, then 0 or a negative errno.
fn acknowledgement(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    let error = answer.get(16..20).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
    match (kind.map(i32::from), error) {
        (Some(libc::NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(libc::NLMSG_ERROR), Some(error)) => {
            Err(Errno::from_raw_os_error(error.checked_neg().unwrap_or(libc::EPROTO)))
        }
        _ => Err(Errno::PROTO),
    }
}

fn family(address: IpAddr) -> u8 {
    (if address.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET }) as u8
}

fn index_of(link: &str) -> io::Result<i32> {
    let index = std::fs::read_to_string(format!("/sys/class/net/{link}/ifindex"));
    index.ok().and_then(|index| index.trim().parse().ok()).ok_or(Errno::NODEV)
}

#[cfg(test)]
mod tests;
