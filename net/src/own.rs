//! Addresses of this machine's own: a guest that reaches one of them reaches what listens there, the
//! ports of other boxes among it, so they are open to rules that name them only.

use std::net::IpAddr;

use crate::addresses::Addresses;
use crate::policy::faces;
use crate::sockets;
#[cfg(target_os = "linux")]
use crate::sys::Interfaces;

/// Which addresses are this machine's own.
pub(crate) struct OwnAddresses {
    /// They are as open as others.
    open: bool,
    #[cfg(target_os = "linux")]
    interfaces: Option<Interfaces>,
}

impl OwnAddresses {
    /// Learns them; or not, if they are `open` to the guest.
    pub(crate) fn new(open: bool) -> Self {
        Self {
            open,
            #[cfg(target_os = "linux")]
            interfaces: (!open).then(interfaces).flatten(),
        }
    }

    /// True if packets to `ip` end at this machine, or at the host that `addresses` say has it.
    pub(crate) fn contain(&mut self, ip: IpAddr, addresses: &Addresses) -> bool {
        if self.open {
            return false;
        }
        faces(ip).any(|face| addresses.own.contains(&face) || self.is_here(face))
    }

    #[cfg(target_os = "linux")]
    fn is_here(&mut self, ip: IpAddr) -> bool {
        match self.interfaces.as_mut().map(|interfaces| interfaces.have(ip)) {
            Some(Ok(own)) => own,
            Some(Err(e)) => {
                tracing::warn!("network: the interfaces cannot be listed any more: {e}");
                self.interfaces = None;
                sockets::is_own_address(ip)
            }
            None => sockets::is_own_address(ip),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn is_here(&mut self, ip: IpAddr) -> bool {
        sockets::is_own_address(ip)
    }
}

/// The addresses of this machine's interfaces, those of its loopback among them, for a network on a
/// machine that is not the host.
///
/// # Errors
/// This process may not list them.
#[cfg(target_os = "linux")]
pub fn own_addresses() -> std::io::Result<Vec<IpAddr>> {
    Ok(Interfaces::new()?.all().collect())
}

/// The addresses of this machine's interfaces.
///
/// # Errors
/// Only Linux lists them.
#[cfg(not(target_os = "linux"))]
pub fn own_addresses() -> std::io::Result<Vec<IpAddr>> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[cfg(target_os = "linux")]
fn interfaces() -> Option<Interfaces> {
    let interfaces = Interfaces::new();
    if let Err(e) = &interfaces {
        tracing::warn!("network: the interfaces cannot be listed: {e}");
    }
    interfaces.ok()
}
