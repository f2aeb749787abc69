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
mod tests;
