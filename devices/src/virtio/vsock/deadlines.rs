//! Deadlines of clients and connections, earliest first.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use super::Token;

/// Deadlines, at most one for each token.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    by_time: BTreeSet<(Instant, Token)>,
    by_token: HashMap<Token, Instant>,
}

impl Deadlines {
    /// Sets the token's deadline, which replaces an earlier one.
    pub(super) fn set(&mut self, token: Token, deadline: Instant) {
        self.clear(token);
        self.by_token.insert(token, deadline);
        self.by_time.insert((deadline, token));
    }

    pub(super) fn clear(&mut self, token: Token) {
        if let Some(deadline) = self.by_token.remove(&token) {
            self.by_time.remove(&(deadline, token));
        }
    }

    pub(super) fn is_set(&self, token: Token) -> bool {
        self.by_token.contains_key(&token)
    }

    /// The earliest deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|&(deadline, _)| deadline)
    }

    /// Removes and returns the token with the earliest deadline, if it has passed.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<Token> {
        let &(_, token) = self.by_time.first().filter(|&&(deadline, _)| deadline <= now)?;
        self.clear(token);
        Some(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn deadlines_expire_in_order_unless_cleared() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut deadlines = Deadlines::default();
        deadlines.set(1, at(3));
        deadlines.set(2, at(2));
        deadlines.set(3, at(2));
        deadlines.set(4, at(1));
        deadlines.set(1, at(2));
        deadlines.clear(4);
        assert!(!deadlines.is_set(4));
        assert_eq!(deadlines.next(), Some(at(2)));
        assert_eq!(deadlines.pop_expired(at(1)), None);
        let expired: Vec<_> = std::iter::from_fn(|| deadlines.pop_expired(at(2))).collect();
        assert_eq!(expired, [1, 2, 3]);
        assert_eq!(deadlines.next(), None);
    }
}
