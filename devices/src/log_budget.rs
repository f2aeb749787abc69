//! Keeps a guest from filling the host's disk with what is logged about it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// As many messages as a device may log in [`WINDOW`].
const BURST: u32 = 8;
const WINDOW: Duration = Duration::from_secs(60);
/// As many as it may log in its life.
const TOTAL: u32 = 256;

/// A device's budget of log messages: a few a minute, and a number for its whole life.
///
/// A device has one budget. What works for it from an activation to a reset logs on a clone, so that a
/// guest gains nothing by activating a device again and again.
#[derive(Clone, Debug, Default)]
pub struct LogBudget(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    since: Option<Instant>,
    in_window: u32,
    total: u32,
    /// Messages that were swallowed since the last one that was logged.
    swallowed: u64,
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It is logged, after so many that were not.
    Logged(u64),
    /// It is the last one that is logged.
    Last,
    Swallowed,
}

impl LogBudget {
    /// Logs a message, if the budget has room for it.
    pub fn warn(&self, message: fmt::Arguments<'_>) {
        match self.spend(Instant::now()) {
            Outcome::Logged(0) => tracing::warn!("{message}"),
            Outcome::Logged(swallowed) => {
                tracing::warn!("{message} ({swallowed} messages before this were not logged)");
            }
            Outcome::Last => tracing::warn!("{message} (further messages are not logged)"),
            Outcome::Swallowed => {}
        }
    }

    fn spend(&self, now: Instant) -> Outcome {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.since.is_none_or(|since| now.saturating_duration_since(since) >= WINDOW) {
            (state.since, state.in_window) = (Some(now), 0);
        }
        if state.total >= TOTAL || state.in_window >= BURST {
            state.swallowed = state.swallowed.saturating_add(1);
            return Outcome::Swallowed;
        }
        state.in_window += 1;
        state.total += 1;
        match state.total {
            TOTAL => Outcome::Last,
            _ => Outcome::Logged(std::mem::take(&mut state.swallowed)),
        }
    }
}

/// Records what is logged, for tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    impl LogBudget {
        /// How many messages have been logged, and how many were not since.
        pub(crate) fn spent(&self) -> (u32, u64) {
            let state = self.0.lock().unwrap();
            (state.total, state.swallowed)
        }
    }

    /// Asserts that a budget was asked for `messages` and logged no more than a burst.
    pub(crate) fn assert_bounded(budget: &LogBudget, messages: u64) {
        let (logged, swallowed) = budget.spent();
        assert!(logged <= BURST, "{logged} messages were logged");
        assert_eq!(u64::from(logged) + swallowed, messages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(budget: &LogBudget, now: Instant, messages: usize) -> usize {
        (0..messages).filter(|_| budget.spend(now) != Outcome::Swallowed).count()
    }

    #[test]
    fn a_burst_passes_once_a_window_and_clones_share_it() {
        let budget = LogBudget::default();
        let start = Instant::now();
        assert_eq!(logged(&budget, start, 1000), BURST as usize);
        assert_eq!(logged(&budget.clone(), start, 1000), 0);
        assert_eq!(logged(&budget, start + WINDOW - Duration::from_millis(1), 1), 0);
        assert_eq!(budget.spend(start + WINDOW), Outcome::Logged(992 + 1000 + 1));
        assert_eq!(budget.spend(start + WINDOW), Outcome::Logged(0));
    }

    #[test]
    fn a_life_has_a_total_whatever_its_length() {
        let (budget, start) = (LogBudget::default(), Instant::now());
        let windows = (0..1000).map(|n| logged(&budget, start + WINDOW * n, 1000));
        assert_eq!(windows.sum::<usize>(), TOTAL as usize);
        let (last, fresh) = (start, LogBudget::default());
        let outcomes: Vec<_> = (0..TOTAL).map(|n| fresh.spend(last + WINDOW * n)).collect();
        assert_eq!(outcomes.last(), Some(&Outcome::Last));
    }
}
