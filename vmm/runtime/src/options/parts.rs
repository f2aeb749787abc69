//! Structured parts of [`BoxOptions`](super::BoxOptions).

use std::path::PathBuf;
use std::time::Duration;

use boxlite_net_policy::{Rule, Target};
use serde::{Deserialize, Serialize};

/// A host folder that is shared with a box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Volume {
    /// The folder on the host.
    pub host: PathBuf,
    /// Its mount point in the box; an absolute path.
    pub guest: String,
    /// Whether the box may only read the folder.
    pub read_only: bool,
}

impl Volume {
    /// Shares `host` at `guest` in the box, writable.
    pub fn new(host: impl Into<PathBuf>, guest: impl Into<String>) -> Self {
        Self { host: host.into(), guest: guest.into(), read_only: false }
    }
}

/// Destinations that a box may reach, and its bandwidth.
///
/// The form of a rule is `[tcp:|udp:|icmp:]TARGET[:PORT[-PORT]]`, where the target is an address, a network
/// (`10.0.0.0/8`), a name (`example.org`, `*.example.org`), `host` for the host's loopback and own addresses, or
/// `any`. Rules in [`deny`](Self::deny) take precedence over those in [`allow`](Self::allow), except `any`, which is
/// matched last. If a rule allows a target other than `host`, everything that no rule allows is denied. The host's
/// loopback and own addresses, link-local addresses and the metadata services of clouds are denied unless a rule
/// names them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct NetworkPolicy {
    /// Whether the box has a network.
    pub mode: NetworkMode,
    /// Rules for allowed destinations.
    pub allow: Vec<String>,
    /// Rules for denied destinations.
    pub deny: Vec<String>,
    /// Limit of received data, in bytes per second.
    pub limit_down: Option<u64>,
    /// Limit of sent data, in bytes per second.
    pub limit_up: Option<u64>,
}

impl NetworkPolicy {
    /// No network: the box has only its own loopback.
    pub fn none() -> Self {
        Self { mode: NetworkMode::None, ..Self::default() }
    }

    /// Allows the destinations of a rule. Unless the target is `host`, everything that no rule allows is denied.
    pub fn allow(mut self, rule: impl Into<String>) -> Self {
        self.allow.push(rule.into());
        self
    }

    /// Denies the destinations of a rule. A rule for a name denies the addresses that the box's own resolver returned for
    /// it and, without a protocol and port, resolving it; see [`bypassable_denials`](Self::bypassable_denials).
    pub fn deny(mut self, rule: impl Into<String>) -> Self {
        self.deny.push(rule.into());
        self
    }

    /// The rules in matching order, without those that do not parse.
    pub(crate) fn rules(&self) -> Vec<String> {
        let denied = self.deny.iter().filter_map(|rule| Rule::deny(rule).ok());
        let (last, first): (Vec<_>, Vec<_>) = denied.partition(is_everything);
        let allowed = self.allow.iter().filter_map(|rule| Rule::allow(rule).ok());
        first.into_iter().chain(allowed).chain(last).map(|rule| rule.to_string()).collect()
    }

    /// Rules for names in [`deny`](Self::deny) that the box can bypass, by an address that it knows or gets from another
    /// resolver. None if the box may reach nothing but names and single addresses.
    pub fn bypassable_denials(&self) -> Vec<String> {
        let rules = self.rules().iter().filter_map(|rule| rule.parse().ok()).collect();
        let policy = boxlite_net_policy::Policy::from_rules(rules);
        let is_bypassable = |text: &&String| {
            Rule::deny(text).is_ok_and(|rule| policy.bypassable_denials().any(|it| *it == rule))
        };
        self.deny.iter().filter(is_bypassable).cloned().collect()
    }
}

fn is_everything(rule: &Rule) -> bool {
    rule.target == Target::Any && rule.protocol.is_none() && rule.ports.is_none()
}

/// Whether a box has a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NetworkMode {
    /// Only the box's own loopback.
    None,
    /// A user-mode network with access to the internet through the host's sockets.
    #[default]
    Nat,
}

/// A health check: a command that runs in the box at an interval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HealthCheck {
    /// The command; exit code 0 means healthy.
    pub command: Vec<String>,
    /// Time between two checks; default 30 s.
    pub interval: Duration,
    /// Timeout of a check, which then counts as failed; default 30 s.
    pub timeout: Duration,
    /// Number of consecutive failures that make the box unhealthy; default 3.
    pub retries: u32,
    /// Time after the start during which failures do not count; default 0 s.
    pub start_period: Duration,
    /// Whether to stop an unhealthy box as failed, so that its restart policy applies; otherwise only its health status
    /// changes. Default: no.
    pub stop: bool,
}

impl HealthCheck {
    /// Runs this command, with defaults for the rest.
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

    /// Runs a command line with the box's `/bin/sh`, with defaults for the rest.
    pub fn shell(line: impl Into<String>) -> Self {
        Self::new(["/bin/sh".to_owned(), "-c".to_owned(), line.into()])
    }
}

/// Changes to a health check, for instance to the image's. `None` changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct HealthChanges {
    /// Time between two checks.
    pub interval: Option<Duration>,
    /// Timeout of a check, which then counts as failed.
    pub timeout: Option<Duration>,
    /// Number of consecutive failures that make the box unhealthy.
    pub retries: Option<u32>,
    /// Time after the start during which failures do not count.
    pub start_period: Option<Duration>,
    /// Whether to stop an unhealthy box as failed.
    pub stop: Option<bool>,
}

impl HealthChanges {
    /// Whether there are no changes.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Applies the changes to `check`.
    pub fn apply(&self, check: &mut HealthCheck) {
        check.interval = self.interval.unwrap_or(check.interval);
        check.timeout = self.timeout.unwrap_or(check.timeout);
        check.retries = self.retries.unwrap_or(check.retries);
        check.start_period = self.start_period.unwrap_or(check.start_period);
        check.stop = self.stop.unwrap_or(check.stop);
    }
}

/// Restrictions of a box's process on the host. There are none to choose yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SecurityOptions {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denials_that_can_be_bypassed_are_listed_as_they_were_given() {
        let policy =
            NetworkPolicy::default().deny("10.0.0.0/8").deny("a.org").deny("tcp:B.org:443");
        assert_eq!(policy.bypassable_denials(), ["a.org", "tcp:B.org:443"]);
        assert!(policy.allow("*.org").bypassable_denials().is_empty());
    }
}
