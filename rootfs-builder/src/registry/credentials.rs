//! Credentials, and where they are kept.

use std::path::PathBuf;

/// Credentials for a registry.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// User and password (or an access token as the password).
    Password { user: String, password: String },
    /// An OAuth2 refresh token, exchanged for access tokens.
    IdentityToken(String),
    /// A bearer token that the registry itself accepts.
    RegistryToken(String),
}

/// Never prints the secret.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({})", self.user())
    }
}

impl Credentials {
    /// Credentials as a helper or file has them: docker marks identity tokens by the user name
    /// `<token>`. None for the empty entries that tools leave behind.
    pub(super) fn new(user: String, secret: String) -> Option<Self> {
        match (user.as_str(), secret.as_str()) {
            ("" | "<token>", "") => None,
            ("<token>", _) => Some(Self::IdentityToken(secret)),
            _ => Some(Self::Password { user, password: secret }),
        }
    }

    /// The user, for messages.
    pub(super) fn user(&self) -> &str {
        match self {
            Self::Password { user, .. } => user,
            Self::IdentityToken(_) | Self::RegistryToken(_) => "<token>",
        }
    }
}

/// Credentials and their origin.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    pub(super) credentials: Credentials,
    pub(super) source_name: String,
}

/// Where a login was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoginStore {
    /// In this file, readable only for its owner, but not encrypted.
    File(PathBuf),
    /// With the credential helper `docker-credential-<name>`.
    Helper(String),
}

#[cfg(test)]
mod tests;
