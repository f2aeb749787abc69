//! Reaps children: PID 1 inherits every orphan, and must reap each of them.
//!
//! **Invariant:** a process ID stays in use until the process is reaped, and only [`reap`] reaps. So a status
//! belongs to the exec with its process ID.

use boxlite_proto::message::ExitStatus;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};

/// The result of a reap.
pub(crate) enum Reaped {
    /// This child has exited.
    Child(Pid, ExitStatus),
    /// There are children, and none has exited.
    NoneExited,
    /// There are no children.
    NoChildren,
}

/// Reaps one child.
pub(crate) fn reap() -> Reaped {
    loop {
        return match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => match exit_status(status) {
                Some(status) => Reaped::Child(pid, status),
                None => continue,
            },
            Ok(None) => Reaped::NoneExited,
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => Reaped::NoChildren,
        };
    }
}

/// The exit status; none for a child that only stopped or continued.
fn exit_status(status: WaitStatus) -> Option<ExitStatus> {
    if let Some(code) = status.exit_status() {
        return Some(ExitStatus::Code(code as u8));
    }
    status.terminating_signal().map(ExitStatus::Signal)
}
