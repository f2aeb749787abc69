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
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_700_000_000_000_000_000;
    const MS: i64 = 1_000_000;
    const SECOND: i64 = 1000 * MS;

    fn told(monotonic_ns: u64, unix_time_ns: u64, error_ns: u64) -> ClockReading {
        ClockReading { monotonic_ns, unix_time_ns, error_ns }
    }

    #[test]
    fn an_old_greeting_sets_no_clock_back() {
        let now = i128::from(NOW);
        for age in [0, 1, 150 * MS, 60 * SECOND, 86_400 * SECOND] {
            assert_eq!(after(NOW - age as u64, now), Correction::None, "{age}");
        }
        assert_eq!(after(NOW + 50 * MS as u64, now), Correction::Slew(50 * MS));
        assert_eq!(after(NOW + 150 * MS as u64, now), Correction::Step(150 * MS));
        // At boot, on a machine without a clock.
        assert_eq!(after(NOW, 5), Correction::Step(NOW as i64 - 5));
        assert_eq!(after(u64::MAX, -1), Correction::None);
    }

    #[test]
    fn small_differences_are_slewed_and_large_ones_set() {
        let off = |off: i64| by(&told(7, NOW, 0), 7, i128::from(NOW) - i128::from(off));
        assert_eq!(off(0), Correction::None);
        assert_eq!(off(MS / 2), Correction::None);
        for small in [MS, 99 * MS, -MS, -150 * MS, -9 * SECOND] {
            assert_eq!(off(small), Correction::Slew(small));
        }
        for large in [101 * MS, SECOND, -11 * SECOND, 3600 * SECOND, -3600 * SECOND] {
            assert_eq!(off(large), Correction::Step(large));
        }
        let unsure =
            |off: i64| by(&told(7, NOW, 200 * MS as u64), 7, i128::from(NOW) - i128::from(off));
        assert_eq!(unsure(150 * MS), Correction::None);
        assert_eq!(unsure(250 * MS), Correction::Slew(250 * MS));
        assert_eq!(unsure(301 * MS), Correction::Step(301 * MS));
    }

    #[test]
    fn what_was_told_is_as_true_later() {
        // The box was paused for an hour, or the message was on its way so long: both clocks went on.
        let hour = 3600 * SECOND;
        let later = 7 + hour as u64;
        assert_eq!(
            by(&told(7, NOW, 0), later, i128::from(NOW) + i128::from(hour)),
            Correction::None
        );
        assert_eq!(by(&told(7, NOW, 0), later, i128::from(NOW)), Correction::Step(hour));
        // Of another boot.
        assert_eq!(by(&told(8, NOW, 0), 7, 0), Correction::None);
    }

    proptest! {
        #[test]
        fn no_message_overflows(monotonic: u64, unix: u64, error: u64, reading: u64, now: i64) {
            by(&told(monotonic, unix, error), reading, now.into());
            after(unix, now.into());
        }
    }
}
