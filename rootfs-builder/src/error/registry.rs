//! Problems with registries.

use std::time::Duration;

use super::remedy::Remedy;
use super::text::list;
use crate::format::Digest;

const CHECK_NETWORK: &str = "check its name, the network, and HTTPS_PROXY where there is a proxy";
const TRY_AGAIN: &str = "try again, what has been fetched is kept";
const TRY_LATER: &str = "try again later";
const CHECK_LOGIN: &str = "check the name, and what that login may do";
const CHECK_NAME: &str = "check the name";
const CHECK_TAG: &str = "check the tag";
const PUSH_ANEW: &str = "push the image again";
const CHECK_ADDRESS: &str =
    "check that this is the address of a registry, and that no proxy changes what it sends";

/// Why a registry did not serve a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryProblem {
    /// No connection.
    #[error("it cannot be reached ({reason}); {CHECK_NETWORK}")]
    Unreachable {
        /// The system's message.
        reason: String,
    },
    /// No trusted TLS connection.
    #[error("there is no secure connection to it ({reason}); {}", Remedy::ConfigureTls)]
    Tls {
        /// The TLS library's message.
        reason: String,
    },
    /// A connection without data for too long.
    #[error("it has not answered for {} seconds; {TRY_AGAIN}", after.as_secs())]
    Stalled {
        /// The time without data.
        after: Duration,
    },
    /// 401 without a login, or 401/403 without a valid one.
    #[error(
        "access is denied: there is no such image, or it is private; {}",
        Remedy::CheckNameOrLogIn { registry: registry.clone() }
    )]
    LoginNeeded {
        /// The registry to log in to.
        registry: String,
    },
    /// The login is refused.
    #[error(
        "it refuses the login of {user:?} that {source_name} has; {}",
        Remedy::LogInAgain { registry: registry.clone() }
    )]
    LoginRefused {
        /// The registry to log in to.
        registry: String,
        /// The user.
        user: String,
        /// Where the login is stored: a file, a credential helper.
        source_name: String,
    },
    /// A login was not sent, because the connection is not encrypted.
    #[error(
        "it wants a login, and {host} is reached without TLS, where logins are not sent; {}",
        Remedy::AllowPlain { host: host.clone() }
    )]
    Unencrypted {
        /// The host.
        host: String,
    },
    /// 401 or 403 despite a login.
    #[error("it does not let {user:?} have this{}; {CHECK_LOGIN}", with_message(message))]
    Forbidden {
        /// The user who is logged in.
        user: String,
        /// The registry's message.
        message: String,
    },
    /// 404 for the repository.
    #[error("it has no repository {repository:?}; {CHECK_NAME}")]
    UnknownRepository {
        /// The repository.
        repository: String,
    },
    /// 404 for the tag or digest.
    #[error("its repository {repository:?} has no {reference}; {}", known_tags(tags))]
    UnknownReference {
        /// The repository.
        repository: String,
        /// `tag "x"` or `image sha256:…`.
        reference: String,
        /// Some existing tags.
        tags: Vec<String>,
    },
    /// A blob of the manifest is missing.
    #[error("it no longer has {what}, which the image needs; {PUSH_ANEW}")]
    LostBlob {
        /// The layer or config.
        what: String,
    },
    /// 429.
    #[error("it limits the rate of requests; {}", Remedy::WaitOrLogIn { after: *retry_after })]
    RateLimited {
        /// How long the registry asks to wait.
        retry_after: Option<Duration>,
    },
    /// 5xx, or another unusable status.
    #[error("it answers with status {status}{}; {TRY_LATER}", with_message(message))]
    Status {
        /// The HTTP status.
        status: u16,
        /// The registry's message.
        message: String,
    },
    /// A violation of the distribution specification.
    #[error("{reason}; {CHECK_ADDRESS}")]
    Protocol {
        /// What is wrong.
        reason: String,
    },
    /// The content has another digest than requested.
    #[error(
        "{what} is not what its digest says: expected {expected}, got {actual}; the registry, or a proxy before it, \
         sends damaged data"
    )]
    WrongDigest {
        /// The manifest or blob.
        what: String,
        /// The requested digest.
        expected: Digest,
        /// The digest of the content.
        actual: Digest,
    },
    /// The content has another length than in the manifest.
    #[error(
        "{what} has not the {expected} bytes that its manifest says; the image is damaged, push it again"
    )]
    WrongLength {
        /// The blob.
        what: String,
        /// Its length in the manifest.
        expected: u64,
    },
    /// The response exceeds its limit.
    #[error("{what} is larger than the limit of {limit} bytes")]
    TooLarge {
        /// The manifest, token or blob.
        what: String,
        /// The limit in bytes.
        limit: u64,
    },
}

impl RegistryProblem {
    /// What to do about it, if that is known: the message ends with it.
    pub fn remedy(&self) -> Option<Remedy> {
        let own = |registry: &String| registry.clone();
        Some(match self {
            Self::Tls { .. } => Remedy::ConfigureTls,
            Self::LoginNeeded { registry } => Remedy::CheckNameOrLogIn { registry: own(registry) },
            Self::LoginRefused { registry, .. } => Remedy::LogInAgain { registry: own(registry) },
            Self::Unencrypted { host } => Remedy::AllowPlain { host: own(host) },
            Self::RateLimited { retry_after } => Remedy::WaitOrLogIn { after: *retry_after },
            Self::UnknownReference { tags, .. } if !tags.is_empty() => return None,
            Self::UnknownReference { .. } => Remedy::Other(CHECK_TAG),
            Self::Unreachable { .. } => Remedy::Other(CHECK_NETWORK),
            Self::Stalled { .. } => Remedy::Other(TRY_AGAIN),
            Self::Forbidden { .. } => Remedy::Other(CHECK_LOGIN),
            Self::UnknownRepository { .. } => Remedy::Other(CHECK_NAME),
            Self::LostBlob { .. } => Remedy::Other(PUSH_ANEW),
            Self::Status { .. } => Remedy::Other(TRY_LATER),
            Self::Protocol { .. } => Remedy::Other(CHECK_ADDRESS),
            Self::WrongDigest { .. } | Self::WrongLength { .. } | Self::TooLarge { .. } => {
                return None;
            }
        })
    }

    /// Whether it may pass by itself within seconds.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Stalled { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    pub(crate) fn protocol(reason: impl Into<String>) -> Self {
        Self::Protocol { reason: reason.into() }
    }
}

fn with_message(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" (it says: {message})") }
}

fn known_tags(tags: &[String]) -> String {
    match tags {
        [] => CHECK_TAG.to_owned(),
        tags => format!("it has, among others: {}", list(tags)),
    }
}

#[cfg(test)]
mod tests;
