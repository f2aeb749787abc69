//! From failed requests and foreign text to a [`RegistryProblem`].

use std::time::Duration;

use crate::error::RegistryProblem;

/// The problem of a request that failed without a response.
pub(super) fn of_request(error: &reqwest::Error, stall: Duration) -> RegistryProblem {
    let reason = innermost(error);
    if let Some(tls) = find_cause::<rustls::Error>(error) {
        let reason = match tls {
            rustls::Error::InvalidMessage(_) => "it does not speak TLS".to_owned(),
            other => other.to_string(),
        };
        return RegistryProblem::Tls { reason };
    }
    if error.is_connect() {
        return RegistryProblem::Unreachable { reason };
    }
    if error.is_timeout() {
        return RegistryProblem::Stalled { after: stall };
    }
    RegistryProblem::Unreachable { reason }
}

/// Adds the host to a problem, if that is not the registry itself.
pub(super) fn at_host(problem: RegistryProblem, url: &reqwest::Url) -> RegistryProblem {
    let host = host_and_port(url);
    match problem {
        RegistryProblem::Tls { reason } => {
            RegistryProblem::Tls { reason: format!("it leads to {host}, and there: {reason}") }
        }
        RegistryProblem::Unreachable { reason } => RegistryProblem::Unreachable {
            reason: format!("it leads to {host}, and there: {reason}"),
        },
        other => other,
    }
}

/// `host[:port]` of a URL, as in image names and `registries.json`.
pub(super) fn host_and_port(url: &reqwest::Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The text of the innermost error: the outer ones only say that something failed.
fn innermost(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text = cause.to_string();
        next = cause.source();
    }
    printable(&text)
}

/// Finds an error of this type in the chain, also inside of I/O errors.
fn find_cause<'a, T: std::error::Error + 'static>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        let inside = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        next = match inside {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// Foreign text, made fit for messages: short, without control characters.
pub(super) fn printable(text: &str) -> String {
    const MAX_CHARS: usize = 200;
    let mut chars = text.trim().chars();
    let mut short: String =
        chars.by_ref().take(MAX_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if chars.next().is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests;
