//! Health checks: when they run, and the status that follows from their results, by docker's rules.

use std::time::{Duration, Instant};

use boxlite_contract::spec::HealthSpec;
use boxlite_contract::status::{Health, HealthStatus};

use super::deadline_after;

/// The shortest pause between two checks.
const SHORTEST_INTERVAL_MS: u64 = 10;

/// The health checks of a box.
#[derive(Debug)]
pub(super) struct Checks {
    spec: HealthSpec,
    health: Health,
    started: Instant,
    /// The number of the last check that was started.
    number: u64,
    next: Next,
}

#[derive(Clone, Copy, Debug)]
enum Next {
    /// Nothing, until [`Checks::start`].
    Idle,
    /// A check starts then.
    Begin(Instant),
    /// The running check fails then, by timeout.
    GiveUp(Instant),
}

/// Something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CheckAction {
    /// Start the check with this number.
    Begin(u64),
    /// Kill the running check.
    Cancel,
}

impl Checks {
    pub(super) fn new(spec: HealthSpec, now: Instant) -> Self {
        Self { spec, health: fresh(), started: now, number: 0, next: Next::Idle }
    }

    /// The current health.
    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    /// Whether an unhealthy box is ended.
    pub(super) fn stop_unhealthy(&self) -> bool {
        self.spec.stop
    }

    /// Starts checking, with a new start period.
    pub(super) fn start(&mut self, now: Instant) {
        self.health = fresh();
        self.started = now;
        self.next = Next::Begin(self.interval_after(now));
    }

    /// Stops checking.
    pub(super) fn stop(&mut self) {
        self.next = Next::Idle;
    }

    fn interval_after(&self, now: Instant) -> Instant {
        deadline_after(now, self.spec.interval_ms.max(SHORTEST_INTERVAL_MS))
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.next {
            Next::Idle => None,
            Next::Begin(at) | Next::GiveUp(at) => Some(at),
        }
    }

    /// Moves all deadlines back by the length of a pause.
    pub(super) fn shift(&mut self, by: Duration) {
        self.started += by;
        match &mut self.next {
            Next::Idle => {}
            Next::Begin(at) | Next::GiveUp(at) => *at += by,
        }
    }

    pub(super) fn tick(&mut self, now: Instant) -> Option<CheckAction> {
        match self.next {
            Next::Begin(at) if at <= now => {
                self.number += 1;
                self.next = Next::GiveUp(deadline_after(now, self.spec.timeout_ms));
                Some(CheckAction::Begin(self.number))
            }
            Next::GiveUp(at) if at <= now => {
                let message = format!("no answer within {} ms", self.spec.timeout_ms);
                self.judge(Err(message), now);
                Some(CheckAction::Cancel)
            }
            _ => None,
        }
    }

    /// Takes the result of the check with this number. The result of a check that timed out is ignored.
    pub(super) fn on_result(&mut self, number: u64, result: Result<String, String>, now: Instant) {
        if number == self.number && matches!(self.next, Next::GiveUp(_)) {
            self.judge(result, now);
        }
    }

    fn judge(&mut self, result: Result<String, String>, now: Instant) {
        self.next = Next::Begin(self.interval_after(now));
        let health = &mut self.health;
        match result {
            Ok(last) => *health = Health::new(HealthStatus::Healthy, last),
            Err(last) => {
                health.last = last;
                let in_start_period = health.status == HealthStatus::Starting
                    && now < deadline_after(self.started, self.spec.start_period_ms);
                if !in_start_period {
                    health.failures = health.failures.saturating_add(1);
                    if health.failures >= self.spec.retries.max(1) {
                        health.status = HealthStatus::Unhealthy;
                    }
                }
            }
        }
    }
}

fn fresh() -> Health {
    Health::new(HealthStatus::Starting, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn checks(now: Instant) -> Checks {
        let spec = HealthSpec {
            exec: Default::default(),
            interval_ms: 1000,
            timeout_ms: 300,
            retries: 2,
            start_period_ms: 2500,
            stop: false,
        };
        let mut checks = Checks::new(spec, now);
        assert_eq!(checks.tick(now + Duration::from_secs(9)), None, "started before the box runs");
        checks.start(now);
        checks
    }

    #[test]
    fn failures_count_after_the_start_period_and_a_success_resets_them() {
        let mut now = Instant::now();
        let mut checks = checks(now);
        let mut number = 0;
        let mut ask = |checks: &mut Checks, well: bool| {
            assert_eq!(checks.tick(now + 999 * MS), None);
            now += 1000 * MS;
            number += 1;
            assert_eq!(checks.tick(now), Some(CheckAction::Begin(number)));
            checks.on_result(number, if well { Ok("yes".into()) } else { Err("no".into()) }, now);
            (checks.health().status, checks.health().failures)
        };
        use HealthStatus::{Healthy, Starting, Unhealthy};
        assert_eq!(ask(&mut checks, false), (Starting, 0));
        assert_eq!(ask(&mut checks, false), (Starting, 0));
        assert_eq!(ask(&mut checks, false), (Starting, 1));
        assert_eq!(ask(&mut checks, true), (Healthy, 0));
        assert_eq!(ask(&mut checks, false), (Healthy, 1));
        assert_eq!(ask(&mut checks, false), (Unhealthy, 2));
        assert_eq!(ask(&mut checks, true), (Healthy, 0));
        assert_eq!(checks.health().last, "yes");
    }

    #[test]
    fn a_success_ends_the_start_period() {
        let now = Instant::now();
        let mut checks = checks(now);
        checks.tick(now + 1000 * MS);
        checks.on_result(1, Ok(String::new()), now + 1000 * MS);
        checks.tick(now + 2000 * MS);
        checks.on_result(2, Err(String::new()), now + 2000 * MS);
        assert_eq!(checks.health().failures, 1);
    }

    #[test]
    fn a_check_that_times_out_is_cancelled_and_its_result_ignored() {
        let now = Instant::now();
        let mut checks = checks(now);
        assert_eq!(checks.tick(now + 3000 * MS), Some(CheckAction::Begin(1)));
        assert_eq!(checks.tick(now + 3299 * MS), None);
        assert_eq!(checks.tick(now + 3300 * MS), Some(CheckAction::Cancel));
        assert_eq!(checks.health().failures, 1);
        checks.on_result(1, Ok("late".into()), now + 3400 * MS);
        assert_eq!(checks.health().failures, 1);
        assert_eq!(checks.tick(now + 4300 * MS), Some(CheckAction::Begin(2)));
        checks.on_result(1, Ok("very late".into()), now + 4400 * MS);
        assert_eq!(checks.health().failures, 1);
    }

    #[test]
    fn a_pause_moves_the_deadlines() {
        let now = Instant::now();
        let mut checks = checks(now);
        checks.shift(5000 * MS);
        assert_eq!(checks.tick(now + 5999 * MS), None);
        assert_eq!(checks.tick(now + 6000 * MS), Some(CheckAction::Begin(1)));
    }
}
