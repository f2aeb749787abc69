//! The guest's clock follows the host's, without disturbing programs more than need be.
//!
//! A time that the host sent is old when it is heard, nobody knows how old: the box may have been paused
//! meanwhile. So a greeting only says what it is *not before*. What the time is, the host tells by a reading of
//! a clock of this machine that nobody sets: that is as true later. A small difference is slewed away, a clock that
//! never goes back; it is set only where it is noticeably behind, or far ahead.

use std::time::Duration;

use boxlite_proto::message::ClockReading;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::sys;

/// A clock that is behind by more is set.
const BEHIND: Duration = Duration::from_millis(100);

/// A clock that is ahead by more is set: programs are disturbed more by a step back.
const AHEAD: Duration = Duration::from_secs(10);

/// A smaller difference is none.
const EXACT: Duration = Duration::from_micros(500);

/// What is to be done about a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Correction {
    None,
    /// To be slewed by so many nanoseconds.
    Slew(i64),
    /// To be set forward or back by so many nanoseconds.
    Step(i64),
}

/// The clock that nobody sets, in nanoseconds.
pub(crate) fn reading() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic)).try_into().unwrap_or(0)
}

/// The host sent that it was this time (0: it did not say) a while ago.
pub(crate) fn not_before(unix_time_ns: u64) {
    if unix_time_ns != 0 {
        correct(after(unix_time_ns, now()));
    }
}

/// The host told the time.
pub(crate) fn follow(told: &ClockReading) {
    correct(by(told, reading(), now()));
}

fn now() -> i128 {
    nanoseconds(clock_gettime(ClockId::Realtime))
}

fn nanoseconds(time: Timespec) -> i128 {
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}

/// What is to be done about a clock that shows `now` when the time is not before this.
fn after(unix_time_ns: u64, now: i128) -> Correction {
    let behind = i128::from(unix_time_ns) - now;
    if behind > 0 { correction(behind, 0) } else { Correction::None }
}

/// What is to be done about a clock that shows `now` when the other one shows `reading`.
fn by(told: &ClockReading, reading: u64, now: i128) -> Correction {
    let since = i128::from(reading) - i128::from(told.monotonic_ns);
    // The other clock does not go back: this is not of this boot.
    if since < 0 {
        return Correction::None;
    }
    correction(i128::from(told.unix_time_ns) + since - now, told.error_ns)
}

fn correction(off: i128, error_ns: u64) -> Correction {
    // What may be an error of the measure is not corrected.
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
    // What was left to be slewed was towards another time.
    sys::time::slew(0)?;
    clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec: tv_nsec as _ })
}

#[cfg(test)]
mod tests;
