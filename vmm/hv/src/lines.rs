//! The two signals across the boundary: interrupts to the guest, doorbells from the guest.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::{fmt, io};

use crate::sys::Event;

/// Raises one interrupt line as an edge. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Interrupt(Arc<dyn Fn() -> io::Result<()> + Send + Sync>);

impl Interrupt {
    /// A line that is raised by calling `raise`.
    pub fn new(raise: impl Fn() -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(raise))
    }

    /// Raises the line once.
    pub fn raise(&self) -> io::Result<()> {
        (self.0)()
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Interrupt")
    }
}

/// The event that a guest signals after it has put buffers into a queue, by a register write.
///
/// A device's thread polls it: the descriptor is readable while the doorbell is rung. One doorbell serves
/// all queues of a device. Where the hypervisor can ring it in the kernel (see
/// [`Vm::doorbell`](crate::Vm::doorbell)), it does; elsewhere the write exits and the device's
/// transport rings.
#[derive(Debug)]
pub struct Doorbell(pub(crate) Event);

impl Doorbell {
    /// Creates a doorbell that is not rung. Fails if no file descriptor is left.
    pub fn new() -> io::Result<Self> {
        Event::new().map(Self)
    }

    /// Rings the doorbell.
    pub fn ring(&self) -> io::Result<()> {
        self.0.signal()
    }

    /// Clears the doorbell. Returns whether it was rung.
    pub fn clear(&self) -> io::Result<bool> {
        self.0.clear()
    }

    /// A second handle to the same doorbell.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bell_is_rung_until_it_is_cleared() {
        let bell = Doorbell::new().unwrap();
        let second = bell.try_clone().unwrap();
        assert!(!bell.clear().unwrap());
        bell.ring().unwrap();
        second.ring().unwrap();
        assert!(second.clear().unwrap());
        assert!(!bell.clear().unwrap());
    }
}
