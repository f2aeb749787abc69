//! Adjusting the clock in ways that rustix lacks.

use rustix::io::{self, Errno};

/// Lets the clock go a little faster or slower until it has gained so many microseconds, in place of what was
/// left of an earlier call.
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
