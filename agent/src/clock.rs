//! The guest's clock follows the host's where it is noticeably off: after boot on machines without
//! a clock device, and after a snapshot was restored.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_settime};

/// A smaller difference is left alone: a step back in time disturbs programs more.
const TOLERANCE: Duration = Duration::from_millis(100);

/// Sets the clock to the host's time, unless that is 0 or near enough.
pub(crate) fn follow(unix_time_ns: u64) {
    if unix_time_ns == 0 || !is_off(unix_time_ns, SystemTime::now()) {
        return;
    }
    let time = Timespec {
        tv_sec: (unix_time_ns / 1_000_000_000).cast_signed(),
        tv_nsec: (unix_time_ns % 1_000_000_000).cast_signed(),
    };
    if let Err(e) = clock_settime(ClockId::Realtime, time) {
        crate::log::warn(format_args!("cannot set the clock: {e}"));
    }
}

fn is_off(unix_time_ns: u64, now: SystemTime) -> bool {
    let host = UNIX_EPOCH + Duration::from_nanos(unix_time_ns);
    let difference = host.duration_since(now).unwrap_or_else(|e| e.duration());
    difference > TOLERANCE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_noticeable_difference_counts() {
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let at = |offset_ms: i64| (1_700_000_000_000 + offset_ms) as u64 * 1_000_000;
        assert!(!is_off(at(0), now) && !is_off(at(100), now) && !is_off(at(-100), now));
        assert!(is_off(at(101), now) && is_off(at(-101), now));
        assert!(is_off(1, now) && is_off(u64::MAX, now) && is_off(u64::MAX, UNIX_EPOCH));
    }
}
