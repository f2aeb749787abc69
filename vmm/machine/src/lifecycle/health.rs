//! When a box is asked whether it is well, and what is made of the answers: docker's rules.

use std::time::{Duration, Instant};

use boxlite_contract::spec::HealthSpec;
use boxlite_contract::status::{Health, HealthStatus};

use super::later;

/// A check begins so long after the last one at the least.
const SHORTEST_INTERVAL_MS: u64 = 10;

/// The health checks of a box.
#[derive(Debug)]
pub(super) struct Checks {
    spec: HealthSpec,
    health: Health,
    started: Instant,
    /// The number of the last check that was begun.
    number: u64,
    next: Next,
}

#[derive(Clone, Copy, Debug)]
enum Next {
    /// Nothing, until [`Checks::begin`].
    Idle,
    /// A check is to begin.
    Begin(Instant),
    /// The check that runs has failed.
    GiveUp(Instant),
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Todo {
    /// Begin the check of this number.
    Begin(u64),
    /// End the check that runs.
    Cancel,
}

impl Checks {
    pub(super) fn new(spec: HealthSpec, now: Instant) -> Self {
        Self { spec, health: fresh(), started: now, number: 0, next: Next::Idle }
    }

    /// What they say.
    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    /// Whether a box that is not well is to end.
    pub(super) fn stops(&self) -> bool {
        self.spec.stop
    }

    /// What is checked runs from now on.
    pub(super) fn begin(&mut self, now: Instant) {
        self.health = fresh();
        self.started = now;
        self.next = Next::Begin(self.interval_after(now));
    }

    /// What is checked does not run any more.
    pub(super) fn end(&mut self) {
        self.next = Next::Idle;
    }

    fn interval_after(&self, now: Instant) -> Instant {
        later(now, self.spec.interval_ms.max(SHORTEST_INTERVAL_MS))
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.next {
            Next::Idle => None,
            Next::Begin(at) | Next::GiveUp(at) => Some(at),
        }
    }

    /// The clock stood still for so long.
    pub(super) fn shift(&mut self, by: Duration) {
        self.started += by;
        match &mut self.next {
            Next::Idle => {}
            Next::Begin(at) | Next::GiveUp(at) => *at += by,
        }
    }

    pub(super) fn tick(&mut self, now: Instant) -> Option<Todo> {
        match self.next {
            Next::Begin(at) if at <= now => {
                self.number += 1;
                self.next = Next::GiveUp(later(now, self.spec.timeout_ms));
                Some(Todo::Begin(self.number))
            }
            Next::GiveUp(at) if at <= now => {
                let message = format!("no answer within {} ms", self.spec.timeout_ms);
                self.judge(Err(message), now);
                Some(Todo::Cancel)
            }
            _ => None,
        }
    }

    /// The check of this number ended; one that was given up ends unheard.
    pub(super) fn done(&mut self, number: u64, result: Result<String, String>, now: Instant) {
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
                let forgiven = health.status == HealthStatus::Starting
                    && now < later(self.started, self.spec.start_period_ms);
                if !forgiven {
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
        assert_eq!(checks.tick(now + Duration::from_secs(9)), None, "begun before the box runs");
        checks.begin(now);
        checks
    }

    #[test]
    fn failures_count_after_the_start_period_and_a_success_forgets_them() {
        let mut now = Instant::now();
        let mut checks = checks(now);
        let mut number = 0;
        let mut ask = |checks: &mut Checks, well: bool| {
            assert_eq!(checks.tick(now + 999 * MS), None);
            now += 1000 * MS;
            number += 1;
            assert_eq!(checks.tick(now), Some(Todo::Begin(number)));
            checks.done(number, if well { Ok("yes".into()) } else { Err("no".into()) }, now);
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
        checks.done(1, Ok(String::new()), now + 1000 * MS);
        checks.tick(now + 2000 * MS);
        checks.done(2, Err(String::new()), now + 2000 * MS);
        assert_eq!(checks.health().failures, 1);
    }

    #[test]
    fn a_check_without_an_answer_is_given_up_and_its_answer_ignored() {
        let now = Instant::now();
        let mut checks = checks(now);
        assert_eq!(checks.tick(now + 3000 * MS), Some(Todo::Begin(1)));
        assert_eq!(checks.tick(now + 3299 * MS), None);
        assert_eq!(checks.tick(now + 3300 * MS), Some(Todo::Cancel));
        assert_eq!(checks.health().failures, 1);
        checks.done(1, Ok("late".into()), now + 3400 * MS);
        assert_eq!(checks.health().failures, 1);
        assert_eq!(checks.tick(now + 4300 * MS), Some(Todo::Begin(2)));
        checks.done(1, Ok("very late".into()), now + 4400 * MS);
        assert_eq!(checks.health().failures, 1);
    }

    #[test]
    fn time_may_stand_still() {
        let now = Instant::now();
        let mut checks = checks(now);
        checks.shift(5000 * MS);
        assert_eq!(checks.tick(now + 5999 * MS), None);
        assert_eq!(checks.tick(now + 6000 * MS), Some(Todo::Begin(1)));
    }
}
