//! Credentials, and where they are kept.

use std::path::PathBuf;

/// What opens a registry.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// A user and a password (or an access token in its place).
    Password { user: String, password: String },
    /// An OAuth2 refresh token, to be exchanged for others.
    IdentityToken(String),
    /// A token that the registry itself takes.
    RegistryToken(String),
}

/// Never with the secret.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({})", self.user())
    }
}

impl Credentials {
    /// What a helper or a file says: docker marks identity tokens by the user's name. None where it says
    /// nothing: tools leave such entries behind.
    pub(super) fn new(user: String, secret: String) -> Option<Self> {
        match (user.as_str(), secret.as_str()) {
            ("" | "<token>", "") => None,
            ("<token>", _) => Some(Self::IdentityToken(secret)),
            _ => Some(Self::Password { user, password: secret }),
        }
    }

    /// Who it is, for messages.
    pub(super) fn user(&self) -> &str {
        match self {
            Self::Password { user, .. } => user,
            Self::IdentityToken(_) | Self::RegistryToken(_) => "<token>",
        }
    }
}

/// Credentials, and where they were found.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    pub(super) credentials: Credentials,
    pub(super) source_name: String,
}

/// Where a login was put.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoginStore {
    /// In this file, readable for its owner only, but not encrypted.
    File(PathBuf),
    /// With the credential helper `docker-credential-<name>`.
    Helper(String),
}

#[cfg(test)]
mod tests;
