//! The user-mode network of a box: Ethernet frames on one side, host sockets on the other.
//!
//! A guest's flows are terminated here and carried over plain sockets of the host, without root, a TAP
//! device or a helper process. One thread ([`Network::run`]) owns all state; a [`Handle`]
//! controls it from other threads.
//!
//! ```text
//!   virtio-net, TAP, …                                        host
//!        │ Link                                                │
//!        ▼                                                     ▼
//!     wire: frames ⇄ packets ── tcp ──────────── a socket for each flow
//!        │                  ├── udp ──────────── a socket for each flow
//!        │                  ├── ping ─────────── unprivileged ICMP sockets
//!        │                  └── dns ──────────── the host's name servers
//!        └── local: ARP, NDP, router advertisements, DHCP
//!     gate: what may go out         ports: what may come in
//! ```
//!
//! Modules use those below them, never those above:
//!
//! ```text
//!   network        the handle of other threads, and the loop's thread
//!   engine         the loop: passes each frame, event and command to its module
//!   command        requests of other threads to the loop
//!   ports          published ports: accepts, and hands over to tcp and udp
//!   tcp  udp  ping  dns  local
//!   context        shared by all of them: the link to the guest, policy, clock, timers, memory
//!   gate  own  route  wire  sockets  options
//!   addresses  quota  error  sys
//!   counters  key  limit  link  pool  timers
//!   boxlite-net-policy  boxlite-net-interfaces
//! ```
//!
//! The guest sees a gateway, which is also its resolver, and an address that stands for the host's loopback
//! ([`Addresses`]).
//!
//! **Invariant:** the whole content of a frame is checked, and memory and work per turn are bounded. So a
//! guest can break only its own flows.

#![deny(unsafe_code)]

mod addresses;
mod command;
mod context;
mod counters;
mod dns;
mod engine;
mod error;
mod gate;
mod key;
mod limit;
pub mod link;
mod local;
mod network;
mod options;
mod own;
mod ping;
mod pool;
mod ports;
mod quota;
mod route;
mod sockets;
pub mod sys;
mod tcp;
mod timers;
mod udp;
mod wire;

pub use addresses::Addresses;
pub use counters::Counters;
pub use error::NetworkError;
pub use limit::{RateLimit, RateLimits};
pub use link::{Link, Offload, OffloadFeatures, Received, Segmentation, Sent};
pub use network::{Handle, Network};
pub use options::{Denials, NetworkOptions};

pub use boxlite_net_interfaces::own_addresses;
pub use boxlite_net_policy as policy;
pub use boxlite_net_policy::{
    Action, IpNet, Ipv4Net, Ipv6Net, ParseError, Policy, Protocol, PublishError, PublishedPort,
    Rule, Transport,
};
