//! Accepts connections from the host, and refuses all others.
//!
//! The agent carries out requests as root. Processes of the guest can connect to its vsock listener, too,
//! if the kernel has a vsock loopback, and so can nested VMs. So the address of the peer is checked before
//! anything is read.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::sys::vsock::{self, Peer};

/// A non-blocking listener for connections from the host.
pub(crate) struct Listener {
    fd: OwnedFd,
    /// Whether a peer was refused. Logged once, because a peer may connect as often as it likes.
    refused: bool,
}

impl Listener {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { fd, refused: false }
    }

    /// Accepts all waiting connections, and returns those from the host.
    pub(crate) fn accept(&mut self) -> Vec<OwnedFd> {
        let mut accepted = Vec::new();
        loop {
            match vsock::accept(&self.fd) {
                Ok((fd, peer)) if is_allowed(peer) => accepted.push(fd),
                Ok((_, peer)) => self.refuse(peer),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return accepted,
                Err(e) => {
                    crate::log::warn(format_args!("cannot accept a connection: {e}"));
                    return accepted;
                }
            }
        }
    }

    fn refuse(&mut self, peer: Peer) {
        if !std::mem::replace(&mut self.refused, true) {
            crate::log::warn(format_args!("refused a connection from {peer:?}: not the host"));
        }
    }
}

fn is_allowed(peer: Peer) -> bool {
    match peer {
        Peer::Host => true,
        Peer::Cid(_) => false,
        // A test's listener. Its owner controls who can reach it.
        Peer::OtherFamily => true,
    }
}

#[cfg(test)]
mod tests;
