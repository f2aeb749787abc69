//! Times, sizes and IDs in human-readable form.

use std::time::{Duration, SystemTime};

use indicatif::{BinaryBytes, HumanDuration};
use jiff::Timestamp;

/// Digits of a shortened ID.
const SHORT_ID: usize = 12;

/// The time since `time`: `2 hours ago`.
pub(crate) fn ago(time: SystemTime) -> String {
    format!("{} ago", since(time))
}

/// The time since `time`: `2 hours`.
pub(crate) fn since(time: SystemTime) -> String {
    // A future time, after the clock was set back, counts as now.
    long(SystemTime::now().duration_since(time).unwrap_or_default())
}

/// `2 hours`, `Less than a second`.
pub(crate) fn long(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        return "Less than a second".into();
    }
    HumanDuration(duration).to_string()
}

/// `1.50 GiB`, `512 B`.
pub(crate) fn bytes(bytes: u64) -> String {
    BinaryBytes(bytes).to_string()
}

/// RFC 3339 in UTC, with `digits` of a second's fraction.
pub(crate) fn rfc3339(time: SystemTime, digits: usize) -> String {
    match Timestamp::try_from(time) {
        Ok(time) => format!("{time:.digits$}"),
        // After the year 9999: a damaged record of a log.
        Err(_) => Timestamp::MAX.to_string(),
    }
}

/// An ID or a digest's hexadecimal digits, shortened unless `whole`.
pub(crate) fn id(id: &str, whole: bool) -> String {
    if whole { id.to_owned() } else { id.chars().take(SHORT_ID).collect() }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn durations() {
        let text = |seconds| long(Duration::from_secs_f64(seconds));
        assert_eq!(text(0.3), "Less than a second");
        assert_eq!(text(1.0), "1 second");
        assert_eq!(text(59.0), "59 seconds");
        assert_eq!(text(7200.0), "2 hours");
        assert_eq!(text(3.0 * 86400.0), "3 days");
        assert_eq!(ago(SystemTime::now() + Duration::from_secs(9)), "Less than a second ago");
    }

    #[test]
    fn times_and_sizes() {
        let time = UNIX_EPOCH + Duration::from_nanos(1_500_000_001);
        assert_eq!(rfc3339(time, 9), "1970-01-01T00:00:01.500000001Z");
        assert_eq!(rfc3339(time, 3), "1970-01-01T00:00:01.500Z");
        let far = UNIX_EPOCH + Duration::from_secs(u64::from(u32::MAX) << 10);
        assert!(rfc3339(far, 3).starts_with("9999-12-3"));
        assert_eq!(bytes(3 << 29), "1.50 GiB");
        assert_eq!(id("0123456789abcdef", false), "0123456789ab");
        assert_eq!(id("0123456789abcdef", true), "0123456789abcdef");
    }
}
