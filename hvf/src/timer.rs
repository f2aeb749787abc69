//! The virtual timer of a vCPU that waits for an interrupt, and the counter over a pause of the VM.
//!
//! A guest writes any value to CNTV_CVAL_EL0: every sum wraps, and every product has 128 bits.

use std::time::Duration;

/// CNTV_CTL_EL0.ENABLE.
pub const ENABLE: u64 = 1 << 0;
/// CNTV_CTL_EL0.IMASK: the timer raises no interrupt.
pub const IMASK: u64 = 1 << 1;
/// CNTV_CTL_EL0.ISTATUS: the timer's condition is met.
pub const ISTATUS: u64 = 1 << 2;

/// How long a vCPU waits for its timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The timer has fired.
    Expired,
    /// Until it fires.
    For(Duration),
    /// It does not fire.
    Forever,
}

/// How long a vCPU waits for its timer with these registers (CNTV_CTL_EL0, CNTV_CVAL_EL0), when its counter is at
/// `now` and ticks `frequency` times a second.
pub fn wait(control: u64, compare: u64, now: u64, frequency: u64) -> Wait {
    if control & (ENABLE | IMASK) != ENABLE {
        return Wait::Forever;
    }
    match compare.checked_sub(now) {
        None | Some(0) => Wait::Expired,
        Some(ticks) => duration(ticks, frequency).map_or(Wait::Forever, Wait::For),
    }
}

/// Whether the timer asserts its interrupt.
pub fn asserts(control: u64) -> bool {
    control & (ENABLE | IMASK | ISTATUS) == ENABLE | ISTATUS
}

/// The time of `ticks`, rounded up to nanoseconds. `None` without a frequency.
pub fn duration(ticks: u64, frequency: u64) -> Option<Duration> {
    const NANOS: u128 = 1_000_000_000;
    let nanos = (u128::from(ticks) * NANOS).checked_add(u128::from(frequency).checked_sub(1)?)?
        / u128::from(frequency);
    // At most u64::MAX seconds, as the frequency is at least 1.
    Some(Duration::new((nanos / NANOS) as u64, (nanos % NANOS) as u32))
}

/// The counter of a VM, which stands still while the VM is paused: the host's counter less an offset, the same for
/// all vCPUs.
///
/// **Invariant:** no vCPU sees the counter step back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counter {
    offset: u64,
    /// vCPUs in the guest.
    inside: u32,
    /// The host's counter when the last vCPU left the guest.
    left: u64,
}

impl Counter {
    /// A counter that reads 0 at `now`, with no vCPU in the guest.
    pub fn new(now: u64) -> Self {
        Self::at(0, now)
    }

    /// A counter that reads `value` at `now`, with no vCPU in the guest.
    pub fn at(value: u64, now: u64) -> Self {
        Self { offset: now.wrapping_sub(value), inside: 0, left: now }
    }

    /// The host's counter less the guest's.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// A vCPU is about to enter the guest. Returns the offset of its counter.
    pub fn enter(&mut self) -> u64 {
        self.inside += 1;
        self.offset
    }

    /// A vCPU left the guest at `now` of the host's counter.
    pub fn leave(&mut self, now: u64) {
        self.inside = self.inside.saturating_sub(1);
        self.left = now;
    }

    /// The VM goes on at `now` after a pause: the guest misses the time since the last vCPU left. Every vCPU says so;
    /// with one of them in the guest again, the rest changes nothing.
    pub fn resume(&mut self, now: u64) {
        if self.inside == 0 {
            self.offset = self.offset.wrapping_add(now.wrapping_sub(self.left));
            self.left = now;
        }
    }

    /// The guest's counter at `now` of the host's; where it stopped while no vCPU is in the guest.
    pub fn value(&self, now: u64) -> u64 {
        let now = if self.inside == 0 { self.left } else { now };
        now.wrapping_sub(self.offset)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_wait_is_never_too_short(control: u64, compare: u64, now: u64, frequency: u64) {
            if let Wait::For(time) = wait(control, compare, now, frequency) {
                prop_assert!(control & ENABLE != 0 && control & IMASK == 0);
                let ticks = u128::from(compare - now);
                let (time, frequency) = (time.as_nanos(), u128::from(frequency));
                prop_assert!(time * frequency >= ticks * 1_000_000_000);
                prop_assert!((time - 1) * frequency < ticks * 1_000_000_000);
            }
        }

        #[test]
        fn the_counter_stands_still_in_a_pause(
            start: u64,
            steps in prop::collection::vec((0..3usize, 0..1000u32, any::<bool>()), 0..100),
        ) {
            let mut now = start;
            let mut counter = Counter::new(now);
            // The offset of each vCPU in the guest, and the last value that each saw.
            let mut offsets = [None; 3];
            let mut seen = [0u64; 3];
            for (vcpu, ticks, resumed) in steps {
                now = now.wrapping_add(ticks.into());
                match offsets[vcpu].take() {
                    Some(offset) => {
                        seen[vcpu] = now.wrapping_sub(offset);
                        counter.leave(now);
                    }
                    None => {
                        let stopped = offsets.iter().all(Option::is_none);
                        if resumed {
                            counter.resume(now);
                        }
                        let offset = counter.enter();
                        let value = now.wrapping_sub(offset);
                        prop_assert!(value >= seen[vcpu], "the counter stepped back");
                        if stopped && resumed {
                            let last = seen.iter().max().unwrap();
                            prop_assert!(value == *last, "{} ticks were seen", value - last);
                        }
                        seen[vcpu] = value;
                        offsets[vcpu] = Some(offset);
                    }
                }
                let inside: Vec<u64> = offsets.iter().flatten().copied().collect();
                prop_assert!(inside.windows(2).all(|pair| pair[0] == pair[1]), "vCPUs disagree");
            }
        }

        #[test]
        fn a_saved_counter_goes_on(value: u64, now: u64, ticks in 0..u64::MAX / 2) {
            let mut counter = Counter::at(value, now);
            prop_assert_eq!(counter.value(now.wrapping_add(ticks)), value);
            counter.resume(now.wrapping_add(ticks));
            let offset = counter.enter();
            prop_assert_eq!(now.wrapping_add(ticks).wrapping_sub(offset), value);
        }
    }

    #[test]
    fn a_timer_that_is_off_never_fires() {
        for control in [0, ISTATUS, IMASK, ENABLE | IMASK, ENABLE | IMASK | ISTATUS] {
            assert_eq!(wait(control, 0, 1, 24_000_000), Wait::Forever);
            assert!(!asserts(control));
        }
        assert!(asserts(ENABLE | ISTATUS));
    }

    #[test]
    fn ticks_are_not_truncated() {
        let second = |frequency| wait(ENABLE, 100 + frequency, 100, frequency);
        for frequency in [1, 24_000_000, 62_500_000, 1_000_000_000, 3_000_000_000] {
            assert_eq!(second(frequency), Wait::For(Duration::from_secs(1)));
        }
        assert_eq!(wait(ENABLE, 5, 5, 24_000_000), Wait::Expired);
        assert_eq!(wait(ENABLE, 5, 6, 24_000_000), Wait::Expired);
        assert_eq!(wait(ENABLE, 6, 5, 0), Wait::Forever);
        let longest = Wait::For(Duration::from_secs(u64::MAX));
        assert_eq!(wait(ENABLE, u64::MAX, 0, 1), longest);
    }
}
