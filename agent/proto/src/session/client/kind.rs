//! The kinds of requests: which frames and which final response each of them allows.

use crate::frame::Channel;
use crate::guest::{MAX_COMMAND, MAX_LINK, MAX_NAME, Process};
use crate::message::{Request, Response};

/// The kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RequestKind {
    /// A call that is answered by [`Response::Done`].
    Call,
    /// A command with streams to the host.
    Exec,
    /// A detached command.
    Detach,
    /// A tar to the guest.
    Unpack,
    /// A tar from the guest.
    Pack,
    /// The metrics of the guest.
    Metrics,
    /// The counters of commands.
    ExecCounts,
    /// The list of processes.
    Processes,
    /// The metadata of a file.
    Stat,
    /// The reading of the guest's monotonic clock.
    Clock,
    /// A connection to a socket of the guest.
    Connect,
}

impl RequestKind {
    /// The kind of a request.
    pub fn of(request: &Request) -> Self {
        match request {
            Request::Ping | Request::Sync | Request::Shutdown { .. } | Request::SetClock(_) => {
                Self::Call
            }
            Request::Exec(_) | Request::ExecMain(_) | Request::ExecServer(_) => Self::Exec,
            Request::ExecDetached(_) => Self::Detach,
            Request::UnpackLayer | Request::CopyIn(_) => Self::Unpack,
            Request::CopyOut(_) => Self::Pack,
            Request::Metrics => Self::Metrics,
            Request::Processes => Self::Processes,
            Request::Stat(_) => Self::Stat,
            Request::ExecCounts => Self::ExecCounts,
            Request::Clock => Self::Clock,
            Request::Connect(_) => Self::Connect,
        }
    }

    /// Whether the host sends data.
    pub(super) fn has_input(self) -> bool {
        matches!(self, Self::Exec | Self::Unpack | Self::Connect)
    }

    /// Whether the guest sends data on this channel.
    pub(super) fn has_output(self, channel: Channel) -> bool {
        match self {
            Self::Exec => channel != Channel::Stdin,
            Self::Pack | Self::Connect => channel == Channel::Stdout,
            _ => false,
        }
    }

    /// Whether an output ends by a frame of its own. The output of a tar does not: the response says whether the tar
    /// is complete.
    pub(super) fn ends_output(self, channel: Channel) -> bool {
        self != Self::Pack && self.has_output(channel)
    }

    /// Whether data flows at once, and not only after [`Response::Started`].
    pub(super) fn runs_at_once(self) -> bool {
        matches!(self, Self::Unpack | Self::Pack | Self::Connect)
    }

    /// Whether this is a valid final response. `started`: whether the command has started.
    pub(super) fn ends_with(self, response: &Response, started: bool) -> bool {
        match response {
            Response::Failed(_) => true,
            Response::Exited(_) | Response::ExitedOutOfMemory(_) => self == Self::Exec && started,
            Response::Detached { .. } => self == Self::Detach,
            Response::Unpacked { .. } => self == Self::Unpack,
            Response::Done => matches!(self, Self::Call | Self::Pack | Self::Connect),
            Response::Metrics(_) => self == Self::Metrics,
            Response::ExecCounts(_) => self == Self::ExecCounts,
            Response::Clock { .. } => self == Self::Clock,
            Response::Processes(_) => self == Self::Processes,
            Response::Stat(_) => self == Self::Stat,
            Response::Started { .. } => false,
        }
    }
}

/// The part of a response that exceeds its limit, if there is one.
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
