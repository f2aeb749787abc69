//! The retransmission timeout (RFC 6298).

use std::time::Duration;

/// Linux delays an acknowledgement by up to 40 ms, sometimes 200 ms.
const MIN: Duration = Duration::from_millis(200);
const MAX: Duration = Duration::from_secs(60);
const INITIAL: Duration = Duration::from_secs(1);

/// The round-trip time, and the timeout that follows from it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rto {
    /// Smoothed round-trip time and its variation, once measured.
    measured: Option<(Duration, Duration)>,
    /// Timeouts since the last acknowledgement.
    pub(super) backoff: u8,
}

impl Rto {
    pub(super) fn new() -> Self {
        Self { measured: None, backoff: 0 }
    }

    /// A segment that was sent once was acknowledged after `round_trip`.
    pub(super) fn measure(&mut self, round_trip: Duration) {
        self.measured = Some(match self.measured {
            None => (round_trip, round_trip / 2),
            Some((mean, variation)) => {
                let difference = mean.abs_diff(round_trip);
                ((mean * 7 + round_trip) / 8, (variation * 3 + difference) / 4)
            }
        });
    }

    pub(super) fn timeout(&self) -> Duration {
        let base = self.measured.map_or(INITIAL, |(mean, variation)| mean + variation * 4);
        base.max(MIN).saturating_mul(1 << self.backoff.min(16)).min(MAX)
    }

    pub(super) fn back_off(&mut self) {
        self.backoff = self.backoff.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_follows_the_round_trip_and_doubles() {
        let ms = Duration::from_millis;
        let mut rto = Rto::new();
        assert_eq!(rto.timeout(), ms(1000));
        rto.measure(ms(100));
        assert_eq!(rto.timeout(), ms(300));
        for _ in 0..100 {
            rto.measure(ms(400));
        }
        assert!((ms(400)..ms(420)).contains(&rto.timeout()), "{:?}", rto.timeout());
        rto.back_off();
        assert!(rto.timeout() >= ms(800));
        for _ in 0..300 {
            rto.back_off();
        }
        assert_eq!(rto.timeout(), MAX);
    }
}
