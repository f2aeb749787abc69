//! What is the operating system's own: TAP devices, the clock that goes on in its sleep, and how a
//! socket is made that neither blocks nor raises signals.

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

/// What a socket is made with.
#[cfg(target_os = "linux")]
pub(crate) const SOCKET_FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);
/// What data is sent with.
#[cfg(target_os = "linux")]
pub(crate) const SEND_FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

/// What a socket is made with.
#[cfg(not(target_os = "linux"))]
pub(crate) const SOCKET_FLAGS: SocketFlags = SocketFlags::empty();
/// What data is sent with.
#[cfg(not(target_os = "linux"))]
pub(crate) const SEND_FLAGS: SendFlags = SendFlags::DONTWAIT;

/// Does to a new socket what flags do not.
#[cfg(target_os = "linux")]
pub(crate) fn prepare(_: &OwnedFd) -> rustix::io::Result<()> {
    Ok(())
}

/// Does to a new socket what flags do not.
#[cfg(not(target_os = "linux"))]
pub(crate) fn prepare(socket: &OwnedFd) -> rustix::io::Result<()> {
    rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(socket, true)?;
    rustix::net::sockopt::set_socket_nosigpipe(socket, true)
}

/// How long this machine has slept so far: it grows when it wakes up again.
#[cfg(target_os = "linux")]
pub(crate) fn time_asleep() -> Duration {
    since_boot(ClockId::Boottime).saturating_sub(since_boot(ClockId::Monotonic))
}

/// How long this machine has slept so far: it grows when it wakes up again.
#[cfg(not(target_os = "linux"))]
pub(crate) fn time_asleep() -> Duration {
    // The standard library's clock, unlike POSIX's monotonic one, stands still during a sleep.
    static START: std::sync::LazyLock<(std::time::Instant, Duration)> =
        std::sync::LazyLock::new(|| (std::time::Instant::now(), since_boot(ClockId::Monotonic)));
    (since_boot(ClockId::Monotonic) - START.1).saturating_sub(START.0.elapsed())
}

fn since_boot(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}
