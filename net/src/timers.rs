//! Deadlines of flows. Moving one to a later time is free: its alarm goes off early, and the owner sets
//! another.

use std::collections::BTreeSet;
use std::time::Instant;

/// The owner of an alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Alarm {
    /// A TCP flow, by its index in the table.
    Tcp(usize),
    /// A UDP flow, by its index in the table.
    Udp(usize),
    /// A flow over a ping socket, by its index in the table.
    Ping(usize),
    /// A DNS query, by its index in the table.
    Dns(usize),
    /// Flows that wait for a rate limit.
    Limit,
    /// Housekeeping.
    Housekeeping,
}

/// Alarms in the order of their times.
#[derive(Default)]
pub(crate) struct Timers(BTreeSet<(Instant, Alarm)>);

impl Timers {
    pub(crate) fn set(&mut self, at: Instant, alarm: Alarm) {
        self.0.insert((at, alarm));
    }

    /// Sets an alarm for `deadline`, unless the owner's alarm, set for `armed`, goes off before that. For
    /// an owner with one alarm, which calls this again when the alarm goes off.
    pub(crate) fn arm(&mut self, armed: &mut Option<Instant>, deadline: Instant, alarm: Alarm) {
        if armed.is_none_or(|at| deadline < at) {
            self.disarm(*armed, alarm);
            *armed = Some(deadline);
            self.set(deadline, alarm);
        }
    }

    /// Removes the alarm of an owner that is removed.
    pub(crate) fn disarm(&mut self, armed: Option<Instant>, alarm: Alarm) {
        if let Some(at) = armed {
            self.0.remove(&(at, alarm));
        }
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.first().map(|(at, _)| *at)
    }

    pub(crate) fn pop(&mut self, now: Instant) -> Option<(Instant, Alarm)> {
        if self.next()? > now {
            return None;
        }
        self.0.pop_first()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn alarms_go_off_in_order_and_moving_one_later_costs_nothing() {
        let now = Instant::now();
        let later = |s| now + Duration::from_secs(s);
        let mut timers = Timers::default();
        let mut armed = None;
        timers.arm(&mut armed, later(5), Alarm::Tcp(1));
        timers.arm(&mut armed, later(9), Alarm::Tcp(1));
        timers.set(later(3), Alarm::Housekeeping);
        assert_eq!(timers.next(), Some(later(3)));
        assert_eq!(timers.pop(later(2)), None);
        assert_eq!(timers.pop(later(6)), Some((later(3), Alarm::Housekeeping)));
        assert_eq!(timers.pop(later(6)), Some((later(5), Alarm::Tcp(1))));
        armed = None;
        timers.arm(&mut armed, later(2), Alarm::Tcp(1));
        timers.arm(&mut armed, later(1), Alarm::Tcp(1));
        assert_eq!(timers.pop(later(60)), Some((later(1), Alarm::Tcp(1))), "and none is left over");
        assert_eq!(timers.pop(later(60)), None);
    }
}
