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
    assert_eq!(by(&told(7, NOW, 0), later, i128::from(NOW) + i128::from(hour)), Correction::None);
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
