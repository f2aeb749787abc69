//! Registries: endpoints, logins, and the pull half of the distribution protocol.
//!
//! The pull half is three kinds of requests, spoken on reqwest. (The oci-client crate reads
//! manifests, tokens and errors of any length into memory, drops `Retry-After` and the reasons of
//! refused tokens, and has no identity tokens: registries are not trusted here.)

mod auth;
mod credentials;
mod docker_config;
mod driver;
mod helper;
mod http;
mod login;
mod options;
mod problem;
mod scope;
mod session;
mod tls;

pub use credentials::LoginStore;
pub use options::{RegistryConfig, RegistryOptions};

pub(crate) use driver::{Driver, on_own_thread};
pub(crate) use http::backoff;
pub(crate) use login::find_login;
pub(crate) use options::Endpoint;
pub(crate) use session::{Document, Session};
