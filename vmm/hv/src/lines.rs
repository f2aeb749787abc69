//! What crosses the boundary besides memory: interrupts towards the guest, doorbells from it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::{fmt, io};

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

/// A non-blocking event counter that the guest signals by a register write.
#[derive(Debug)]
pub struct Doorbell(OwnedFd);

impl Doorbell {
    /// Wraps the event that the hypervisor signals.
    pub fn new(event: OwnedFd) -> Self {
        Self(event)
    }
}

impl From<Doorbell> for OwnedFd {
    fn from(doorbell: Doorbell) -> Self {
        doorbell.0
    }
}
