//! Keeps the guest's clock at the host's time, and disturbs programs as little as possible.
//!
//! A time that the host sent has an unknown age when it arrives: the box may have been paused meanwhile. So
//! the time in a hello is only a lower bound. To set the clock, the host sends a reading of the guest's
//! monotonic clock with the time at that moment, which stays true however late it arrives. A small
//! difference is slewed, so that the clock never goes back. The clock is stepped only if it is noticeably
//! behind or far ahead.

use std::time::Duration;

use boxlite_proto::message::ClockReading;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::sys;

/// A clock that is behind by more is stepped.
const BEHIND: Duration = Duration::from_millis(100);

/// A clock that is ahead by more is stepped. A step back disturbs programs more than one forward.
const AHEAD: Duration = Duration::from_secs(10);

/// A smaller difference is not corrected.
const EXACT: Duration = Duration::from_micros(500);

/// How to correct a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Correction {
    None,
    /// Slew by this many nanoseconds.
    Slew(i64),
    /// Step forward or back by this many nanoseconds.
    Step(i64),
}

/// The monotonic clock, in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic)).try_into().unwrap_or(0)
}

/// Corrects a clock that is behind this time, at which the host sent its hello (0: not sent).
pub(crate) fn apply_lower_bound(unix_time_ns: u64) {
    if unix_time_ns != 0 {
        correct(by_lower_bound(unix_time_ns, now()));
    }
}

/// Corrects the clock by the host's time for a reading of the monotonic clock.
pub(crate) fn apply_reading(reading: &ClockReading) {
    correct(by_reading(reading, monotonic_ns(), now()));
}

fn now() -> i128 {
    nanoseconds(clock_gettime(ClockId::Realtime))
}

fn nanoseconds(time: Timespec) -> i128 {
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}

/// The correction of a clock that shows `now` when the time is at least `unix_time_ns`.
fn by_lower_bound(unix_time_ns: u64, now: i128) -> Correction {
    let behind = i128::from(unix_time_ns) - now;
    if behind > 0 { correction(behind, 0) } else { Correction::None }
}

/// The correction of a clock that shows `now` when the monotonic clock shows `monotonic_ns`.
fn by_reading(reading: &ClockReading, monotonic_ns: u64, now: i128) -> Correction {
    let since = i128::from(monotonic_ns) - i128::from(reading.monotonic_ns);
    // The monotonic clock never goes back: this reading is from another boot.
    if since < 0 {
        return Correction::None;
    }
    correction(i128::from(reading.unix_time_ns) + since - now, reading.error_ns)
}

fn correction(off: i128, error_ns: u64) -> Correction {
    // A difference that the error of the reading explains is not corrected.
    let margin = i128::from(error_ns).max(EXACT.as_nanos().cast_signed());
    let sure = off.unsigned_abs().cast_signed() - margin;
    let limit = if off > 0 { BEHIND } else { AHEAD };
    let Ok(off) = i64::try_from(off) else { return Correction::None };
    match sure {
        ..=0 => Correction::None,
        sure if sure > limit.as_nanos().cast_signed() => Correction::Step(off),
        _ => Correction::Slew(off),
    }
}

fn correct(correction: Correction) {
    let result = match correction {
        Correction::None => Ok(()),
        Correction::Slew(off) => sys::time::slew(off / 1000),
        Correction::Step(off) => set(now() + i128::from(off)),
    };
    if let Err(e) = result {
        crate::log::warn(format_args!("cannot set the clock: {e}"));
    }
}

fn set(unix_time_ns: i128) -> rustix::io::Result<()> {
    let seconds = unix_time_ns.div_euclid(1_000_000_000);
    let tv_nsec = unix_time_ns.rem_euclid(1_000_000_000);
    let tv_sec = i64::try_from(seconds).map_err(|_| rustix::io::Errno::INVAL)?;
    // The rest of an earlier slew would add to the step.
    sys::time::slew(0)?;
    clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec: tv_nsec as _ })
}

#[cfg(test)]
mod tests;
