//! Restart policy: whether and when a command or VM restarts, by docker's policies and delays.

use std::time::Duration;

use boxlite_contract::spec::RestartPolicy;

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// A run of this length resets the count of restarts in a row and the delay.
const GOOD_RUN: Duration = Duration::from_secs(10);

/// Decides about restarts, and counts them.
#[derive(Debug)]
pub(super) struct Restarts {
    policy: RestartPolicy,
    in_a_row: u32,
    delay: Duration,
    total: u32,
}

impl Restarts {
    pub(super) fn new(policy: RestartPolicy) -> Self {
        Self { policy, in_a_row: 0, delay: FIRST_DELAY, total: 0 }
    }

    /// The number of restarts so far.
    pub(super) fn total(&self) -> u32 {
        self.total
    }

    /// The delay before the restart of a command or VM that ended; `None` if it does not restart. `failed` says how
    /// the run ended, `ran` how long it took.
    pub(super) fn next_delay(&mut self, failed: bool, ran: Duration) -> Option<Duration> {
        if ran >= GOOD_RUN {
            self.in_a_row = 0;
            self.delay = FIRST_DELAY;
        }
        if !self.policy.permits(failed, self.in_a_row) {
            return None;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        let delay = self.delay;
        self.delay = (delay * 2).min(LONGEST_DELAY);
        Some(delay)
    }

    /// Counts a restart. Returns the total.
    pub(super) fn record(&mut self) -> u32 {
        self.total = self.total.saturating_add(1);
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_minute_and_a_good_run_resets_them() {
        let mut restarts = Restarts::new(RestartPolicy::Always);
        let delays: Vec<_> = (0..12)
            .map(|_| restarts.next_delay(false, Duration::ZERO).unwrap().as_millis())
            .collect();
        assert_eq!(delays[..4], [100, 200, 400, 800]);
        assert_eq!(delays[10..], [60_000, 60_000]);
        assert_eq!(restarts.next_delay(true, GOOD_RUN), Some(FIRST_DELAY));
        assert_eq!(restarts.next_delay(true, Duration::ZERO), Some(2 * FIRST_DELAY));
    }

    #[test]
    fn failures_in_a_row_are_limited() {
        let mut restarts = Restarts::new(RestartPolicy::OnFailure(2));
        assert!(restarts.next_delay(false, Duration::ZERO).is_none());
        assert!(restarts.next_delay(true, Duration::ZERO).is_some());
        assert!(restarts.next_delay(true, Duration::ZERO).is_some());
        assert!(restarts.next_delay(true, Duration::ZERO).is_none());
        assert!(restarts.next_delay(true, GOOD_RUN).is_some());
        let mut endless = Restarts::new(RestartPolicy::OnFailure(0));
        assert!((0..1000).all(|_| endless.next_delay(true, Duration::ZERO).is_some()));
        assert!(Restarts::new(RestartPolicy::No).next_delay(true, GOOD_RUN).is_none());
    }
}
