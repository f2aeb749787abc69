//! The policy of a running network: verdicts, the addresses that names resolved to, and one log line for each
//! denied flow.

mod names;

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boxlite_net_policy::{Action, Decision, Flow, Policy, is_local, is_protected};

use crate::counters::Meter;
use crate::options::Denials;
use names::Names;

/// The most denied flows that are logged, once each, and as many names: a guest must not fill the host's
/// disk. More are counted.
const MAX_LOGGED: usize = 4096;

/// The most lines that a guest can cause in the log between two housekeepings.
const MAX_LINES: u32 = 64;

/// The decision about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allowed,
    Denied,
    /// Not decided yet: the packet is dropped without an answer.
    Unknown,
}

/// The policy of a running network.
pub(crate) struct Gate {
    policy: Policy,
    names: Names,
    logged: HashSet<Flow>,
    names_logged: HashSet<String>,
    /// Lines logged since the last housekeeping, and denials that were not logged.
    lines: u32,
    unlogged: u64,
    meter: Arc<Meter>,
    denials: Option<Denials>,
}

impl Gate {
    pub(crate) fn new(policy: Policy, meter: Arc<Meter>, denials: Option<Denials>) -> Self {
        Self {
            policy,
            names: Names::default(),
            logged: HashSet::new(),
            names_logged: HashSet::new(),
            lines: 0,
            unlogged: 0,
            meter,
            denials,
        }
    }

    /// Decides about a flow. A denial is counted, and logged the first time.
    pub(crate) fn ask(&mut self, flow: Flow, now: Instant) -> Verdict {
        let Decision { action, rule } = self.decide(flow, now);
        if action == Action::Allow {
            return Verdict::Allowed;
        }
        let rule = rule.filter(|_| !self.logged.contains(&flow)).map(ToString::to_string);
        self.meter.denied.add(1);
        if self.logged.len() == MAX_LOGGED || self.logged.contains(&flow) {
            return Verdict::Denied;
        }
        if self.lines == MAX_LINES {
            self.unlogged += 1;
            return Verdict::Denied;
        }
        self.lines += 1;
        self.logged.insert(flow);
        if self.logged.len() == MAX_LOGGED {
            tracing::warn!("network: more denied flows are counted, not logged");
        }
        let Flow { protocol, destination, host, own } = flow;
        let why = match rule {
            Some(rule) => format!("rule `{rule}`"),
            None if host => "the host's loopback is closed; open it by `host`".to_owned(),
            None if own => {
                "addresses of the host are closed; open this one by `host`, or by itself".to_owned()
            }
            None if is_protected(destination.ip()) => {
                "link-local and metadata addresses are closed".to_owned()
            }
            None => "no rule allows it".to_owned(),
        };
        self.report(&format!("{protocol} to {destination}"), &why);
        Verdict::Denied
    }

    /// Counts a query that was refused, or an answer that was withheld; logged once for each name.
    pub(crate) fn deny_name(&mut self, name: &str, why: &str) {
        self.meter.denied.add(1);
        if self.names_logged.len() == MAX_LOGGED || self.names_logged.contains(name) {
            return;
        }
        if self.lines == MAX_LINES {
            self.unlogged += 1;
            return;
        }
        self.lines += 1;
        self.names_logged.insert(name.to_owned());
        if self.names_logged.len() == MAX_LOGGED {
            tracing::warn!("network: more denied names are counted, not logged");
        }
        self.report(&format!("the name {name:?}"), why);
    }

    fn report(&self, what: &str, why: &str) {
        match &self.denials {
            Some(denials) => denials.report(what, why),
            None => tracing::warn!("network: denied {what}: {why}"),
        }
    }

    /// Regular housekeeping.
    pub(crate) fn housekeep(&mut self) {
        if self.unlogged > 0 {
            tracing::warn!("network: denied {} more flows", self.unlogged);
        }
        (self.lines, self.unlogged) = (0, 0);
    }

    fn decide(&self, flow: Flow, now: Instant) -> Decision<'_> {
        self.policy.decide(flow, |address, pattern| {
            self.names.any(address, now, |name| pattern.matches(name))
        })
    }

    /// True if the guest may resolve `name`.
    pub(crate) fn may_resolve(&self, name: &str) -> bool {
        self.policy.may_resolve(name)
    }

    /// Pins an address to a name before the guest gets the answer. False if no answer may contain the
    /// address: the answer must be withheld. Without a time to live, the address belongs to another
    /// name of the message and is not pinned.
    pub(crate) fn answer(
        &mut self,
        name: &str,
        ip: IpAddr,
        ttl: Option<Duration>,
        now: Instant,
    ) -> bool {
        if is_local(ip) || is_protected(ip) {
            return false;
        }
        if let Some(ttl) = ttl {
            self.names.pin(ip.to_canonical(), name, ttl, now);
        }
        true
    }
}

#[cfg(test)]
mod tests;
