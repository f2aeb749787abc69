//! Numbers and lists as messages show them.

pub(super) fn list(items: &[String]) -> String {
    const SHOWN: usize = 20;
    match items {
        [] => "(none)".to_owned(),
        _ if items.len() <= SHOWN => items.join(", "),
        _ => format!("{} and {} more", items[..SHOWN].join(", "), items.len() - SHOWN),
    }
}

/// A number of bytes as people read it.
pub(super) struct ByteCount(pub(super) u64);

impl std::fmt::Display for ByteCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
        let Some(exponent) = self.0.checked_ilog(1024).filter(|exponent| *exponent > 0) else {
            return write!(f, "{} bytes", self.0);
        };
        let exponent = exponent.min(4);
        let unit = UNITS.get(exponent as usize - 1).copied().unwrap_or("TiB");
        write!(f, "{:.1} {unit} ({} bytes)", self.0 as f64 / 1024f64.powi(exponent as i32), self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_counts_read_well() {
        assert_eq!(ByteCount(0).to_string(), "0 bytes");
        assert_eq!(ByteCount(1023).to_string(), "1023 bytes");
        assert_eq!(ByteCount(1536).to_string(), "1.5 KiB (1536 bytes)");
        assert!(ByteCount(u64::MAX).to_string().contains("TiB"));
    }

    #[test]
    fn long_lists_are_cut() {
        let tags: Vec<String> = (0..25).map(|n| n.to_string()).collect();
        assert!(list(&tags).ends_with("19 and 5 more"));
        assert_eq!(list(&[]), "(none)");
    }
}
