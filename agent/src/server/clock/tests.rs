use proptest::prelude::*;

use super::*;

const NOW: u64 = 1_700_000_000_000_000_000;
const MS: i64 = 1_000_000;
const SECOND: i64 = 1000 * MS;

fn reading(monotonic_ns: u64, unix_time_ns: u64, error_ns: u64) -> ClockReading {
    ClockReading { monotonic_ns, unix_time_ns, error_ns }
}

#[test]
fn an_old_hello_sets_no_clock_back() {
    let now = i128::from(NOW);
    for age in [0, 1, 150 * MS, 60 * SECOND, 86_400 * SECOND] {
        assert_eq!(by_lower_bound(NOW - age as u64, now), Correction::None, "{age}");
    }
    assert_eq!(by_lower_bound(NOW + 50 * MS as u64, now), Correction::Slew(50 * MS));
    assert_eq!(by_lower_bound(NOW + 150 * MS as u64, now), Correction::Step(150 * MS));
    // At boot, in a VM without a real-time clock.
    assert_eq!(by_lower_bound(NOW, 5), Correction::Step(NOW as i64 - 5));
    assert_eq!(by_lower_bound(u64::MAX, -1), Correction::None);
}

#[test]
fn small_differences_are_slewed_and_large_ones_stepped() {
    let off = |off: i64| by_reading(&reading(7, NOW, 0), 7, i128::from(NOW) - i128::from(off));
    assert_eq!(off(0), Correction::None);
    assert_eq!(off(MS / 2), Correction::None);
    for small in [MS, 99 * MS, -MS, -150 * MS, -9 * SECOND] {
        assert_eq!(off(small), Correction::Slew(small));
    }
    for large in [101 * MS, SECOND, -11 * SECOND, 3600 * SECOND, -3600 * SECOND] {
        assert_eq!(off(large), Correction::Step(large));
    }
    let unsure = |off: i64| {
        by_reading(&reading(7, NOW, 200 * MS as u64), 7, i128::from(NOW) - i128::from(off))
    };
    assert_eq!(unsure(150 * MS), Correction::None);
    assert_eq!(unsure(250 * MS), Correction::Slew(250 * MS));
    assert_eq!(unsure(301 * MS), Correction::Step(301 * MS));
}

#[test]
fn a_reading_stays_true() {
    // The box was paused for an hour, or the message took that long: both clocks went on.
    let hour = 3600 * SECOND;
    let later = 7 + hour as u64;
    assert_eq!(
        by_reading(&reading(7, NOW, 0), later, i128::from(NOW) + i128::from(hour)),
        Correction::None
    );
    assert_eq!(by_reading(&reading(7, NOW, 0), later, i128::from(NOW)), Correction::Step(hour));
    // From another boot.
    assert_eq!(by_reading(&reading(8, NOW, 0), 7, 0), Correction::None);
}

proptest! {
    #[test]
    fn no_message_overflows(monotonic: u64, unix: u64, error: u64, clock: u64, now: i64) {
        by_reading(&reading(monotonic, unix, error), clock, now.into());
        by_lower_bound(unix, now.into());
    }
}
