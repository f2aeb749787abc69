//! When something that ended begins anew: docker's policies and docker's delays.

use std::time::Duration;

use boxlite_contract::spec::RestartPolicy;

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// What ran so long begins anew without a history.
const GOOD_RUN: Duration = Duration::from_secs(10);

/// Decides about new beginnings, and counts them.
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

    /// How often something has begun anew.
    pub(super) fn total(&self) -> u32 {
        self.total
    }

    /// After how long that which has ended begins anew; none if it does not. `failed` says how it
    /// ended, `ran` how long it had been running.
    pub(super) fn again(&mut self, failed: bool, ran: Duration) -> Option<Duration> {
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

    /// It has begun anew.
    pub(super) fn count(&mut self) -> u32 {
        self.total = self.total.saturating_add(1);
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_minute_and_a_good_run_forgets_them() {
        let mut restarts = Restarts::new(RestartPolicy::Always);
        let delays: Vec<_> =
            (0..12).map(|_| restarts.again(false, Duration::ZERO).unwrap().as_millis()).collect();
        assert_eq!(delays[..4], [100, 200, 400, 800]);
        assert_eq!(delays[10..], [60_000, 60_000]);
        assert_eq!(restarts.again(true, GOOD_RUN), Some(FIRST_DELAY));
        assert_eq!(restarts.again(true, Duration::ZERO), Some(2 * FIRST_DELAY));
    }

    #[test]
    fn failures_in_a_row_are_limited() {
        let mut restarts = Restarts::new(RestartPolicy::OnFailure(2));
        assert!(restarts.again(false, Duration::ZERO).is_none());
        assert!(restarts.again(true, Duration::ZERO).is_some());
        assert!(restarts.again(true, Duration::ZERO).is_some());
        assert!(restarts.again(true, Duration::ZERO).is_none());
        assert!(restarts.again(true, GOOD_RUN).is_some());
        let mut endless = Restarts::new(RestartPolicy::OnFailure(0));
        assert!((0..1000).all(|_| endless.again(true, Duration::ZERO).is_some()));
        assert!(Restarts::new(RestartPolicy::No).again(true, GOOD_RUN).is_none());
    }
}
