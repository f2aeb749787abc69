//! The names that a guest resolved, by the addresses of the answers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The most addresses at a time. The one that expires first makes room.
const MAX_ADDRESSES: usize = 8192;
/// The most names of one address.
const MAX_NAMES: usize = 16;
/// Programs use answers for longer than their time to live.
const MIN_TTL: Duration = Duration::from_secs(300);
const MAX_TTL: Duration = Duration::from_secs(24 * 3600);

/// The answers that the guest was given.
#[derive(Default)]
pub(super) struct Names(HashMap<IpAddr, Vec<(String, Instant)>>);

impl Names {
    pub(super) fn pin(&mut self, address: IpAddr, name: &str, ttl: Duration, now: Instant) {
        let expires = now + ttl.clamp(MIN_TTL, MAX_TTL);
        if self.0.len() >= MAX_ADDRESSES && !self.0.contains_key(&address) {
            self.make_room(now);
        }
        let names = self.0.entry(address).or_default();
        names.retain(|(known, expires)| known != name && *expires > now);
        if names.len() == MAX_NAMES {
            names.remove(0);
        }
        names.push((name.to_owned(), expires));
    }

    /// True if a name for which `matches` is true resolved to `address`.
    pub(super) fn any(
        &self,
        address: IpAddr,
        now: Instant,
        mut matches: impl FnMut(&str) -> bool,
    ) -> bool {
        let names = self.0.get(&address).into_iter().flatten();
        names.filter(|(_, expires)| *expires > now).any(|(name, _)| matches(name))
    }

    fn make_room(&mut self, now: Instant) {
        self.0.retain(|_, names| names.iter().any(|(_, expires)| *expires > now));
        if self.0.len() >= MAX_ADDRESSES {
            let latest = |names: &Vec<(String, Instant)>| names.iter().map(|(_, at)| *at).max();
            let first = self.0.iter().min_by_key(|(_, names)| latest(names)).map(|(ip, _)| *ip);
            first.and_then(|address| self.0.remove(&address));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_expire_and_are_bounded() {
        let now = Instant::now();
        let mut names = Names::default();
        let ip = |n: u32| IpAddr::from(n.to_be_bytes());
        for n in 0..=MAX_ADDRESSES as u32 {
            let ttl = Duration::from_secs(600 + u64::from(n));
            names.pin(ip(n), "example.org", ttl, now);
        }
        assert_eq!(names.0.len(), MAX_ADDRESSES);
        assert!(!names.any(ip(0), now, |_| true), "the first to expire gave way");
        for n in 0..40 {
            names.pin(ip(7), &format!("{n}.example.org"), Duration::ZERO, now);
        }
        assert_eq!(names.0[&ip(7)].len(), MAX_NAMES);
        assert!(names.any(ip(7), now, |name| name == "39.example.org"));
        assert!(!names.any(ip(7), now + MIN_TTL, |name| name == "39.example.org"));
    }
}
