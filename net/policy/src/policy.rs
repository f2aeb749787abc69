//! The policy: rules in order, a default, and what they decide about a flow or a DNS name.
//!
//! The first rule that matches decides; where none matches, the default decides. Some destinations are
//! protected: the host's loopback and the host's own addresses, link-local addresses and the metadata
//! services of clouds. Only a rule that names a protected destination opens it; `any`, or a network that
//! merely contains the destination, does not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::address::{is_private, is_protected};
use crate::embedded::{certain_faces, faces};
use crate::protocol::Protocol;
use crate::rule::{Action, NamePattern, Rule, Target};

/// A flow that a guest wants to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The flow's protocol.
    pub protocol: Protocol,
    /// The destination as the guest addresses it.
    pub destination: SocketAddr,
    /// Whether the flow leads to the host's loopback.
    pub host: bool,
    /// Whether the destination is an address of one of the host's interfaces.
    pub own: bool,
}

/// What a policy decides about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    /// What happens to the flow.
    pub action: Action,
    /// The rule that decided; none if the default did.
    pub rule: Option<&'a Rule>,
}

/// What a guest may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The rules, in order: the first that matches decides.
    pub rules: Vec<Rule>,
    /// What happens to a flow that no rule matches. Protected destinations are denied regardless.
    pub default: Action,
}

impl Default for Policy {
    /// Everything but protected destinations.
    fn default() -> Self {
        Self { rules: Vec::new(), default: Action::Allow }
    }
}

impl Policy {
    /// Nothing.
    pub fn none() -> Self {
        Self { rules: Vec::new(), default: Action::Deny }
    }

    /// These rules. If one of them allows a destination other than the host, the default is to deny;
    /// otherwise it is to allow.
    pub fn from_rules(rules: Vec<Rule>) -> Self {
        let lists = |rule: &Rule| rule.action == Action::Allow && rule.target != Target::Host;
        let default = if rules.iter().any(lists) { Action::Deny } else { Action::Allow };
        Self { rules, default }
    }

    /// Decides about a flow. `resolved(address, pattern)` says whether an answer to the guest said that a name
    /// that matches `pattern` has this address.
    pub fn decide(
        &self,
        flow: Flow,
        resolved: impl Fn(IpAddr, &NamePattern) -> bool,
    ) -> Decision<'_> {
        let protected = flow.host || flow.own || is_protected(flow.destination.ip());
        let decides = |rule: &&Rule| {
            matches(rule, flow, &resolved)
                && (rule.action == Action::Deny || !protected || rule.names_protected())
        };
        match self.rules.iter().find(decides) {
            Some(rule) => Decision { action: rule.action, rule: Some(rule) },
            None if protected => Decision { action: Action::Deny, rule: None },
            None => Decision { action: self.default, rule: None },
        }
    }

    /// True if the guest may resolve `name`, which is in lower case and has no dot at its end. Where
    /// only names are open, a query for any other name is of no use but to carry data out.
    pub fn may_resolve(&self, name: &str) -> bool {
        let names = |rule: &Rule| match &rule.target {
            Target::Name(pattern) => pattern.matches(name),
            _ => false,
        };
        for rule in &self.rules {
            match rule.action {
                Action::Allow if names(rule) => return true,
                Action::Deny if names(rule) && rule.is_whole() => return false,
                Action::Deny if rule.is_everything() => break,
                _ => {}
            }
        }
        let open = |rule: &Rule| {
            rule.action == Action::Allow && matches!(rule.target, Target::Any | Target::Net(_))
        };
        !self.is_closed() || self.rules.iter().any(open)
    }

    /// Rules that deny a name and that a guest can bypass, by an address that it knows or gets from another
    /// resolver than the gateway's. None if the guest may reach nothing but names and single addresses.
    pub fn bypassable_denials(&self) -> impl Iterator<Item = &Rule> {
        let wide = |rule: &Rule| match &rule.target {
            Target::Any => true,
            Target::Net(net) => net.prefix_len() < net.max_prefix_len(),
            Target::Host | Target::Name(_) => false,
        };
        let opens = |rule: &Rule| rule.action == Action::Allow && wide(rule);
        let open = !self.is_closed() || self.rules.iter().any(opens);
        self.rules.iter().filter(move |rule| {
            open && rule.action == Action::Deny && matches!(rule.target, Target::Name(_))
        })
    }

    /// True if what no rule allows is denied.
    fn is_closed(&self) -> bool {
        let denies_all = |rule: &Rule| rule.action == Action::Deny && rule.is_everything();
        self.default == Action::Deny || self.rules.iter().any(denies_all)
    }
}

fn matches(rule: &Rule, flow: Flow, resolved: impl Fn(IpAddr, &NamePattern) -> bool) -> bool {
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
        // Others decide what a name resolves to: a rule that allows it opens nothing private.
        Target::Name(_) if rule.action == Action::Allow && (host || own || is_private(ip)) => false,
        Target::Name(pattern) => covers(rule.action, ip, |face| resolved(face, pattern)),
    }
}

/// True if `matches` holds for one of the forms of an address that count for this action.
fn covers(action: Action, ip: IpAddr, matches: impl FnMut(IpAddr) -> bool) -> bool {
    match action {
        Action::Deny => faces(ip).any(matches),
        Action::Allow => certain_faces(ip).any(matches),
    }
}

fn loopback(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}
