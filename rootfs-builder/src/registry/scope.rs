//! Scopes of logins in docker's configuration: a registry, a namespace, or a repository.
//!
//! (containers-auth.json(5); docker's own keys are registries only, also as the URL of their API)

use std::fmt;

use crate::format::DOCKER_HUB;

/// Docker Hub's key in docker's configuration.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// A registry, or the repositories below a path in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scope<'a> {
    /// `host[:port]`; all names of Docker Hub are one.
    pub(super) host: &'a str,
    /// Path of repositories; empty for all.
    pub(super) path: &'a str,
}

impl<'a> Scope<'a> {
    /// Parses a key of docker or podman: `host`, `host/path`, `https://host/v1/`.
    pub(super) fn of(key: &'a str) -> Self {
        let address = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
        let (host, path) = address.unwrap_or(key).split_once('/').unwrap_or((key, ""));
        let host = match address {
            Some(address) => address.split('/').next().unwrap_or_default(),
            None => host,
        };
        let path = match path.trim_matches('/') {
            // The path of a URL is that of its API.
            _ if address.is_some() => "",
            "v1" | "v2" => "",
            path => path,
        };
        let host = match host {
            "docker.io"
            | "index.docker.io"
            | "registry-1.docker.io"
            | "registry.hub.docker.com" => DOCKER_HUB,
            host => host,
        };
        Self { host, path }
    }

    /// Whether this is a whole registry.
    pub(super) fn is_registry(self) -> bool {
        self.path.is_empty()
    }

    /// Whether this scope includes a repository.
    pub(super) fn includes(self, repository: Scope<'_>) -> bool {
        let rest = repository.path.strip_prefix(self.path);
        let is_below = |rest: &str| self.is_registry() || rest.is_empty() || rest.starts_with('/');
        self.host == repository.host && rest.is_some_and(is_below)
    }

    /// The key, as docker writes it.
    pub(super) fn key(self) -> String {
        match self {
            Self { host: DOCKER_HUB, path: "" } => DOCKER_HUB_KEY.to_owned(),
            scope => scope.to_string(),
        }
    }
}

impl fmt::Display for Scope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.is_registry() { "" } else { "/" };
        write!(f, "{}{slash}{}", self.host, self.path)
    }
}

#[cfg(test)]
mod tests;
