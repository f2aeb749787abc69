//! Signals, which have other numbers on other systems than Linux.

/// Whether this process was started to ignore a signal (Linux number), as with `nohup`.
#[allow(unsafe_code)]
pub(crate) fn is_ignored(linux: i32) -> bool {
    // SAFETY: all zeroes is a valid `sigaction`: the default action.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: it only writes to `action`, and changes nothing.
    let known = unsafe { libc::sigaction(native(linux), std::ptr::null(), &mut action) } == 0;
    known && action.sa_sigaction == libc::SIG_IGN
}

/// This system's number of a forwarded signal with a Linux number: only those of USR1 and USR2 differ.
pub(crate) fn native(linux: i32) -> i32 {
    match linux {
        10 => libc::SIGUSR1,
        12 => libc::SIGUSR2,
        same => same,
    }
}
