//! The policy at work: verdicts, pinned names, and a log line for each flow that is denied.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};

use super::names::Names;
use super::{
    Action, Policy, Rule, Target, certain_faces, faces, is_local, is_private, is_protected,
    protected,
};
use crate::counters::Meter;
use crate::forward::Protocol;
use crate::options::Denials;

/// Denied flows that are logged, once each, and as many names: what a guest can bring into a log on the
/// host's disk is bounded. More are counted.
const MAX_LOGGED: usize = 4096;

/// Lines that a guest can bring into the log between two times of housekeeping.
const MAX_LINES: u32 = 64;

const LOOPBACK: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8));

/// A flow that a guest wants to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Flow {
    pub(crate) protocol: Protocol,
    /// As the guest says it.
    pub(crate) destination: SocketAddr,
    /// It leads to the host's loopback.
    pub(crate) host: bool,
    /// It leads to an address of the host's own.
    pub(crate) own: bool,
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allowed,
    Denied,
    /// Nobody can say yet: the packet is dropped without an answer.
    Unknown,
}

/// The policy at work.
pub(crate) struct Gate {
    policy: Policy,
    names: Names,
    logged: HashSet<Flow>,
    names_logged: HashSet<String>,
    /// Lines logged since the last housekeeping, and denials that were not.
    lines: u32,
    untold: u64,
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
            untold: 0,
            meter,
            denials,
        }
    }

    /// Decides; a denial is counted, and logged the first time.
    pub(crate) fn ask(&mut self, flow: Flow, now: Instant) -> Verdict {
        let (action, rule) = self.decide(flow, now);
        if action == Action::Allow {
            return Verdict::Allowed;
        }
        let rule = rule.filter(|_| !self.logged.contains(&flow)).map(Rule::to_string);
        self.meter.denied.add(1);
        if self.logged.len() == MAX_LOGGED || self.logged.contains(&flow) {
            return Verdict::Denied;
        }
        if self.lines == MAX_LINES {
            self.untold += 1;
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
        self.tell(&format!("{protocol} to {destination}"), &why);
        Verdict::Denied
    }

    /// A question was not asked, or an answer not given; logged once for each name.
    pub(crate) fn deny_name(&mut self, name: &str, why: &str) {
        self.meter.denied.add(1);
        if self.names_logged.len() == MAX_LOGGED || self.names_logged.contains(name) {
            return;
        }
        if self.lines == MAX_LINES {
            self.untold += 1;
            return;
        }
        self.lines += 1;
        self.names_logged.insert(name.to_owned());
        if self.names_logged.len() == MAX_LOGGED {
            tracing::warn!("network: more denied names are counted, not logged");
        }
        self.tell(&format!("the name {name:?}"), why);
    }

    fn tell(&self, what: &str, why: &str) {
        match &self.denials {
            Some(denials) => denials.tell(what, why),
            None => tracing::warn!("network: denied {what}: {why}"),
        }
    }

    /// Regular housekeeping.
    pub(crate) fn housekeep(&mut self) {
        if self.untold > 0 {
            tracing::warn!("network: denied {} more flows", self.untold);
        }
        (self.lines, self.untold) = (0, 0);
    }

    fn decide(&self, flow: Flow, now: Instant) -> (Action, Option<&Rule>) {
        let protected = flow.host || flow.own || is_protected(flow.destination.ip());
        for rule in &self.policy.rules {
            if self.matches(rule, flow, now)
                && (rule.action == Action::Deny || !protected || names_protected(rule))
            {
                return (rule.action, Some(rule));
            }
        }
        (if protected { Action::Deny } else { self.policy.default }, None)
    }

    fn matches(&self, rule: &Rule, flow: Flow, now: Instant) -> bool {
        let Flow { protocol, destination, host, own } = flow;
        if rule.protocol.is_some_and(|p| p != protocol)
            || rule.ports.as_ref().is_some_and(|ports| !ports.contains(&destination.port()))
        {
            return false;
        }
        let ip = destination.ip();
        match &rule.target {
            Target::Any => true,
            Target::Host => host || own,
            Target::Net(net) => {
                covers(rule.action, ip, |face| net.contains(&face))
                    || host && net.contains(&loopback(ip))
            }
            // What a name leads to is for others to say: an allowing one opens nothing private.
            Target::Name(_) if rule.action == Action::Allow && (host || own || is_private(ip)) => {
                false
            }
            Target::Name(pattern) => covers(rule.action, ip, |face| {
                self.names.any(face, now, |name| pattern.matches(name))
            }),
        }
    }

    /// True if the guest may ask for `name`: where only names open anything, other questions have
    /// no use but to carry secrets out.
    pub(crate) fn may_ask(&self, name: &str) -> bool {
        let names = |rule: &Rule| match &rule.target {
            Target::Name(pattern) => pattern.matches(name),
            _ => false,
        };
        let rules = &self.policy.rules;
        for rule in rules {
            let whole = rule.ports.is_none() && rule.protocol.is_none();
            match rule.action {
                Action::Allow if names(rule) => return true,
                Action::Deny if names(rule) && whole => return false,
                Action::Deny if rule.target == Target::Any && whole => break,
                _ => {}
            }
        }
        let open = |rule: &Rule| {
            rule.action == Action::Allow && matches!(rule.target, Target::Any | Target::Net(_))
        };
        let closed = self.policy.default == Action::Deny
            || rules.iter().any(|rule| {
                rule.action == Action::Deny
                    && rule.target == Target::Any
                    && rule.ports.is_none()
                    && rule.protocol.is_none()
            });
        !closed || rules.iter().any(open)
    }

    /// An answer that the guest gets. False if no answer may hold this address: then it is not
    /// given. Without a time to live, the address is not the name's.
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

/// A rule that can open what is protected: one about nothing else.
fn names_protected(rule: &Rule) -> bool {
    match &rule.target {
        Target::Any | Target::Name(_) => false,
        Target::Host => true,
        Target::Net(net) => {
            net.prefix_len() == net.max_prefix_len()
                || protected().chain([LOOPBACK]).any(|closed| closed.contains(net))
        }
    }
}

/// True if what `matches` says of an address, it says of one of the forms that count.
fn covers(action: Action, ip: IpAddr, matches: impl FnMut(IpAddr) -> bool) -> bool {
    match action {
        Action::Deny => faces(ip).any(matches),
        Action::Allow => certain_faces(ip).any(matches),
    }
}

fn loopback(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    }
}
