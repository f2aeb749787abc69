//! What is the operating system's own: TAP devices, and the clock that goes on in its sleep.

#[cfg(target_os = "linux")]
mod ioctl;
#[cfg(target_os = "linux")]
mod tap;

use std::time::Duration;

#[cfg(target_os = "linux")]
pub use tap::TapLink;

use rustix::time::{ClockId, clock_gettime};

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
