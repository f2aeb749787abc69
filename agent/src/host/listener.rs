//! Who may ask the agent for anything: the host, and nobody else.
//!
//! An agent does as root what it is asked for. Processes of its own machine reach a vsock listener, too,
//! where the kernel has a loopback for vsock, and so do machines inside of it. So a connection's peer is
//! looked at before a byte of it is.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::sys::vsock::{self, Peer};

/// A non-blocking listener of the host's connections.
pub(crate) struct Listener {
    fd: OwnedFd,
    /// Whether somebody else than the host was refused, which is said once: anybody may connect as often
    /// as it likes.
    refused: bool,
}

impl Listener {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { fd, refused: false }
    }

    /// The connections that have come from the host.
    pub(crate) fn accept(&mut self) -> Vec<OwnedFd> {
        let mut accepted = Vec::new();
        loop {
            match vsock::accept(&self.fd) {
                Ok((fd, peer)) if may_ask(peer) => accepted.push(fd),
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
            crate::log::warn(format_args!("refused a connection of {peer:?}: not the host"));
        }
    }
}

fn may_ask(peer: Peer) -> bool {
    match peer {
        Peer::Host => true,
        Peer::Cid(_) => false,
        // Whoever made such a listener has chosen who finds it.
        Peer::OtherFamily => true,
    }
}

#[cfg(test)]
mod tests;
