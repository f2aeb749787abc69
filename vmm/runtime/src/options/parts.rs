//! The parts of [`BoxOptions`](super::BoxOptions) that have parts themselves.

use std::path::PathBuf;
use std::time::Duration;

use boxlite_net_policy::Rule;
use boxlite_net_policy::Target;
use serde::{Deserialize, Serialize};

/// A folder of the host in a box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Volume {
    /// The folder on the host.
    pub host: PathBuf,
    /// Where it is in the box; an absolute path.
    pub guest: String,
    /// Whether the box can only read it.
    pub read_only: bool,
}

impl Volume {
    /// `host`, to be found at `guest` in the box.
    pub fn new(host: impl Into<PathBuf>, guest: impl Into<String>) -> Self {
        Self { host: host.into(), guest: guest.into(), read_only: false }
    }
}

/// What a box reaches.
///
/// Rules are written `[tcp:|udp:|icmp:]TARGET[:PORT[-PORT]]`, where the target is an address, a network
/// (`10.0.0.0/8`), a name (`example.org`, `*.example.org`), `host` for the host's loopback, or `any`.
/// What is denied is asked first, but for `any`, which is asked last. Where something is allowed
/// besides the host, nothing else is reached. Without a rule that names them, the host's loopback,
/// link-local addresses and the metadata services of clouds are closed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct NetworkPolicy {
    /// Whether there is a network at all.
    pub mode: Network,
    /// Rules of what is allowed.
    pub allow: Vec<String>,
    /// Rules of what is denied.
    pub deny: Vec<String>,
    /// What the box may receive, in bytes a second.
    pub limit_down: Option<u64>,
    /// What the box may send, in bytes a second.
    pub limit_up: Option<u64>,
}

impl NetworkPolicy {
    /// No network: the box has its own loopback only.
    pub fn none() -> Self {
        Self { mode: Network::None, ..Self::default() }
    }

    /// Allows this, and nothing that is not allowed.
    pub fn allow(mut self, rule: impl Into<String>) -> Self {
        self.allow.push(rule.into());
        self
    }

    /// Denies this. A name is denied where names are resolved; see
    /// [`names_walked_around`](Self::names_walked_around).
    pub fn deny(mut self, rule: impl Into<String>) -> Self {
        self.deny.push(rule.into());
        self
    }

    /// The rules in the order in which they are asked, as far as they can be understood.
    pub(crate) fn rules(&self) -> Vec<String> {
        let denied = self.deny.iter().filter_map(|rule| Rule::deny(rule).ok());
        let (last, first): (Vec<_>, Vec<_>) = denied.partition(is_everything);
        let allowed = self.allow.iter().filter_map(|rule| Rule::allow(rule).ok());
        first.into_iter().chain(allowed).chain(last).map(|rule| rule.to_string()).collect()
    }

    /// Names in [`deny`](Self::deny) that a box reaches all the same, by an address or by names that it
    /// resolves elsewhere (DNS over HTTPS), since most addresses are open to it.
    pub fn names_walked_around(&self) -> Vec<String> {
        let rules = self.rules().iter().filter_map(|rule| rule.parse().ok()).collect();
        let policy = boxlite_net_policy::Policy::from_rules(rules);
        policy.names_walked_around().map(|rule| rule.target.to_string()).collect()
    }
}

fn is_everything(rule: &Rule) -> bool {
    rule.target == Target::Any && rule.protocol.is_none() && rule.ports.is_none()
}

/// Whether a box has a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Network {
    /// Its own loopback only.
    None,
    /// The internet, through the host's sockets.
    #[default]
    Nat,
}

/// How a box is asked whether it is well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HealthCheck {
    /// The command; code 0 means well.
    pub command: Vec<String>,
    /// Between two checks; default 30 s.
    pub interval: Duration,
    /// After which a check has failed; default 30 s.
    pub timeout: Duration,
    /// So many failures in a row make the box unhealthy; default 3.
    pub retries: u32,
    /// How long after the start failures do not count; default 0 s.
    pub start_period: Duration,
    /// Whether an unhealthy box is ended as failed, and begins anew if its restart policy says so;
    /// otherwise it is only called unhealthy. Default: no.
    pub stop: bool,
}

impl HealthCheck {
    /// This command, and the defaults for the rest.
    pub fn new<S: Into<String>>(command: impl IntoIterator<Item = S>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(30),
            retries: 3,
            start_period: Duration::ZERO,
            stop: false,
        }
    }

    /// A line for the box's shell, and the defaults for the rest.
    pub fn shell(line: impl Into<String>) -> Self {
        Self::new(["/bin/sh".to_owned(), "-c".to_owned(), line.into()])
    }
}

/// What a box changes of a health check, its image's for instance; what is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct HealthChanges {
    /// Between two checks.
    pub interval: Option<Duration>,
    /// After which a check has failed.
    pub timeout: Option<Duration>,
    /// So many failures in a row make the box unhealthy.
    pub retries: Option<u32>,
    /// How long after the start failures do not count.
    pub start_period: Option<Duration>,
    /// Whether an unhealthy box is ended as failed.
    pub stop: Option<bool>,
}

impl HealthChanges {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Makes the changes.
    pub fn apply(&self, check: &mut HealthCheck) {
        check.interval = self.interval.unwrap_or(check.interval);
        check.timeout = self.timeout.unwrap_or(check.timeout);
        check.retries = self.retries.unwrap_or(check.retries);
        check.start_period = self.start_period.unwrap_or(check.start_period);
        check.stop = self.stop.unwrap_or(check.stop);
    }
}

/// What a box's process may do on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SecurityOptions {}
