//! The first process of a box whose main command is not to be it (`--init`): it reaps what is orphaned
//! in the box, and passes on to the main command what is sent to process 1.
//!
//! It is this same program, executed anew with no memory of the agent's. The agent starts the main
//! command beside it, as the namespace's second process, and ends both.

use super::reaper::{Reaped, reap};
use crate::sys::signal::{block_all, next_signal, signal_process};

/// What this program is called when it is one.
pub(crate) const NAME: &std::ffi::CStr = c"boxlite-init";

/// The main command: nothing else has been started in the namespace before.
const MAIN: i32 = 2;

/// Whether this process was started to be one. At the machine's boot there is no `/proc` to say so.
pub(crate) fn is_wanted() -> bool {
    std::fs::read("/proc/self/cmdline").is_ok_and(|line| line == NAME.to_bytes_with_nul())
}

/// Reaps and passes on until it is killed.
pub(crate) fn run() -> ! {
    block_all();
    // What it was executed as is "exe".
    let _ = rustix::thread::set_name(NAME);
    loop {
        match next_signal() {
            (libc::SIGCHLD, _) => while matches!(reap(), Reaped::Child(..)) {},
            // What the agent sends, it sends to the main command as well.
            (_, 0) => {}
            (signal, _) => {
                // It has not been started, or has just ended.
                let _ = signal_process(MAIN, signal);
            }
        }
    }
}
