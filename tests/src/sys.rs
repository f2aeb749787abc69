//! What the operating systems do differently about terminals.

use rustix::pty::OpenptFlags;

/// How a terminal is opened: no child process of another test inherits it.
#[cfg(target_os = "linux")]
pub(crate) const NEW_TERMINAL: OpenptFlags =
    OpenptFlags::RDWR.union(OpenptFlags::NOCTTY).union(OpenptFlags::CLOEXEC);
/// How a terminal is opened: there is no flag that keeps it from child processes.
#[cfg(not(target_os = "linux"))]
pub(crate) const NEW_TERMINAL: OpenptFlags = OpenptFlags::RDWR.union(OpenptFlags::NOCTTY);
