//! Operations on clocks that rustix lacks.

use rustix::io::{self, Errno};

/// Speeds the clock up or slows it down until it has gained this many microseconds. Replaces the rest of an
/// earlier call.
pub(crate) fn slew(microseconds: i64) -> io::Result<()> {
    // SAFETY: all of timex may be zero.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    timex.modes = libc::ADJ_OFFSET_SINGLESHOT;
    timex.offset = microseconds as _;
    // SAFETY: the argument is valid for the call.
    match unsafe { libc::adjtimex(&raw mut timex) } {
        -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
        _ => Ok(()),
    }
}
