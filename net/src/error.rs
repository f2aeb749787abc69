//! Errors of a network.

use std::io;

use boxlite_net_policy::PublishError;

/// The error of a [`Network`](crate::Network) that cannot be made or has stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The options contradict each other.
    #[error("the network's options are wrong: {0}")]
    Options(String),
    /// The host cannot listen on a published port.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The kernel refused something that the event loop needs.
    #[error("the network's event loop failed: {0}")]
    Loop(#[from] io::Error),
    /// The thread that runs the network has ended.
    #[error("the network has stopped")]
    Stopped,
}
