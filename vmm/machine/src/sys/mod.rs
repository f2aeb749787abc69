//! What the operating systems do differently for a VM process: who its peers are, its memory and its guest's, and
//! what it may do once its VM exists.
//!
//! Both systems have the same functions. The end of the launcher needs none: its socket ends on both.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;

use std::path::Path;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

#[cfg(target_os = "linux")]
pub(super) use linux::{confine, guest_memory, peer_uid, release_startup_code, resident};
#[cfg(target_os = "macos")]
pub(super) use macos::{confine, guest_memory, peer_uid, release_startup_code, resident};

/// What a VM process opens by path after its VM exists. Everything else is open already.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(target_os = "linux", allow(dead_code))]
pub(super) struct Paths<'a> {
    /// The box's folder, with its sockets, status and logs. A VM without a box has none.
    pub(super) folder: Option<&'a Path>,
    /// The name of that folder while it is removed.
    pub(super) removed: Option<&'a Path>,
    /// The guest's kernel and initramfs, read at each boot.
    pub(super) boot: [&'a Path; 2],
}

/// Processor time of this process.
pub(super) fn cpu_time() -> Duration {
    clock_gettime(ClockId::ProcessCPUTime).try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn this_process_has_an_owner_time_and_memory() {
        let (a, _b) = UnixStream::pair().unwrap();
        assert_eq!(peer_uid(&a).unwrap(), rustix::process::getuid().as_raw());
        assert!(cpu_time() > Duration::ZERO);
        assert!(resident() > 100 << 10);
    }
}
