//! Signals: a SIGCHLD handler that signals an eventfd, and functions to send and await signals.
//!
//! A handler rather than a signalfd, because a signalfd needs the signal blocked in every thread, and every
//! child would have to unblock it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io;

static DOORBELL: AtomicI32 = AtomicI32::new(-1);

extern "C" fn ring(_signal: libc::c_int) {
    let one = 1_u64.to_ne_bytes();
    // SAFETY: write is async-signal-safe and the buffer has eight bytes; errno, which the
    // interrupted code may be about to read, is put back.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(DOORBELL.load(Ordering::Relaxed), one.as_ptr().cast(), one.len());
        *libc::__errno_location() = errno;
    }
}

/// Makes SIGCHLD signal the returned eventfd, and ignores SIGPIPE, so that a write without a reader is an
/// ordinary error. To be called once; the eventfd stays open until the process exits.
pub(crate) fn on_child_ended() -> io::Result<OwnedFd> {
    let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let for_handler = rustix::io::fcntl_dupfd_cloexec(&bell, 3)?;
    DOORBELL.store(for_handler.as_raw_fd(), Ordering::Relaxed);
    std::mem::forget(for_handler);
    // SAFETY: the action is fully initialized, and the handler does only what handlers may do.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ring as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART | libc::SA_NOCLDSTOP;
        libc::sigaction(libc::SIGCHLD, &action, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
    Ok(bell)
}

/// Sends any signal number, also the real-time ones, to a process group.
pub(crate) fn signal_group(group: i32, signal: i32) -> io::Result<()> {
    send(-group, signal)
}

/// Sends any signal number to one process.
pub(crate) fn signal_process(pid: i32, signal: i32) -> io::Result<()> {
    send(pid, signal)
}

/// Blocks all signals in this thread, for [`next_signal`].
pub(crate) fn block_all() {
    // SAFETY: the set is initialized before it is used.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
    }
}

/// Waits for the next signal and returns it with the process ID of its sender: 0 for the kernel, or a process
/// outside of this one's namespace. All signals must be blocked.
pub(crate) fn next_signal() -> (i32, i32) {
    // SAFETY: the set is initialized before it is used, both pointers are valid for the call, and a signal
    // that was sent has a sender.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        let mut info: libc::siginfo_t = std::mem::zeroed();
        (libc::sigwaitinfo(&raw const all, &raw mut info), info.si_pid())
    }
}

/// Sends a signal to every process except this one, which is PID 1.
pub(crate) fn signal_all(signal: i32) -> io::Result<()> {
    send(-1, signal)
}

fn send(target: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes two integers.
    match unsafe { libc::kill(target, signal) } {
        0 => Ok(()),
        _ => {
            Err(io::Errno::from_io_error(&std::io::Error::last_os_error())
                .unwrap_or(io::Errno::INVAL))
        }
    }
}
