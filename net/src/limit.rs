//! Rate limits: a token bucket for each direction.

use std::time::{Duration, Instant};

/// A rate and a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Bytes of frames per second.
    pub bytes_per_second: u64,
    /// Bytes that may be sent at once after a pause; at least one frame may.
    pub burst: u64,
}

impl RateLimit {
    /// This rate, with the bytes of an eighth of a second as the burst.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, burst: bytes_per_second / 8 }
    }
}

/// The limits of both directions; none by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// What the guest receives.
    pub to_guest: Option<RateLimit>,
    /// What the guest sends.
    pub from_guest: Option<RateLimit>,
}

/// A token bucket that one frame may overdraw.
pub(crate) struct Bucket {
    limit: Option<RateLimit>,
    /// Bytes that may be sent now; negative after a frame that was larger than what was left.
    tokens: i128,
    filled: Instant,
}

impl Bucket {
    pub(crate) fn new(limit: Option<RateLimit>, now: Instant) -> Self {
        let tokens = limit.map_or(0, |limit| limit.burst.into());
        Self { limit, tokens, filled: now }
    }

    /// When the next frame may be sent; none is now.
    pub(crate) fn wait(&mut self, now: Instant) -> Option<Instant> {
        let limit = self.limit?;
        let rate = i128::from(limit.bytes_per_second.max(1));
        let elapsed = now.saturating_duration_since(self.filled);
        let nanos = i128::try_from(elapsed.as_nanos()).unwrap_or(i128::MAX / rate);
        let gained = nanos.saturating_mul(rate) / 1_000_000_000;
        if gained > 0 {
            self.tokens = self.tokens.saturating_add(gained).min(limit.burst.max(1).into());
            // A fraction of a token counts next time.
            let rest = (nanos.saturating_mul(rate) % 1_000_000_000) / rate;
            self.filled = now
                .checked_sub(Duration::from_nanos(u64::try_from(rest).unwrap_or(0)))
                .unwrap_or(now);
        }
        if self.tokens > 0 {
            return None;
        }
        let nanos = (1 - self.tokens).saturating_mul(1_000_000_000) / rate + 1;
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        // The bounds keep an extreme rate from a busy loop, and from an alarm that never comes.
        Some(
            now + Duration::from_nanos(nanos)
                .clamp(Duration::from_millis(1), Duration::from_secs(60)),
        )
    }

    pub(crate) fn spend(&mut self, bytes: usize) {
        if self.limit.is_some() {
            self.tokens -= i128::try_from(bytes).unwrap_or(i128::MAX >> 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_the_rate_over_time() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Some(RateLimit::new(1_000_000)), start);
        let (mut now, mut sent) = (start, 0_u64);
        while now < start + Duration::from_secs(10) {
            match bucket.wait(now) {
                None => {
                    bucket.spend(65_000);
                    sent += 65_000;
                }
                Some(at) => {
                    assert!(at > now);
                    now = at;
                }
            }
        }
        assert!((9_900_000..10_300_000).contains(&sent), "{sent} bytes in ten seconds");
    }

    #[test]
    fn what_is_asked_often_gains_no_less() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Some(RateLimit { bytes_per_second: 1000, burst: 1 }), start);
        let mut taken = 0;
        for step in 0..10_000_u32 {
            if bucket.wait(start + Duration::from_micros(700) * step).is_none() {
                bucket.spend(1);
                taken += 1;
            }
        }
        assert!((6900..=7001).contains(&taken), "{taken} tokens in seven seconds");
    }

    #[test]
    fn no_limit_never_waits_and_extremes_do_not_overflow() {
        let now = Instant::now();
        let mut free = Bucket::new(None, now);
        free.spend(usize::MAX);
        assert_eq!(free.wait(now), None);
        let mut slow = Bucket::new(Some(RateLimit { bytes_per_second: 0, burst: 0 }), now);
        slow.spend(usize::MAX);
        assert!(slow.wait(now + Duration::from_secs(1 << 40)).is_some());
        let mut fast = Bucket::new(Some(RateLimit::new(u64::MAX)), now);
        fast.spend(1 << 40);
        assert_eq!(fast.wait(now + Duration::from_secs(1 << 40)), None);
    }
}
