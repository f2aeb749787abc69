//! Reads the state of the guest: metrics, processes, mounts, the file at a path.
//!
//! May use nothing else of the agent. **Invariant:** the kernel's text files need not be complete or
//! well-formed: a missing or malformed value counts as 0, and the rest is still reported.

mod metrics;
pub(crate) mod mountinfo;
mod process;
mod stat;

pub(crate) use metrics::metrics;
pub(crate) use process::processes;
pub(crate) use stat::{from_root, path_failure, stat};

/// Ticks in a second in the kernel's text files (`USER_HZ`), 100 on every architecture there is a
/// guest for.
const TICKS: u64 = 100;

/// A time in ticks as microseconds.
fn ticks(ticks: u64) -> u64 {
    ticks.saturating_mul(1_000_000 / TICKS)
}

/// The decimal number at the start of a field.
fn number<T: std::str::FromStr + Default>(field: Option<&[u8]>) -> T {
    field
        .and_then(|field| std::str::from_utf8(field.trim_ascii()).ok())
        .and_then(|field| field.parse().ok())
        .unwrap_or_default()
}

/// The words of a line.
fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// The rest of the first line that begins with `name`.
fn line<'a>(table: &'a [u8], name: &str) -> Option<&'a [u8]> {
    table.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(name.as_bytes()))
}
