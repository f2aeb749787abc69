//! Keeps a guest from filling the host's log.

use std::time::{Duration, Instant};

/// As many messages as a device may log in [`WINDOW`].
const BURST: u32 = 8;
const WINDOW: Duration = Duration::from_secs(60);

/// Lets a few messages a minute of one source through and swallows the rest.
#[derive(Debug, Default)]
pub(crate) struct LogLimit {
    since: Option<Instant>,
    logged: u32,
}

impl LogLimit {
    /// Whether the next message is to be logged.
    pub(crate) fn allows(&mut self) -> bool {
        self.allows_at(Instant::now())
    }

    fn allows_at(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= WINDOW) {
            *self = Self { since: Some(now), logged: 0 };
        }
        self.logged = self.logged.saturating_add(1);
        self.logged <= BURST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_once_a_window() {
        let mut limit = LogLimit::default();
        let start = Instant::now();
        let passed = (0..1000).filter(|_| limit.allows_at(start)).count();
        assert_eq!(passed, BURST as usize);
        assert!(!limit.allows_at(start + WINDOW - Duration::from_millis(1)));
        assert!(limit.allows_at(start + WINDOW));
    }
}
