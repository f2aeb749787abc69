//! Reaping: PID 1 inherits every orphan, and must collect each that ends.
//!
//! A process ID stays taken until it is reaped, and only [`reap`] reaps, so a status belongs to the
//! exec that is registered for its process ID and to nobody else.

use boxlite_proto::message::ExitStatus;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};

/// One ended child, if there is one.
pub(crate) enum Reaped {
    /// This child ended.
    Child(Pid, ExitStatus),
    /// Children live on, none has ended.
    NothingNew,
    /// There is no child at all.
    NoChildren,
}

/// Collects one ended child.
pub(crate) fn reap() -> Reaped {
    loop {
        return match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => match exit_status(status) {
                Some(status) => Reaped::Child(pid, status),
                None => continue,
            },
            Ok(None) => Reaped::NothingNew,
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => Reaped::NoChildren,
        };
    }
}

/// None for a child that did not end.
fn exit_status(status: WaitStatus) -> Option<ExitStatus> {
    if let Some(code) = status.exit_status() {
        return Some(ExitStatus::Code(code as u8));
    }
    status.terminating_signal().map(ExitStatus::Signal)
}
