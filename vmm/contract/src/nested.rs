//! The nested host, as the VM processes in it see it: a Linux under QEMU's emulation, used where the real
//! host has no hardware virtualization. Users know it as the software host.
//!
//! ```text
//!   nested host                             real host
//!   VM process ───── TCP 10.0.2.100:1 ── QEMU ── `softhost-ports` ── ports.sock ── keeper
//!    listens on 10.0.2.15:N  ◀────────  hostfwd  ◀── human-monitor-command ────────────┘
//! ```
//!
//! Each box has one connection to [`PORTS_SERVICE`]: a [`PortsRequest`], one line of JSON, asks for published
//! ports, and a [`PortsAnswer`] returns them. The ports stay open until the connection closes, which happens
//! at the latest when the VM process exits, so nothing needs to be cleaned up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use boxlite_net_policy::PublishedPort;
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// Set to `1` in the environment of everything that runs in the nested host.
pub const INSIDE_VARIABLE: &str = "BOXLITE_IN_SOFTHOST";

/// Kernel parameter against the use of CMPXCHG16B in the kernel, for every kernel under QEMU's emulation,
/// also those of boxes in the nested host. QEMU before 8.0 leaves garbage in the flags after the instruction, and
/// an interrupt right then returns with them: the kernel's own allocator crashes within seconds.
/// Hiding the instruction from programs too would keep those that are built for x86-64-v2 from
/// running.
pub const NO_CMPXCHG16B: &str = "clearcpuid=cx16";

/// The host that a VM process runs on.
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
    /// The host that this process runs on, by its environment variables.
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

/// The nested host's network: the default one of QEMU's `-netdev user`.
pub const NETWORK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 2, 0), 24);
/// The nested host's IPv6 network.
pub const NETWORK6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 64);
/// The real host's loopback, as seen from the nested host.
pub const REAL_HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The real host's IPv6 loopback, as seen from the nested host.
pub const REAL_HOST6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2);
/// The nested host's address.
pub const NESTED_HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// The keeper's address and port, for VM processes: on QEMU's user network, at an address of no other host.
pub const PORTS_SERVICE: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 2, 100), 1);

/// The largest request or answer, in bytes.
pub const MAX_PORTS_LINE: u64 = 256 << 10;

/// Timeout for a request for ports, at both ends.
pub const PORTS_TIMEOUT: Duration = Duration::from_secs(20);

/// A request to publish ports: where the real host is to listen, and the port of the nested host that
/// each forwards to (its `guest`).
#[derive(Debug, Serialize, Deserialize)]
pub struct PortsRequest(pub Vec<PublishedPort>);

/// The answer to a [`PortsRequest`].
#[derive(Debug, Serialize, Deserialize)]
pub enum PortsAnswer {
    /// The real host listens on all ports.
    Open {
        /// The ports, with their real numbers where the request had 0.
        ports: Vec<PublishedPort>,
        /// The current addresses of the real host's own interfaces.
        own: Vec<IpAddr>,
    },
    /// Which port cannot be opened, and why.
    Refused(String),
}
