//! What can go wrong between the host and an agent.

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
    /// The agent refused the request, or could not do it.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The connection is gone, and every request on it with it.
    #[error("lost the connection to the guest's agent: {0}")]
    Lost(Arc<Loss>),
    /// The request does not fit into a frame.
    #[error(
        "the command with its arguments and environment has {size} bytes, more than the {max} that \
         can be sent; pass less, or a file"
    )]
    TooLarge {
        /// Bytes of the request.
        size: usize,
        /// The limit.
        max: usize,
    },
    /// What should have been sent to the guest could not be read.
    #[error("cannot read what is to be sent to the guest: {0}")]
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
    /// The agent hung up, or its machine stopped.
    #[error("the guest closed it")]
    Closed,
    /// Nobody on the host uses it any more.
    #[error("the host closed it")]
    Unused,
    /// The agent said that it cannot go on.
    #[error("{0}")]
    Fatal(String),
    /// Reading, or a frame that is none.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Writing.
    #[error("writing failed: {0}")]
    Write(#[source] io::Error),
    /// The two ends cannot talk to each other.
    #[error(
        "it speaks protocol version {theirs}, this host {ours}; use a launcher and guest files of the same release"
    )]
    Version {
        /// What this host speaks.
        ours: u16,
        /// What the agent speaks.
        theirs: u16,
    },
    /// This is not the machine that was meant.
    #[error("it is in its life {theirs}, not in life {asked}: this is another machine")]
    Generation {
        /// What the caller asked for.
        asked: u64,
        /// What the agent answered.
        theirs: u64,
    },
    /// All stream numbers have been used.
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
