//! What a box may reach over the network, and which of its ports are published: rules and their meaning,
//! without the network that enforces them.
//!
//! A program that embeds boxes reads, checks and prints rules with this crate; `boxlite-net` enforces
//! them. A decision is a pure function of a [`Policy`] and a [`Flow`].
//!
//! ```text
//!   policy ── rule ── embedded    a Policy decides about a Flow
//!      │        └──── address     classes of addresses: protected, local, private
//!   port ──── protocol            published ports
//! ```
//!
//! **Invariant:** no sockets, no threads, no clock, no state. What an embedder links stays this small.

#![forbid(unsafe_code)]

mod address;
mod embedded;
mod error;
mod policy;
mod port;
mod protocol;
mod rule;

pub use address::{is_global_unicast, is_local, is_private, is_protected};
pub use embedded::faces;
pub use error::ParseError;
pub use ipnet::{IpNet, Ipv4Net, Ipv6Net};
pub use policy::{Decision, Flow, Policy};
pub use port::{PublishError, PublishedPort};
pub use protocol::{Protocol, Transport};
pub use rule::{Action, NamePattern, Rule, Target};

#[cfg(test)]
mod tests;
