//! The parts that differ between operating systems: TAP devices, the clock that counts suspended time, sockets that
//! neither block nor raise signals.

#[cfg(target_os = "linux")]
mod ioctl;
#[cfg(target_os = "linux")]
mod tap;

use std::time::Duration;

#[cfg(target_os = "linux")]
pub use tap::TapLink;

use std::os::fd::OwnedFd;

use rustix::net::{SendFlags, SocketFlags};
use rustix::time::{ClockId, clock_gettime};

/// Flags of a new socket.
#[cfg(target_os = "linux")]
pub(crate) const SOCKET_FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);
/// Flags of each send.
#[cfg(target_os = "linux")]
pub(crate) const SEND_FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

/// Flags of a new socket.
#[cfg(not(target_os = "linux"))]
pub(crate) const SOCKET_FLAGS: SocketFlags = SocketFlags::empty();
/// Flags of each send.
#[cfg(not(target_os = "linux"))]
pub(crate) const SEND_FLAGS: SendFlags = SendFlags::DONTWAIT;

/// Sets up a new socket as far as flags cannot.
#[cfg(target_os = "linux")]
pub(crate) fn prepare(_: &OwnedFd) -> rustix::io::Result<()> {
    Ok(())
}

/// Sets up a new socket as far as flags cannot.
#[cfg(not(target_os = "linux"))]
pub(crate) fn prepare(socket: &OwnedFd) -> rustix::io::Result<()> {
    rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(socket, true)?;
    rustix::net::sockopt::set_socket_nosigpipe(socket, true)
}

/// The time for which this machine was suspended so far. Grows on resume.
#[cfg(target_os = "linux")]
pub(crate) fn time_asleep() -> Duration {
    since_boot(ClockId::Boottime).saturating_sub(since_boot(ClockId::Monotonic))
}

/// The time for which this machine was suspended so far. Grows on resume.
#[cfg(not(target_os = "linux"))]
pub(crate) fn time_asleep() -> Duration {
    // The standard library's clock, unlike POSIX's monotonic clock here, stops while suspended.
    static START: std::sync::LazyLock<(std::time::Instant, Duration)> =
        std::sync::LazyLock::new(|| (std::time::Instant::now(), since_boot(ClockId::Monotonic)));
    (since_boot(ClockId::Monotonic) - START.1).saturating_sub(START.0.elapsed())
}

fn since_boot(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}
