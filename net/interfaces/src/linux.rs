//! Addresses by rtnetlink(7): listed once, and listed again when the kernel reports a change.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
/// The addresses changed while they were listed.
const NLM_F_DUMP_INTR: u16 = 0x10;
/// Multicast groups of changes: RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR.
const GROUPS: u32 = 0x10 | 0x100;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// Bytes of `struct nlmsghdr`, and of `struct ifaddrmsg` behind it.
const HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
/// The most bytes that the kernel sends at once.
const BUFFER: usize = 32 << 10;
/// Attempts to list addresses that change meanwhile.
const ATTEMPTS: usize = 8;

/// The addresses of this machine's interfaces, kept up to date.
#[derive(Debug)]
pub struct Interfaces {
    changes: OwnedFd,
    known: HashSet<IpAddr>,
    stale: bool,
}

impl Interfaces {
    /// Lists the addresses and subscribes to their changes.
    ///
    /// # Errors
    /// This process may not open a netlink socket.
    pub fn new() -> io::Result<Self> {
        let changes = socket(GROUPS)?;
        Ok(Self { changes, known: list()?, stale: false })
    }

    /// Lists the addresses again if they have changed. Costs one system call if not.
    ///
    /// # Errors
    /// They cannot be listed; the previous list stays.
    pub fn refresh(&mut self) -> io::Result<()> {
        self.note_changes();
        if self.stale {
            self.known = list()?;
            self.stale = false;
        }
        Ok(())
    }

    /// True if an interface had this address when they were listed last.
    pub fn have(&self, ip: IpAddr) -> bool {
        self.known.contains(&ip)
    }

    /// All addresses as they were listed last.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.known.iter().copied()
    }

    fn note_changes(&mut self) {
        let mut buffer = [0; 64];
        // A change's content is not read: everything is listed again. ENOBUFS means more changes
        // than the socket holds.
        loop {
            match rustix::net::recv(&self.changes, &mut buffer[..], RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Ok(_) | Err(Errno::NOBUFS) => self.stale = true,
                Err(_) => {
                    self.stale = true;
                    return;
                }
            }
        }
    }
}

fn socket(groups: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // NETLINK_ROUTE is the protocol 0.
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

fn list() -> io::Result<HashSet<IpAddr>> {
    for _ in 0..ATTEMPTS {
        if let Some(found) = list_once()? {
            return Ok(found);
        }
    }
    Err(io::Error::other("the addresses of the interfaces change all the time"))
}

/// None if the addresses changed meanwhile.
fn list_once() -> io::Result<Option<HashSet<IpAddr>>> {
    let socket = socket(0)?;
    let mut request = Vec::with_capacity(HEADER + ADDRESS_HEADER);
    request.extend(((HEADER + ADDRESS_HEADER) as u32).to_ne_bytes());
    request.extend(RTM_GETADDR.to_ne_bytes());
    request.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    request.resize(HEADER + ADDRESS_HEADER, 0);
    rustix::net::send(&socket, &request, SendFlags::empty())?;
    let mut found = HashSet::new();
    let mut whole = true;
    let mut buffer = vec![0; BUFFER];
    loop {
        // The kernel queues the answer before `send` returns, and more of it on each `recv`.
        let (n, _) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = buffer.get(..n).unwrap_or_default();
        while let Some((message, next)) = Message::parse(rest) {
            whole &= message.flags & NLM_F_DUMP_INTR == 0;
            match message.kind {
                NLMSG_DONE => return Ok(whole.then_some(found)),
                NLMSG_ERROR => return Err(error(message.body)),
                RTM_NEWADDR => found.extend(address(message.body)),
                _ => {}
            }
            rest = next;
        }
    }
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The first message, and what follows it.
    fn parse(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let [a, b, c, d, k, l, f, g, ..] = *bytes else { return None };
        let len = usize::try_from(u32::from_ne_bytes([a, b, c, d])).ok()?;
        let body = bytes.get(HEADER..len)?;
        let next = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        let (kind, flags) = (u16::from_ne_bytes([k, l]), u16::from_ne_bytes([f, g]));
        Some((Self { kind, flags, body }, next))
    }
}

fn error(body: &[u8]) -> io::Error {
    let code = body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    io::Error::from_raw_os_error(code.saturating_neg())
}

/// The interface's own address: IFA_LOCAL where there is one (a point-to-point link, whose
/// IFA_ADDRESS is the peer), or else IFA_ADDRESS.
fn address(body: &[u8]) -> Option<IpAddr> {
    let (mut own, mut local) = (None, None);
    let mut rest = body.get(ADDRESS_HEADER..)?;
    while let [a, b, k, l, ..] = *rest {
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let Some(value) = rest.get(4..len) else { break };
        match u16::from_ne_bytes([k, l]) {
            IFA_ADDRESS => own = ip(value),
            IFA_LOCAL => local = ip(value),
            _ => {}
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    local.or(own)
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_loopback_has_its_address_and_nobody_that_of_a_document() {
        let mut interfaces = Interfaces::new().unwrap();
        interfaces.refresh().unwrap();
        assert!(interfaces.have("127.0.0.1".parse().unwrap()));
        assert!(!interfaces.have("192.0.2.77".parse().unwrap()));
        assert!(!interfaces.have("2001:db8:77::1".parse().unwrap()));
    }

    #[test]
    fn of_a_point_to_point_link_the_own_end_counts() {
        let mut body = vec![2, 32, 0, 0, 7, 0, 0, 0];
        body.extend([8, 0, 1, 0, 10, 0, 0, 2]);
        assert_eq!(address(&body), Some([10, 0, 0, 2].into()));
        body.extend([8, 0, 2, 0, 10, 0, 0, 1]);
        assert_eq!(address(&body), Some([10, 0, 0, 1].into()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = address(&bytes);
            if let Some((message, rest)) = Message::parse(&bytes) {
                prop_assert!(message.body.len() + rest.len() < bytes.len());
            }
        }
    }
}
