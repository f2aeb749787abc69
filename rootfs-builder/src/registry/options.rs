//! Registry configuration: mirrors, TLS, logins.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::file::read_small;
use crate::format::DOCKER_HUB;

/// How registries are reached. The default is docker's: no mirrors.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RegistryOptions {
    /// By registry, as image names have it (`docker.io`, `localhost:5000`).
    pub registries: BTreeMap<String, RegistryConfig>,
    /// Folder of docker's `config.json`, for logins: `$DOCKER_CONFIG`, else `~/.docker`.
    pub docker_config: Option<PathBuf>,
    /// Folders whose `<registry>/*.crt` are further certificate authorities of that registry,
    /// docker's convention: `/etc/docker/certs.d`.
    pub certs_dirs: Vec<PathBuf>,
    /// Number of parallel layer downloads; at least one.
    pub parallel_layers: usize,
    /// Time without data after which a registry is given up.
    pub stall_timeout: Duration,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        let docker_config = std::env::var_os("DOCKER_CONFIG")
            .filter(|dir| !dir.is_empty())
            .map(PathBuf::from)
            .or_else(|| std::env::home_dir().map(|home| home.join(".docker")));
        Self {
            registries: BTreeMap::new(),
            docker_config,
            certs_dirs: vec!["/etc/docker/certs.d".into(), "/etc/containers/certs.d".into()],
            parallel_layers: 4,
            stall_timeout: Duration::from_secs(30),
        }
    }
}

/// Configuration of one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RegistryConfig {
    /// Mirrors, asked first and in this order: `[https://|http://]host[:port][/path]`. The registry
    /// itself is asked for what they lack.
    pub mirrors: Vec<String>,
    /// Certificates are not checked, and plain HTTP is allowed: for this `host[:port]` only, not
    /// for hosts that it leads to (token servers, redirects). Always so for this machine's own
    /// addresses (`localhost`, `127.0.0.0/8`, `::1`), unless an authority is configured for them.
    pub insecure: bool,
    /// A PEM file of certificate authorities that vouch for this registry, besides the system's.
    pub ca_file: Option<PathBuf>,
}

/// Maximum length of the file.
const MAX_FILE_BYTES: u64 = 1 << 20;

impl RegistryOptions {
    /// The default, plus the file (`$BOXLITE_HOME/registries.json`), if it exists:
    ///
    /// ```json
    /// { "docker.io": { "mirrors": ["mirror.example.com"] },
    ///   "registry.lan:5000": { "insecure": true },
    ///   "registry.example.com": { "ca_file": "/etc/ssl/example-ca.pem" } }
    /// ```
    ///
    /// # Errors
    /// The file cannot be read or has another form.
    pub fn load(file: &Path) -> Result<Self> {
        let json = match read_small(file, MAX_FILE_BYTES) {
            Ok(json) => json,
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(error),
        };
        let registries = serde_json::from_slice(&json).map_err(|error| Error::RegistryConfig {
            file: file.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Self { registries, ..Self::default() })
    }

    /// The endpoints for images of a registry: its mirrors, then itself.
    pub(crate) fn endpoints(&self, registry: &str) -> Result<Vec<Endpoint>> {
        let config = self.registries.get(registry).cloned().unwrap_or_default();
        let mirrors = config.mirrors.iter().map(|mirror| self.mirror(registry, mirror));
        let mut endpoints = mirrors.collect::<Result<Vec<_>>>()?;
        endpoints.push(self.origin(registry));
        Ok(endpoints)
    }

    /// The registry itself.
    pub(super) fn origin(&self, registry: &str) -> Endpoint {
        let address = match registry {
            DOCKER_HUB | "index.docker.io" => "registry-1.docker.io",
            other => other,
        };
        self.endpoint(registry, address, None, "")
    }

    fn mirror(&self, registry: &str, text: &str) -> Result<Endpoint> {
        let invalid = || Error::RegistryConfig {
            file: PathBuf::from("registries.json"),
            reason: format!(
                "{text:?} among the mirrors of {registry} is not [https://|http://]host[:port][/path]"
            ),
        };
        let (scheme, rest) = match text.split_once("://") {
            Some(("https", rest)) => (Some("https"), rest),
            Some(("http", rest)) => (Some("http"), rest),
            Some(_) => return Err(invalid()),
            None => (None, text),
        };
        let (host, path) = rest.trim_end_matches('/').split_once('/').unwrap_or((rest, ""));
        let host = host.trim_end_matches('/');
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-:[]/".contains(c);
        if host.is_empty() || !rest.chars().all(is_plain) {
            return Err(invalid());
        }
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        Ok(self.endpoint(host, host, scheme, &prefix))
    }

    fn endpoint(&self, name: &str, address: &str, scheme: Option<&str>, prefix: &str) -> Endpoint {
        let config = self.registries.get(name).cloned().unwrap_or_default();
        let mut ca_files: Vec<PathBuf> = config.ca_file.into_iter().collect();
        let safe_name = !name.contains('/') && !name.starts_with('.');
        for dir in self.certs_dirs.iter().filter(|_| safe_name) {
            let entries = std::fs::read_dir(dir.join(name)).into_iter().flatten().flatten();
            let mut found: Vec<_> = entries
                .map(|entry| entry.path())
                .filter(|path| path.extension().is_some_and(|extension| extension == "crt"))
                .collect();
            found.sort();
            ca_files.extend(found);
        }
        let is_insecure = config.insecure || is_loopback(address) && ca_files.is_empty();
        let bases: &[&str] = match scheme {
            Some("http") => &["http"],
            None if is_insecure => &["https", "http"],
            _ => &["https"],
        };
        Endpoint {
            registry: name.to_owned(),
            bases: bases.iter().map(|scheme| format!("{scheme}://{address}/v2/")).collect(),
            prefix: prefix.to_owned(),
            is_insecure,
            is_local: is_loopback(address),
            ca_files,
        }
    }
}

/// How a host is trusted in a session with an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Trust {
    /// Whether any certificate and plain HTTP are accepted.
    pub(super) is_insecure: bool,
    /// Whether it is on this machine: no proxy then.
    pub(super) is_local: bool,
    /// Further certificate authorities.
    pub(super) ca_files: Vec<PathBuf>,
}

impl RegistryOptions {
    /// Trust in the URL's host, which may be another than the endpoint's. The endpoint's
    /// authorities vouch for that host, too; whether it is insecure is its own configuration.
    pub(super) fn trust(&self, endpoint: &Endpoint, url: &Url) -> Trust {
        let Endpoint { is_insecure, is_local, ca_files, .. } = endpoint.clone();
        if endpoint.is_at(url) {
            return Trust { is_insecure, is_local, ca_files };
        }
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or_default();
        let with_port = format!("{host}:{port}");
        let is_named = |name: &str| self.registries.contains_key(name);
        let name = match url.port() {
            None if !is_named(&with_port) => host,
            _ => &with_port,
        };
        let other = self.endpoint(name, name, None, "");
        let is_marked = self.registries.get(name).is_some_and(|config| config.insecure);
        // A secure registry must not lead to an insecure host, not even on this machine.
        let is_insecure = is_marked || other.is_insecure && is_insecure;
        let ca_files = [ca_files, other.ca_files].concat();
        Trust { is_insecure, is_local: other.is_local, ca_files }
    }
}

/// A server of the distribution protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Name in messages, and the key of its logins.
    pub(crate) registry: String,
    /// URLs of its `/v2/`, in the order of attempts.
    pub(super) bases: Vec<String>,
    /// Prefix of all repositories on a mirror; empty, or ending in a slash.
    pub(super) prefix: String,
    /// Whether any certificate and plain HTTP are accepted.
    pub(super) is_insecure: bool,
    /// Whether it is on this machine: no proxy then.
    pub(super) is_local: bool,
    /// Further certificate authorities.
    pub(super) ca_files: Vec<PathBuf>,
}

impl Endpoint {
    /// Whether the URL is of the same host and port.
    pub(super) fn is_at(&self, url: &Url) -> bool {
        let place = |url: &Url| (url.host_str().map(str::to_owned), url.port_or_known_default());
        let mut bases = self.bases.iter().filter_map(|base| Url::parse(base).ok());
        bases.any(|base| place(&base) == place(url))
    }
}

/// Whether this `host[:port]` is this machine.
fn is_loopback(address: &str) -> bool {
    let host = match address.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => address.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests;
