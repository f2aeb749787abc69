//! The interrupt line of a device, as the device sees it.

use std::{fmt, io, sync::Arc};

/// Raises one interrupt line of the guest. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Interrupt(Arc<dyn Fn() -> io::Result<()> + Send + Sync>);

impl Interrupt {
    /// An interrupt line that is raised by calling `raise`.
    pub fn new(raise: impl Fn() -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(raise))
    }

    /// Raises the line once (an edge).
    pub fn raise(&self) -> io::Result<()> {
        (self.0)()
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Interrupt")
    }
}
