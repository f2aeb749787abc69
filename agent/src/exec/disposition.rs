//! The disposition of a signal in a process, from `/proc/PID/status` and `/proc/PID/syscall`.

use std::time::Duration;

use rustix::process::Pid;

/// Time between two checks of a process.
const PAUSE: Duration = Duration::from_millis(1);

/// `rt_sigtimedwait_time64`, and `rt_sigtimedwait` of 32-bit programs on x86_64.
const OTHER_SIGTIMEDWAIT: [i64; 2] = [421, 177];

/// Whether the kernel drops this signal for a process that is the first of its namespace: the process neither
/// handles the signal nor waits for it, and the signal would end any other process.
pub(super) fn is_dropped_for_first(pid: Pid, signal: i32) -> bool {
    if !ends_by_default(signal) || !is_default(pid, signal) {
        return false;
    }
    // While a process waits for signals, `status` shows them as not blocked. One check misses a process that
    // begins to wait between the reads of `syscall` and of `status`, so check twice.
    std::thread::sleep(PAUSE);
    is_default(pid, signal)
}

fn is_default(pid: Pid, signal: i32) -> bool {
    let read = |file: &str| {
        std::fs::read_to_string(format!("/proc/{}/{file}", pid.as_raw_nonzero()))
            .unwrap_or_default()
    };
    !waits_for_signals(&read("syscall")) && is_default_in(&read("status"), signal)
}

/// Whether the system call in the text of `/proc/PID/syscall` waits for signals.
fn waits_for_signals(syscall: &str) -> bool {
    let number = syscall.split_ascii_whitespace().next().and_then(|word| word.parse::<i64>().ok());
    number.is_some_and(|n| n == libc::SYS_rt_sigtimedwait || OTHER_SIGTIMEDWAIT.contains(&n))
}

/// Whether the text of `/proc/PID/status` has the signal neither blocked nor ignored nor caught.
fn is_default_in(status: &str, signal: i32) -> bool {
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let bit = 1_u64.checked_shl(signal.cast_unsigned().wrapping_sub(1)).unwrap_or(0);
    // A process whose masks cannot be read is not killed.
    [mask("SigBlk:"), mask("SigIgn:"), mask("SigCgt:")]
        .into_iter()
        .all(|mask| mask.is_some_and(|mask| mask & bit == 0))
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
