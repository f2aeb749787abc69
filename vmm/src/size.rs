//! Parsers of sizes and durations.

use std::time::Duration;

const KIB: u64 = 1 << 10;

/// A size in MiB: `512M`, `2G`, `2GiB`; a plain number is MiB. Rounded up.
pub(crate) fn mib(text: &str) -> Result<u64, String> {
    bytes(text, KIB * KIB).map(|bytes| bytes.div_ceil(KIB * KIB))
}

/// The size of a disk in GiB: `20G`, `1T`, `2048M`; a plain number is GiB. The runtime checks the range of whole GiB.
pub(crate) fn disk_gib(text: &str) -> Result<u64, String> {
    const GIB: u64 = KIB.pow(3);
    let bytes = bytes(text, GIB)?;
    match bytes.is_multiple_of(GIB) {
        true => Ok(bytes / GIB),
        false => Err("a disk has 1G to 1T, in whole GiB, as in 20G".into()),
    }
}

/// Bytes per second: `500K`, `10M`, `1G`; a plain number is bytes.
pub(crate) fn rate(text: &str) -> Result<u64, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    bytes(number, 1).map_err(|_| "a rate is bytes per second, with K, M or G, as in 10M".into())
}

fn bytes(text: &str, default_unit: u64) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit.to_ascii_lowercase().as_str() {
        "" => default_unit,
        "k" | "kb" | "kib" => KIB,
        "m" | "mb" | "mib" => KIB.pow(2),
        "g" | "gb" | "gib" => KIB.pow(3),
        "t" | "tb" | "tib" => KIB.pow(4),
        _ => return Err("a size is a number followed by K, M, G or T, as in 512M".into()),
    };
    let number: u64 = number.parse().map_err(|_| "a size starts with a number, as in 512M")?;
    number.checked_mul(unit).ok_or_else(|| "that is too large".into())
}

/// A duration: `1.5s`, `300ms`, `2m`, `1h30m`; a plain number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const FORM: &str = "a duration is a number followed by ms, s, m, h or d, as in 90s or 1h30m";
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string());
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(FORM)?;
        let (number, tail) = rest.split_at(unit_at);
        let unit_end = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let unit = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86400.0,
            _ => return Err(FORM.into()),
        };
        let number: f64 = number.parse().map_err(|_| FORM)?;
        let part = Duration::try_from_secs_f64(number * unit).map_err(|e| e.to_string())?;
        total = total.checked_add(part).ok_or("that is too long")?;
        rest = tail;
    }
    if text.is_empty() { Err(FORM.into()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(mib("512"), Ok(512));
        assert_eq!(mib("512M"), Ok(512));
        assert_eq!(mib("2g"), Ok(2048));
        assert_eq!(mib("2GiB"), Ok(2048));
        assert_eq!(mib("1K"), Ok(1));
        assert_eq!(disk_gib("20"), Ok(20));
        assert_eq!(disk_gib("1T"), Ok(1024));
        assert_eq!(disk_gib("2048M"), Ok(2));
        for bad in ["", "M", "-1", "1.5G", "5X", "99999999999999999999", "99999999T"] {
            assert!(mib(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_disk_has_whole_gib() {
        for bad in ["1K", "1M", "1023M", "1025M", "1536M"] {
            let error = disk_gib(bad).unwrap_err();
            assert!(error.contains("1G to 1T"), "{bad}: {error}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("2"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        for bad in ["", "s", "-1s", "5x", "1h30", "1e400s", "inf", "nan", "99999999999999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
