//! Limits log messages about a guest, which could otherwise fill the host's disk.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The most messages of a device in [`WINDOW`].
const BURST: u32 = 8;
const WINDOW: Duration = Duration::from_secs(60);
/// The most messages of a device in its life.
const TOTAL: u32 = 256;

/// A device's budget of log messages: a few a minute, and a number for its whole life.
///
/// A device has one budget. Its parts that exist from an activation to a reset log on a clone, so that
/// a guest gets no new budget by activating the device again.
#[derive(Clone, Debug, Default)]
pub struct LogBudget(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    since: Option<Instant>,
    in_window: u32,
    total: u32,
    /// Messages that were not logged since the last one that was.
    suppressed: u64,
}

/// Whether a message is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Logged, after this many that were not.
    Logged(u64),
    /// Logged, as the last one.
    Last,
    Suppressed,
}

impl LogBudget {
    /// Logs a message, if the budget has room for it.
    pub fn warn(&self, message: fmt::Arguments<'_>) {
        match self.spend(Instant::now()) {
            Outcome::Logged(0) => tracing::warn!("{message}"),
            Outcome::Logged(suppressed) => {
                tracing::warn!("{message} ({suppressed} messages before this were not logged)");
            }
            Outcome::Last => tracing::warn!("{message} (further messages are not logged)"),
            Outcome::Suppressed => {}
        }
    }

    fn spend(&self, now: Instant) -> Outcome {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.since.is_none_or(|since| now.saturating_duration_since(since) >= WINDOW) {
            (state.since, state.in_window) = (Some(now), 0);
        }
        if state.total >= TOTAL || state.in_window >= BURST {
            state.suppressed = state.suppressed.saturating_add(1);
            return Outcome::Suppressed;
        }
        state.in_window += 1;
        state.total += 1;
        match state.total {
            TOTAL => Outcome::Last,
            _ => Outcome::Logged(std::mem::take(&mut state.suppressed)),
        }
    }
}

/// Access to the counts, for tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    impl LogBudget {
        /// How many messages have been logged, and how many were not since.
        pub(crate) fn spent(&self) -> (u32, u64) {
            let state = self.0.lock().unwrap();
            (state.total, state.suppressed)
        }
    }

    /// Asserts that a budget was asked for `messages` and logged no more than a burst.
    pub(crate) fn assert_bounded(budget: &LogBudget, messages: u64) {
        let (logged, suppressed) = budget.spent();
        assert!(logged <= BURST, "{logged} messages were logged");
        assert_eq!(u64::from(logged) + suppressed, messages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(budget: &LogBudget, now: Instant, messages: usize) -> usize {
        (0..messages).filter(|_| budget.spend(now) != Outcome::Suppressed).count()
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
    fn the_total_is_bounded_over_any_time() {
        let (budget, start) = (LogBudget::default(), Instant::now());
        let windows = (0..1000).map(|n| logged(&budget, start + WINDOW * n, 1000));
        assert_eq!(windows.sum::<usize>(), TOTAL as usize);
        let (last, fresh) = (start, LogBudget::default());
        let outcomes: Vec<_> = (0..TOTAL).map(|n| fresh.spend(last + WINDOW * n)).collect();
        assert_eq!(outcomes.last(), Some(&Outcome::Last));
    }
}
