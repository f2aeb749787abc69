//! Docker's `config.json`: logins in the file, or with the credential helper that it names.
//!
//! Not the docker_credential crate (1.4): it reads logins of whole registries only, keeps and erases none, and waits
//! for a helper without a limit on time or output.

use std::cmp::Reverse;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

use super::credentials::{Credentials, Login, LoginStore};
use super::helper::Helper;
use super::scope::Scope;
use crate::error::{Error, Remedy, Result};
use crate::file::read_small;
use boxlite_durable as durable;

/// Docker's `config.json`.
pub(super) struct DockerConfig {
    path: PathBuf,
    json: Map<String, Value>,
}

/// Maximum length of the file.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

impl DockerConfig {
    /// Reads the file; a missing one is empty.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let bytes = match read_small(&path, MAX_CONFIG_BYTES) {
            Ok(bytes) => bytes,
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self { path, json: Map::new() });
            }
            Err(error) => return Err(error),
        };
        let json = serde_json::from_slice(&bytes);
        let json = json.map_err(|error| Error::RegistryConfig {
            file: path.clone(),
            reason: error.to_string(),
        })?;
        Ok(Self { path, json })
    }

    /// The login for a repository: that of the longest matching path.
    pub(super) fn login(&self, repository: Scope<'_>) -> Result<Option<Login>> {
        let mut entries = self.entries(repository);
        if let Some((scope, helper, key)) = self.helper(repository)? {
            // An entry for a narrower scope takes precedence.
            let smaller = entries.extract_if(.., |(entry, _)| entry.path.len() > scope.path.len());
            if let Some(login) = self.first_login(smaller) {
                return Ok(Some(login));
            }
            if let Some(credentials) = helper.get(&key)? {
                let source_name = helper.program();
                return Ok(Some(Login { credentials, source_name }));
            }
        }
        Ok(self.first_login(entries))
    }

    /// The entries that include a repository, longest path first.
    fn entries(&self, repository: Scope<'_>) -> Vec<(Scope<'_>, &Value)> {
        let entries = self.auths().into_iter().flatten();
        let mut entries: Vec<_> = entries
            .map(|(key, entry)| (Scope::of(key), key, entry))
            .filter(|(scope, ..)| scope.includes(repository))
            .collect();
        // Among several spellings, the plain one takes precedence.
        let is_other = |scope: &Scope<'_>, key: &str| key != scope.to_string();
        entries.sort_by_key(|(scope, key, _)| (Reverse(scope.path.len()), is_other(scope, key)));
        entries.into_iter().map(|(scope, _, entry)| (scope, entry)).collect()
    }

    fn first_login<'a>(
        &self,
        entries: impl IntoIterator<Item = (Scope<'a>, &'a Value)>,
    ) -> Option<Login> {
        let credentials = entries.into_iter().find_map(|(_, entry)| credentials_of(entry))?;
        Some(Login { credentials, source_name: self.path.display().to_string() })
    }

    /// Stores a login: with the helper, if one is configured, else in the file.
    pub(super) fn store(
        &mut self,
        scope: Scope<'_>,
        credentials: &Credentials,
    ) -> Result<LoginStore> {
        let (user, secret) = match credentials {
            Credentials::Password { user, password } => (user.as_str(), password),
            Credentials::IdentityToken(token) | Credentials::RegistryToken(token) => ("", token),
        };
        if let Some((_, helper, key)) = self.helper(scope)? {
            if !scope.is_registry() {
                return Err(Error::Unsupported {
                    what: format!("a login for {scope} alone with {}", helper.program()),
                    remedy: Remedy::LogIn { registry: scope.host.to_owned() },
                });
            }
            let user = if user.is_empty() { "<token>" } else { user };
            helper.store(&key, user, secret)?;
            // As docker does: an entry without a secret marks the login.
            self.set_auth(scope, json!({}));
            self.write()?;
            return Ok(LoginStore::Helper(helper.name().to_owned()));
        }
        let entry = match credentials {
            Credentials::Password { .. } => {
                json!({ "auth": BASE64.encode(format!("{user}:{secret}")) })
            }
            Credentials::IdentityToken(_) => json!({ "identitytoken": secret }),
            Credentials::RegistryToken(_) => json!({ "registrytoken": secret }),
        };
        self.set_auth(scope, entry);
        self.write()?;
        Ok(LoginStore::File(self.path.clone()))
    }

    /// Erases a login; returns whether there was one.
    pub(super) fn erase(&mut self, scope: Scope<'_>) -> Result<bool> {
        let mut had_one = false;
        if let Some((_, helper, key)) = self.helper(scope)?.filter(|_| scope.is_registry()) {
            had_one = helper.get(&key)?.is_some();
            if had_one {
                helper.erase(&key)?;
            }
        }
        if let Some(Value::Object(auths)) = self.json.get_mut("auths") {
            let before = auths.len();
            auths.retain(|key, _| Scope::of(key) != scope);
            if auths.len() != before {
                had_one = true;
                self.write()?;
            }
        }
        Ok(had_one)
    }

    /// The helper for this repository: its scope, the helper, and the key that it knows the scope
    /// by.
    fn helper<'a>(&'a self, repository: Scope<'a>) -> Result<Option<(Scope<'a>, Helper, String)>> {
        let own = self.json.get("credHelpers").and_then(Value::as_object).into_iter().flatten();
        let own = own
            .map(|(key, helper)| (Scope::of(key), helper, key.clone()))
            .filter(|(scope, ..)| scope.includes(repository))
            .max_by_key(|(scope, ..)| scope.path.len());
        let registry = Scope { path: "", ..repository };
        let any = || Some((registry, self.json.get("credsStore")?, registry.key()));
        let Some((scope, helper, key)) = own.or_else(any) else { return Ok(None) };
        match helper.as_str() {
            None | Some("") => Ok(None),
            Some(name) => {
                let helper = Helper::named(name, &self.path)?;
                Ok(Some((scope, helper, key)))
            }
        }
    }

    fn auths(&self) -> Option<&Map<String, Value>> {
        self.json.get("auths")?.as_object()
    }

    fn set_auth(&mut self, scope: Scope<'_>, entry: Value) {
        let auths = self.json.entry("auths").or_insert_with(|| json!({}));
        if !auths.is_object() {
            *auths = json!({});
        }
        if let Value::Object(auths) = auths {
            auths.retain(|key, _| Scope::of(key) != scope);
            auths.insert(scope.key(), entry);
        }
    }

    /// Replaces the file atomically; of a symbolic link, its target.
    fn write(&self) -> Result<()> {
        let target = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let dir = target.parent().unwrap_or(&target);
        if !dir.exists() {
            fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
            let private = fs::Permissions::from_mode(0o700);
            fs::set_permissions(dir, private).map_err(Error::io("protect", dir))?;
        }
        let text = serde_json::to_vec_pretty(&self.json)
            .map_err(|error| Error::corrupt(self.path.display().to_string(), error))?;
        // tempfile creates files that only the owner can read.
        let mut file = tempfile::Builder::new()
            .prefix(".config.json.")
            .tempfile_in(dir)
            .map_err(Error::io("create a file in", dir))?;
        let written = file.write_all(&text).and_then(|()| durable::sync_file(file.as_file()));
        written.map_err(Error::write(&target, text.len() as u64))?;
        file.persist(&target).map_err(|error| Error::io("replace", &target)(error.error))?;
        durable::sync_dir(dir).map_err(Error::io("sync", dir))
    }
}

fn credentials_of(entry: &Value) -> Option<Credentials> {
    let text = |name: &str| entry.get(name)?.as_str().filter(|text| !text.is_empty());
    if let Some(token) = text("registrytoken") {
        return Some(Credentials::RegistryToken(token.to_owned()));
    }
    if let Some(token) = text("identitytoken") {
        return Some(Credentials::IdentityToken(token.to_owned()));
    }
    if let Some(auth) = text("auth") {
        let decoded = String::from_utf8(BASE64.decode(auth.trim()).ok()?).ok()?;
        // Docker pads some old entries with NULs.
        let (user, password) = decoded.trim_end_matches('\0').split_once(':')?;
        return Credentials::new(user.to_owned(), password.to_owned());
    }
    Credentials::new(text("username")?.to_owned(), text("password")?.to_owned())
}

#[cfg(test)]
mod tests;
