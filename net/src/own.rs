//! This machine's own addresses. A guest that reaches one of them reaches the servers there, including published
//! ports of other boxes, so only a rule that names them opens them.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use boxlite_net_interfaces::Interfaces;
use boxlite_net_policy::faces;

use crate::addresses::Addresses;
use crate::sockets;

/// Time without another attempt after the addresses could not be listed: each flow would make one.
const RETRY: Duration = Duration::from_secs(1);

/// Decides whether an address is this machine's own.
pub(crate) struct OwnAddresses {
    /// Own addresses are as open as others.
    open: bool,
    /// The addresses of the real host are not known yet.
    awaited: bool,
    listed: Listed,
}

impl OwnAddresses {
    /// Lists the addresses, unless they are `open` to the guest. `awaited` says that the addresses of the
    /// real host are still to come.
    pub(crate) fn new(open: bool, awaited: bool) -> Self {
        let mut listed = Listed::default();
        if !open {
            listed.update(Instant::now(), refresh);
        }
        Self { open, awaited: awaited && !open, listed }
    }

    /// True if it cannot be decided yet whether an address is the host's.
    pub(crate) fn are_awaited(&self) -> bool {
        self.awaited
    }

    /// The addresses of the real host are known from now on.
    pub(crate) fn set_known(&mut self) {
        self.awaited = false;
    }

    /// True if packets to `ip` arrive at this machine, or at the real host by `addresses.own`.
    pub(crate) fn contain(&mut self, ip: IpAddr, addresses: &Addresses, now: Instant) -> bool {
        if self.open {
            return false;
        }
        faces(ip).any(|face| addresses.own.contains(&face) || self.is_here(face, now))
    }

    fn is_here(&mut self, ip: IpAddr, now: Instant) -> bool {
        self.listed.update(now, refresh);
        self.listed.have(ip)
    }
}

/// This machine's interfaces, if they can be listed.
#[derive(Default)]
struct Listed {
    /// As they were listed last.
    interfaces: Option<Interfaces>,
    /// When the last attempt failed, if it did.
    failed: Option<Instant>,
}

impl Listed {
    /// Lists the interfaces by `refresh`, unless that failed a moment ago. On failure the previous list
    /// stays.
    fn update(
        &mut self,
        now: Instant,
        refresh: impl FnOnce(&mut Option<Interfaces>) -> io::Result<()>,
    ) {
        if self.failed.is_some_and(|at| now.saturating_duration_since(at) < RETRY) {
            return;
        }
        match refresh(&mut self.interfaces) {
            Ok(()) => self.failed = None,
            Err(e) => {
                if self.failed.is_none() && e.kind() != io::ErrorKind::Unsupported {
                    tracing::warn!("network: the interfaces cannot be listed: {e}");
                }
                self.failed = Some(now);
            }
        }
    }

    /// If the list may be outdated, the kernel's choice of a source address shows some of what is new.
    fn have(&self, ip: IpAddr) -> bool {
        self.interfaces.as_ref().is_some_and(|interfaces| interfaces.have(ip))
            || self.failed.is_some() && sockets::is_own_address(ip)
    }
}

fn refresh(interfaces: &mut Option<Interfaces>) -> io::Result<()> {
    match interfaces {
        Some(interfaces) => interfaces.refresh(),
        None => {
            *interfaces = Some(Interfaces::new()?);
            Ok(())
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_failed_update_keeps_the_list_and_is_tried_again_once_a_second() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut listed = Listed::default();
        listed.update(start, refresh);
        let loopback = "127.0.0.1".parse().unwrap();
        assert!(listed.have(loopback) && listed.failed.is_none());
        let mut tries = 0;
        for ms in [1, 2, 500, 1000, 1001, 1500, 2001] {
            listed.update(after(ms), |_| {
                tries += 1;
                Err(io::ErrorKind::OutOfMemory.into())
            });
            assert!(listed.interfaces.as_ref().unwrap().have(loopback));
        }
        assert_eq!(tries, 3);
        listed.update(after(3001), refresh);
        assert!(listed.failed.is_none());
    }

    #[test]
    fn a_first_list_that_failed_is_tried_again() {
        let start = Instant::now();
        let mut listed = Listed::default();
        listed.update(start, |_| Err(io::ErrorKind::OutOfMemory.into()));
        assert!(listed.interfaces.is_none() && listed.have("127.0.0.1".parse().unwrap()));
        listed.update(start + RETRY, refresh);
        assert!(listed.interfaces.is_some() && listed.failed.is_none());
    }
}
