//! The disposition of a signal in a process, from `/proc/PID/status` and `/proc/PID/syscall`.

use std::time::{Duration, Instant};

use rustix::process::Pid;

/// Time between two checks of a process.
const PAUSE: Duration = Duration::from_millis(1);

/// Longest wait for a C library that has blocked all signals, which lasts as long as a fork.
const LONGEST_BLOCK: Duration = Duration::from_secs(1);

/// `rt_sigtimedwait_time64`, and `rt_sigtimedwait` of 32-bit programs on x86_64.
const OTHER_SIGTIMEDWAIT: [i64; 2] = [421, 177];

/// SIGCANCEL of glibc and musl. Their `sigfillset` leaves it out: only the library itself blocks it.
const OF_LIBRARY: i32 = 32;

/// What a process does with a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disposition {
    /// The signal has its default action.
    Default,
    /// The C library has blocked all signals for a moment, as in a fork. Then the signal will have its default action,
    /// and a first process drops it.
    Held,
    /// The process handles, ignores or blocks the signal, or waits for it.
    Own,
}

/// Whether the kernel drops this signal for a process that is the first of its namespace: the process neither
/// handles the signal nor waits for it, and the signal would end any other process.
pub(super) fn is_dropped_for_first(pid: Pid, signal: i32) -> bool {
    ends_by_default(signal) && is_default(|| disposition(pid, signal), LONGEST_BLOCK)
}

/// Whether `check` settles on the default action.
fn is_default(mut check: impl FnMut() -> Disposition, longest: Duration) -> bool {
    let deadline = Instant::now() + longest;
    // While a process waits for signals, `status` shows them as not blocked. One check misses a process that
    // begins to wait between the reads of `syscall` and of `status`, so it must be the same twice.
    let mut before = None;
    loop {
        match check() {
            Disposition::Own => return false,
            Disposition::Held if Instant::now() >= deadline => return false,
            Disposition::Default if before == Some(Disposition::Default) => return true,
            held_or_default => before = Some(held_or_default),
        }
        std::thread::sleep(PAUSE);
    }
}

fn disposition(pid: Pid, signal: i32) -> Disposition {
    let read = |file: &str| {
        std::fs::read_to_string(format!("/proc/{}/{file}", pid.as_raw_nonzero()))
            .unwrap_or_default()
    };
    match waits_for_signals(&read("syscall")) {
        true => Disposition::Own,
        false => disposition_in(&read("status"), signal),
    }
}

/// Whether the system call in the text of `/proc/PID/syscall` waits for signals.
fn waits_for_signals(syscall: &str) -> bool {
    let number = syscall.split_ascii_whitespace().next().and_then(|word| word.parse::<i64>().ok());
    number.is_some_and(|n| n == libc::SYS_rt_sigtimedwait || OTHER_SIGTIMEDWAIT.contains(&n))
}

/// The disposition in the text of `/proc/PID/status`.
fn disposition_in(status: &str, signal: i32) -> Disposition {
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let bit = |signal: i32| 1_u64.checked_shl(signal.cast_unsigned().wrapping_sub(1)).unwrap_or(0);
    match (mask("SigBlk:"), mask("SigIgn:"), mask("SigCgt:")) {
        (Some(blocked), Some(ignored), Some(caught)) if (ignored | caught) & bit(signal) == 0 => {
            match blocked {
                blocked if blocked & bit(signal) == 0 => Disposition::Default,
                blocked if blocked & bit(OF_LIBRARY) != 0 => Disposition::Held,
                _ => Disposition::Own,
            }
        }
        // A process whose masks cannot be read is not killed.
        _ => Disposition::Own,
    }
}

/// Whether the signal ends a process that has no handler (`man 7 signal`). SIGKILL and SIGSTOP are never
/// dropped.
fn ends_by_default(signal: i32) -> bool {
    const OTHERS: [i32; 9] = [
        libc::SIGKILL,
        libc::SIGCHLD,
        libc::SIGCONT,
        libc::SIGSTOP,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGURG,
        libc::SIGWINCH,
    ];
    (1..=64).contains(&signal) && !OTHERS.contains(&signal)
}

#[cfg(test)]
mod tests;
