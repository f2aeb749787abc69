//! Logging in and out, and the beginning of every conversation.

use super::credentials::{Credentials, DockerConfig, Login, LoginStore, host_of};
use super::driver::{Driver, on_own_thread};
use super::options::{Endpoint, RegistryOptions};
use super::problem::RegistryProblem;
use super::session::Session;
use crate::error::{Error, Result};
use crate::progress::{Event, Progress, Silent};
use crate::reference::is_host;

impl RegistryOptions {
    /// Checks a user's login with the registry (`docker.io`, `host[:port]`), and keeps it where docker
    /// would: with the configured credential helper, else in `config.json`.
    ///
    /// # Errors
    /// The registry cannot be reached or refuses the login; it cannot be kept.
    pub fn login(&self, registry: &str, user: &str, secret: &str) -> Result<LoginStore> {
        let registry = checked_host(registry)?;
        let mut config = self.docker_config()?;
        let credentials = Credentials::new(user.to_owned(), secret.to_owned());
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
        config.store(registry, &credentials)
    }

    /// Forgets the login for a registry; says whether there was one.
    ///
    /// # Errors
    /// The configuration or its credential helper cannot be used.
    pub fn logout(&self, registry: &str) -> Result<bool> {
        self.docker_config()?.erase(checked_host(registry)?)
    }

    fn docker_config(&self) -> Result<DockerConfig> {
        let dir = self.docker_config.as_deref().ok_or_else(|| Error::Missing {
            what: "the folder for logins".into(),
            remedy: "set HOME or DOCKER_CONFIG".into(),
        })?;
        DockerConfig::read(dir)
    }
}

/// The host that a user means, who may also have written its address.
fn checked_host(registry: &str) -> Result<&str> {
    let host = host_of(registry.trim());
    if is_host(host) {
        return Ok(host);
    }
    Err(Error::InvalidReference {
        text: registry.to_owned(),
        reason: "a registry is named host[:port]".into(),
    })
}

/// The login for an endpoint. A public image can be had without, so trouble with it is only told.
pub(crate) fn find_login(
    options: &RegistryOptions,
    registry: &str,
    progress: &dyn Progress,
) -> Option<Login> {
    let dir = options.docker_config.as_deref()?;
    let login = DockerConfig::read(dir).and_then(|config| config.login(registry));
    login.unwrap_or_else(|error| {
        progress.report(Event::Warning(&format!("going on without a login: {error}")));
        None
    })
}

impl Session {
    /// Begins a conversation about `what`: by TLS, or without where that is allowed and all there is.
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
            failure = match session.hello().await {
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
