//! The nested host, as a box's process meets it: a Linux that QEMU emulates where the real host has no
//! hardware virtualization. Users know it as the software host.
//!
//! ```text
//!   nested host                             real host
//!   box's process ── TCP 10.0.2.100:1 ── QEMU ── `softhost-ports` ── ports.sock ── keeper
//!    listens on 10.0.2.15:N  ◀────────  hostfwd  ◀── human-monitor-command ────────────┘
//! ```
//!
//! One connection to [`PORTS_SERVICE`] is one box: a [`PortsRequest`] as a line of JSON asks for
//! published ports, a [`PortsAnswer`] says which there are. The ports stay open until the connection
//! ends, as it does with its process; so nothing has to be cleared away, whatever ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use boxlite_net_policy::PublishedPort;
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// Set to `1` in the environment of everything that runs in the nested host.
pub const INSIDE_VARIABLE: &str = "BOXLITE_IN_SOFTHOST";

/// What every kernel that QEMU emulates needs on its command line, one in a box in the nested host
/// as well: not to use CMPXCHG16B itself. QEMU before 8.0 leaves garbage in the flags after it, and
/// an interrupt right then returns with them: the kernel's own allocator crashes within seconds.
/// Hiding the instruction from programs too would keep those that are built for x86-64-v2 from
/// running.
pub const KERNEL_GUARD: &str = "clearcpuid=cx16";

/// What a box's process runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostEnvironment {
    /// The real host.
    #[default]
    Real,
    /// The nested host.
    Nested,
}

impl HostEnvironment {
    /// What this process runs on, by its environment.
    pub fn detect() -> Self {
        match std::env::var_os(INSIDE_VARIABLE) {
            Some(value) if value == "1" => Self::Nested,
            _ => Self::Real,
        }
    }

    /// Whether this is the nested host.
    pub fn is_nested(self) -> bool {
        self == Self::Nested
    }
}

/// QEMU's user network (`-netdev user`), which the nested host is on, as it is by default.
pub const NETWORK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 2, 0), 24);
/// The same for IPv6.
pub const NETWORK6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 64);
/// The real host's loopback.
pub const REAL_HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The real host's loopback, too.
pub const REAL_HOST6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2);
/// The nested host.
pub const NESTED_HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// Where boxes find the keeper: on QEMU's user network, where no other host is.
pub const PORTS_SERVICE: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 2, 100), 1);

/// The most bytes of a request, and of an answer.
pub const MAX_PORTS_LINE: u64 = 256 << 10;

/// Timeout of a request for ports, at both ends.
pub const PORTS_TIMEOUT: Duration = Duration::from_secs(20);

/// Published ports: where the real host is to listen, and to which port of the nested host each leads
/// (its `guest`).
#[derive(Debug, Serialize, Deserialize)]
pub struct PortsRequest(pub Vec<PublishedPort>);

/// The ports as they are, or why there are none.
#[derive(Debug, Serialize, Deserialize)]
pub enum PortsAnswer {
    /// The real host listens.
    Open {
        /// With the numbers that they have.
        ports: Vec<PublishedPort>,
        /// The addresses of the real host's own interfaces, as they are now.
        own: Vec<IpAddr>,
    },
    /// Which port cannot be had, and why.
    Refused(String),
}
