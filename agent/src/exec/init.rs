//! The init of a box with `--init`: process 1 of the PID namespace in place of the main command. It
//! reaps orphans and forwards signals to the main command.
//!
//! It is the agent's program, executed again without the agent's memory. The agent starts the main
//! command as the namespace's second process, and kills both.

use super::reaper::{Reaped, reap};
use crate::sys::signal::{block_all, next_signal, signal_process};

/// `argv[0]` of an init.
pub(crate) const NAME: &std::ffi::CStr = c"boxlite-init";

/// Process ID of the main command in the namespace: it is the second process started there.
const MAIN: i32 = 2;

/// Whether this process was started as an init. False for the guest's PID 1, which starts without `/proc`.
pub(crate) fn is_this_process() -> bool {
    std::fs::read("/proc/self/cmdline").is_ok_and(|line| line == NAME.to_bytes_with_nul())
}

/// Reaps and forwards signals until it is killed.
pub(crate) fn run() -> ! {
    block_all();
    // The kernel named the process `exe`, after `/proc/self/exe`.
    let _ = rustix::thread::set_name(NAME);
    loop {
        match next_signal() {
            (libc::SIGCHLD, _) => while matches!(reap(), Reaped::Child(..)) {},
            // From outside the namespace: the agent signals the main command, too.
            (_, 0) => {}
            (signal, _) => {
                // Fails if the main command has not started yet, or has just exited.
                let _ = signal_process(MAIN, signal);
            }
        }
    }
}
