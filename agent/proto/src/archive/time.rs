//! Points in time in PAX records.

use super::number::decimal;

/// A point in time, before or after the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Seconds since the Unix epoch.
    pub seconds: i64,
    /// Nanoseconds to add: 0 to 999,999,999.
    pub nanoseconds: u32,
}

impl Time {
    /// Parses `[-]SECONDS[.FRACTION]`.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let (negative, text) = match text.strip_prefix(b"-") {
            Some(text) => (true, text),
            None => (false, text),
        };
        let mut parts = text.splitn(2, |b| *b == b'.');
        let seconds = parts.next().filter(|digits| !digits.is_empty()).and_then(decimal)?;
        let seconds = i64::try_from(seconds).ok()?;
        let fraction = parts.next().unwrap_or_default();
        decimal_digits(fraction)?;
        let mut nanoseconds = 0;
        for place in 0..9 {
            let digit = fraction.get(place).map_or(0, |digit| u32::from(digit - b'0'));
            nanoseconds = nanoseconds * 10 + digit;
        }
        Some(match (negative, nanoseconds) {
            (false, _) => Self { seconds, nanoseconds },
            (true, 0) => Self { seconds: -seconds, nanoseconds },
            (true, _) => Self { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
        })
    }
}

fn decimal_digits(text: &[u8]) -> Option<()> {
    text.iter().all(u8::is_ascii_digit).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_and_after_the_epoch() {
        let parse = |text: &str| Time::parse(text.as_bytes()).map(|t| (t.seconds, t.nanoseconds));
        assert_eq!(parse("0"), Some((0, 0)));
        assert_eq!(parse("1.5"), Some((1, 500_000_000)));
        assert_eq!(parse("1.000000001999"), Some((1, 1)));
        assert_eq!(parse("-1"), Some((-1, 0)));
        assert_eq!(parse("-1.25"), Some((-2, 750_000_000)));
        for bad in ["", "-", ".5", "1.x", "1.2.3", "9223372036854775808", "+1", "1e3"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
