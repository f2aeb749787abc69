//! Errors, worded for the person who wrote the rule or published the port.

use std::io;

use crate::port::PublishedPort;

/// A rule or a published port that cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}`: {problem}; {expected}")]
pub struct ParseError {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub problem: String,
    /// The form that is expected.
    pub expected: &'static str,
}

/// The host cannot listen on a port.
#[derive(Debug, thiserror::Error)]
#[error("cannot publish {} port {} of {}: {}", port.protocol, port.host.port(), port.host.ip(), reason(source))]
pub struct PublishError {
    /// The port that could not be published.
    pub port: PublishedPort,
    /// The kernel's error.
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
