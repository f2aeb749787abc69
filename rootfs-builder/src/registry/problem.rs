//! From failed requests and strangers' words to a [`RegistryProblem`].

use std::time::Duration;

use crate::error::RegistryProblem;

/// A request that failed before there was an answer.
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

/// The same problem, with another host than the registry: one to which that leads.
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

/// Whom a URL names, as image names and `registries.json` do.
pub(super) fn host_and_port(url: &reqwest::Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The text of the error at the bottom of the chain: those above only say that something failed.
fn innermost(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text = cause.to_string();
        next = cause.source();
    }
    printable(&text)
}

/// Looks for an error of this type below, also inside of I/O errors.
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

/// A stranger's words, fit for a message: short, and without control characters.
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
