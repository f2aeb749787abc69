//! The PID namespace of a box's main command.
//!
//! Its first process is the main command, or an init (`--init`). The first process reaps orphans, and when it
//! exits, the kernel kills every process in the namespace. Commands that run beside the main command join
//! the namespace, so that all of them see one box. Its mount namespace differs from the agent's only in
//! `/proc`; other mounts propagate both ways.
//!
//! The kernel drops signals for which a first process has no handler. A user who stops a box of `sleep`
//! expects `sleep` to exit, so the agent checks the disposition before it sends a signal, and kills the process
//! in place of a signal that the kernel would drop.

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
    /// A pidfd: commands cannot join the namespace of another process that has got the same process ID.
    handle: OwnedFd,
    /// Whether the first process is an init that the agent started.
    has_init: bool,
    /// The signal in whose place the first process was killed.
    killed_for: Option<i32>,
}

/// What the exit of a first process means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NamespaceEnd {
    /// The process exited with this status.
    Process(ExitStatus),
    /// A process in the namespace called `reboot(2)`.
    Reboot,
}

impl Namespace {
    /// The namespace of its first process, which must not have been reaped.
    pub(crate) fn of(first: Pid, has_init: bool) -> io::Result<Self> {
        let handle = pidfd_open(first, PidfdFlags::empty())?;
        Ok(Self { first, handle, has_init, killed_for: None })
    }

    /// The pidfd by which commands join it.
    pub(crate) fn handle(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// Whether this is its first process.
    pub(crate) fn is_first(&self, pid: Pid) -> bool {
        self.first == pid
    }

    /// Sends a signal to the main command, which is `pid`.
    pub(crate) fn signal(&mut self, pid: Pid, signal: i32) {
        if !self.has_init && disposition::is_dropped_for_first(pid, signal) {
            self.kill_for(signal);
        } else {
            // Fails only if the process has just exited.
            let _ = signal_process(pid.as_raw_nonzero().get(), signal);
        }
    }

    /// Kills it in place of a signal that its terminal generated, or that was sent to all processes, if the
    /// kernel dropped that signal.
    pub(crate) fn interrupt(&mut self, signal: i32) {
        if !self.has_init && disposition::is_dropped_for_first(self.first, signal) {
            self.kill_for(signal);
        }
    }

    fn kill_for(&mut self, signal: i32) {
        self.killed_for.get_or_insert(signal);
        self.kill();
    }

    /// Kills every process in it.
    pub(crate) fn kill(&self) {
        // Fails only if it has ended.
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
    }

    /// Interprets the exit status of its first process.
    pub(crate) fn end(&self, status: ExitStatus) -> NamespaceEnd {
        match (status, self.killed_for) {
            (ExitStatus::Signal(libc::SIGKILL), Some(signal)) => {
                NamespaceEnd::Process(ExitStatus::Signal(signal))
            }
            // The kernel reports a reboot so (`reboot_pid_ns`). Neither signal ends a first process otherwise.
            (ExitStatus::Signal(libc::SIGHUP | libc::SIGINT), None) => NamespaceEnd::Reboot,
            _ => NamespaceEnd::Process(status),
        }
    }
}

#[cfg(test)]
mod tests;
