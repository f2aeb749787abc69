//! Errors of the host's side of the agent protocol.

use std::io;
use std::sync::Arc;

use boxlite_proto::frame::FrameError;
use boxlite_proto::message::Failure;
use boxlite_proto::session::RequestError;
pub use boxlite_proto::session::Violation;

/// A request to the agent failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The agent refused the request, or it failed.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The connection was lost, and every request on it.
    #[error("lost the connection to the guest's agent: {0}")]
    Lost(Arc<Loss>),
    /// The request does not fit into a frame.
    #[error(
        "the command with its arguments and environment has {size} bytes, more than the {max} that \
         can be sent; pass less, or a file"
    )]
    TooLarge {
        /// The size of the request, in bytes.
        size: usize,
        /// The limit, in bytes.
        max: usize,
    },
    /// The data for the guest could not be read.
    #[error("cannot read the data for the guest: {0}")]
    Source(#[source] Arc<io::Error>),
}

impl Error {
    /// The failure that the agent reported, if it is one.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failed(failure) => Some(failure),
            _ => None,
        }
    }
}

impl From<RequestError> for Error {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::TooLarge { size, max } => Self::TooLarge { size, max },
            _ => Loss::Exhausted.into(),
        }
    }
}

impl From<Arc<Loss>> for Error {
    fn from(loss: Arc<Loss>) -> Self {
        Self::Lost(loss)
    }
}

impl From<Loss> for Error {
    fn from(loss: Loss) -> Self {
        Self::Lost(Arc::new(loss))
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error {
            Error::Lost(_) => io::ErrorKind::ConnectionReset,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Loss {
    /// The agent closed the connection, or its VM stopped.
    #[error("the guest closed it")]
    Closed,
    /// The host closed the connection when its last user was dropped.
    #[error("the host closed it")]
    Unused,
    /// The agent reported that it cannot continue.
    #[error("{0}")]
    Fatal(String),
    /// Reading failed, or a frame is malformed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Writing failed.
    #[error("writing failed: {0}")]
    Write(#[source] io::Error),
    /// The two ends have no protocol version in common.
    #[error(
        "it speaks protocol version {theirs}, this host {ours}; use a launcher and guest files of the same release"
    )]
    Version {
        /// The host's version.
        ours: u16,
        /// The agent's version.
        theirs: u16,
    },
    /// The guest is of another generation than the caller expected.
    #[error("the guest is of generation {theirs}, not {asked}: this is another guest")]
    Generation {
        /// The generation that the caller expected.
        asked: u64,
        /// The generation that the agent reported.
        theirs: u64,
    },
    /// All stream IDs have been used.
    #[error("it has carried as many requests as it can; connect again")]
    Exhausted,
    /// The agent broke the protocol.
    #[error("the guest broke the protocol: {0}")]
    Protocol(#[source] Violation),
}

impl From<Violation> for Loss {
    fn from(violation: Violation) -> Self {
        match violation {
            Violation::Frame(error) => Self::Frame(error),
            Violation::Version { ours, theirs } => Self::Version { ours, theirs },
            violation => Self::Protocol(violation),
        }
    }
}
