//! Which frames belong to which request.

use crate::guest::{MAX_COMMAND, MAX_LINK, MAX_NAME, Process};
use crate::message::{Request, Response};

/// A request without what it asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RequestKind {
    /// One that is answered by [`Response::Done`].
    Call,
    /// A command that the host follows.
    Exec,
    /// A command that is left alone.
    Detach,
    /// A tar to the guest.
    Unpack,
    /// A tar from the guest.
    Pack,
    /// How the VM is doing.
    Metrics,
    /// What became of commands.
    ExecCounts,
    /// The processes.
    Processes,
    /// What is at a path.
    Stat,
    /// The reading of a clock.
    Clock,
}

impl RequestKind {
    /// The kind of a request.
    pub fn of(request: &Request) -> Self {
        match request {
            Request::Ping | Request::Sync | Request::Shutdown { .. } | Request::SetClock(_) => {
                Self::Call
            }
            Request::Exec(_) | Request::ExecMain(_) => Self::Exec,
            Request::ExecDetached(_) => Self::Detach,
            Request::UnpackLayer | Request::CopyIn(_) => Self::Unpack,
            Request::CopyOut(_) => Self::Pack,
            Request::Metrics => Self::Metrics,
            Request::Processes => Self::Processes,
            Request::Stat(_) => Self::Stat,
            Request::ExecCounts => Self::ExecCounts,
            Request::Clock => Self::Clock,
        }
    }

    /// Whether data goes to the guest.
    pub(super) fn has_input(self) -> bool {
        matches!(self, Self::Exec | Self::Unpack)
    }

    /// Whether data flows at once, and not after an answer.
    pub(super) fn runs_at_once(self) -> bool {
        matches!(self, Self::Unpack | Self::Pack)
    }

    /// Whether this is a fitting last answer, given that the command was `started`.
    pub(super) fn ends_with(self, response: &Response, started: bool) -> bool {
        match response {
            Response::Failed(_) => true,
            Response::Exited(_) | Response::ExitedOutOfMemory(_) => self == Self::Exec && started,
            Response::Detached { .. } => self == Self::Detach,
            Response::Unpacked { .. } => self == Self::Unpack,
            Response::Done => matches!(self, Self::Call | Self::Pack),
            Response::Metrics(_) => self == Self::Metrics,
            Response::ExecCounts(_) => self == Self::ExecCounts,
            Response::Clock { .. } => self == Self::Clock,
            Response::Processes(_) => self == Self::Processes,
            Response::Stat(_) => self == Self::Stat,
            Response::Started { .. } => false,
        }
    }
}

/// What of an answer is longer than it may be, if anything is.
pub(super) fn oversize(response: &Response) -> Option<&'static str> {
    let fits =
        |process: &Process| process.name.len() <= MAX_NAME && process.command.len() <= MAX_COMMAND;
    match response {
        Response::Processes(processes) if !processes.iter().all(fits) => {
            Some("length of a process's name or command")
        }
        Response::Stat(stat) if stat.link_target.len() > MAX_LINK => Some("length of a link"),
        _ => None,
    }
}
