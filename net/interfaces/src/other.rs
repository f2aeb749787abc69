//! Systems whose interfaces cannot be listed yet.

use std::io;
use std::net::IpAddr;

/// The addresses of this machine's interfaces.
#[derive(Debug)]
pub struct Interfaces(std::convert::Infallible);

impl Interfaces {
    /// Lists the addresses and subscribes to their changes.
    ///
    /// # Errors
    /// Always: `Unsupported`.
    pub fn new() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Lists the addresses again if they have changed.
    ///
    /// # Errors
    /// None, as there is no value.
    pub fn refresh(&mut self) -> io::Result<()> {
        match self.0 {}
    }

    /// True if an interface had this address when they were listed last.
    pub fn have(&self, _: IpAddr) -> bool {
        match self.0 {}
    }

    /// All addresses as they were listed last.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        std::iter::empty()
    }
}
