//! What can go wrong, in words for whoever has to do something about it.

use std::io;
use std::net::SocketAddr;

use crate::forward::Protocol;

/// A [`Network`](crate::Network) that cannot be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The options contradict each other.
    #[error("the network's options are wrong: {0}")]
    Options(String),
    /// A port forward that cannot be had.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// The kernel refused something that the event loop needs.
    #[error("the network's event loop failed: {0}")]
    Loop(#[from] io::Error),
    /// The thread that runs the network has ended.
    #[error("the network has stopped")]
    Stopped,
}

/// A port forward that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot forward {protocol} port {} of {}: {}", address.port(), address.ip(), reason(source))]
pub struct ForwardError {
    /// What was to be bound.
    pub address: SocketAddr,
    /// Over what.
    pub protocol: Protocol,
    /// The kernel's verdict.
    pub source: io::Error,
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "it is in use by another program; choose another, or 0 for any".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 are for privileged users; choose a higher one".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => "this host has no such address".to_owned(),
        _ => error.to_string(),
    }
}

/// A rule or a port forward that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}`: {problem}; {expected}")]
pub struct ParseError {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub problem: String,
    /// What would be right.
    pub expected: &'static str,
}
