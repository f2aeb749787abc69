//! Logins, and the start of every session.

use super::credentials::{Credentials, Login, LoginStore};
use super::docker_config::DockerConfig;
use super::driver::{Driver, on_own_thread};
use super::options::{Endpoint, RegistryOptions};
use super::scope::Scope;
use super::session::Session;
use crate::error::{Error, RegistryProblem, Remedy, Result};
use crate::format::{is_host, is_path_component};
use crate::progress::{Event, Progress, Silent};

impl RegistryOptions {
    /// Checks a login with the registry (`docker.io`, `host[:port]`), and stores it where docker
    /// would: with the configured credential helper, else in `config.json`. A path after the host
    /// limits the login to the repositories below it.
    ///
    /// # Errors
    /// The registry cannot be reached or refuses the login; the login cannot be stored.
    pub fn login(&self, registry: &str, user: &str, secret: &str) -> Result<LoginStore> {
        let scope = checked_scope(registry)?;
        let registry = scope.host;
        let mut config = self.docker_config()?;
        let credentials = Credentials::new(user.to_owned(), secret.to_owned());
        let credentials = credentials.ok_or_else(|| Error::Missing {
            what: "the user name and password".into(),
            remedy: Remedy::Other("a login is both"),
        })?;
        let source_name = "this login".to_owned();
        let login = Login { credentials: credentials.clone(), source_name };
        on_own_thread(|| {
            Driver::new(&Silent)?.run(async {
                const WHAT: &str = "a login";
                let origin = self.origin(registry);
                let session = Session::begin(self, &origin, "", WHAT, Some(login)).await?;
                let checked = session.check_login().await;
                checked.map_err(|problem| Error::registry(WHAT, registry, problem))
            })
        })?;
        config.store(scope, &credentials)
    }

    /// Erases the login for a registry; returns whether there was one.
    ///
    /// # Errors
    /// The configuration or its credential helper cannot be used.
    pub fn logout(&self, registry: &str) -> Result<bool> {
        self.docker_config()?.erase(checked_scope(registry)?)
    }

    fn docker_config(&self) -> Result<DockerConfig> {
        let dir = self.docker_config.as_deref().ok_or_else(|| Error::Missing {
            what: "the folder for logins".into(),
            remedy: Remedy::Other("set HOME or DOCKER_CONFIG"),
        })?;
        DockerConfig::read(dir)
    }
}

/// The scope that a user names, perhaps by a URL.
fn checked_scope(registry: &str) -> Result<Scope<'_>> {
    let scope = Scope::of(registry.trim());
    let is_path = |path: &str| path.split('/').all(is_path_component);
    if is_host(scope.host) && (scope.is_registry() || is_path(scope.path)) {
        return Ok(scope);
    }
    Err(Error::InvalidReference {
        text: registry.to_owned(),
        reason: "a registry is named host[:port], a part of it host[:port]/path".into(),
    })
}

/// The login for a repository at an endpoint. Public images need none, so a failure is only a
/// warning.
pub(crate) fn find_login(
    options: &RegistryOptions,
    endpoint: &Endpoint,
    repository: &str,
    progress: &dyn Progress,
) -> Option<Login> {
    let dir = options.docker_config.as_deref()?;
    let path = format!("{}{repository}", endpoint.prefix);
    let scope = Scope { path: &path, ..Scope::of(&endpoint.registry) };
    let login = DockerConfig::read(dir).and_then(|config| config.login(scope));
    login.unwrap_or_else(|error| {
        progress.report(Event::Warning(&format!("continuing without a login: {error}")));
        None
    })
}

impl Session {
    /// Starts a session about `what`: with TLS, or without it where that is allowed and TLS fails.
    pub(crate) async fn begin(
        options: &RegistryOptions,
        endpoint: &Endpoint,
        repository: &str,
        what: &str,
        login: Option<Login>,
    ) -> Result<Self> {
        let mut failure = RegistryProblem::protocol("it has no address");
        for base in &endpoint.bases {
            let session = Self::new(endpoint, base, repository, login.clone(), options)?;
            failure = match session.check_api().await {
                Ok(()) => return Ok(session),
                Err(problem) => problem,
            };
            let is_elsewhere = matches!(
                failure,
                RegistryProblem::Tls { .. }
                    | RegistryProblem::Unreachable { .. }
                    | RegistryProblem::Stalled { .. }
            );
            if !is_elsewhere {
                break;
            }
        }
        Err(Error::registry(what, &endpoint.registry, failure))
    }
}
