//! The PID namespace of a box's main command.
//!
//! The main command is the first process of it, or with an init, that is: what it leaves behind is the
//! first process's to reap, and everything ends with the first process. Commands that run beside the main
//! command join it, so that all of them see one box. Its mount namespace differs from the agent's by a
//! `/proc` of its own only; other mounts appear in both.
//!
//! The kernel keeps signals from a first process that has no handler for them. Whoever asks a box's `sleep`
//! to end means it, so the agent looks before it sends one, and does what the signal would have done.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use boxlite_proto::message::ExitStatus;
use rustix::io;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::disposition;
use crate::sys::signal::signal_process;

/// The namespace of a running main command.
pub(crate) struct Namespace {
    /// Its first process: the command, or an init.
    first: Pid,
    /// Keeps commands from joining another that came to have the process ID.
    handle: OwnedFd,
    /// Whether the first process is an init of the agent's.
    has_init: bool,
    /// The signal for which the first process was killed in place of getting it.
    killed_for: Option<i32>,
}

/// What the end of a first process means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It ended so.
    Process(ExitStatus),
    /// Somebody in the namespace called `reboot(2)`.
    Reboot,
}

impl Namespace {
    /// That of this process, which must not have been reaped.
    pub(crate) fn of(first: Pid, has_init: bool) -> io::Result<Self> {
        let handle = pidfd_open(first, PidfdFlags::empty())?;
        Ok(Self { first, handle, has_init, killed_for: None })
    }

    /// What commands join it by.
    pub(crate) fn handle(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// Whether this is its first process.
    pub(crate) fn begins_with(&self, pid: Pid) -> bool {
        self.first == pid
    }

    /// Sends a signal to the main command, which is `pid`.
    pub(crate) fn signal(&mut self, pid: Pid, signal: i32) {
        if !self.has_init && disposition::is_kept_from_first(pid, signal) {
            self.kill_for(signal);
        } else {
            // Refused only where it has just ended.
            let _ = signal_process(pid.as_raw_nonzero().get(), signal);
        }
    }

    /// Ends it as a process ends that gets this signal from its terminal, if the kernel kept it from doing so.
    pub(crate) fn interrupt(&mut self, signal: i32) {
        if !self.has_init && disposition::is_kept_from_first(self.first, signal) {
            self.kill_for(signal);
        }
    }

    fn kill_for(&mut self, signal: i32) {
        self.killed_for.get_or_insert(signal);
        self.kill();
    }

    /// Ends everything in it.
    pub(crate) fn kill(&self) {
        // Refused only where it has ended.
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
    }

    /// What it means that its first process ended so.
    pub(crate) fn end(&self, status: ExitStatus) -> End {
        match (status, self.killed_for) {
            (ExitStatus::Signal(libc::SIGKILL), Some(signal)) => {
                End::Process(ExitStatus::Signal(signal))
            }
            // As the kernel tells it (`reboot_pid_ns`): neither of both ends a first process otherwise.
            (ExitStatus::Signal(libc::SIGHUP | libc::SIGINT), None) => End::Reboot,
            _ => End::Process(status),
        }
    }
}

#[cfg(test)]
mod tests;
