//! Options of a network.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use boxlite_net_policy::{Policy, PublishedPort};

use crate::addresses::Addresses;
use crate::error::NetworkError;
use crate::limit::RateLimits;

/// The largest MTU: a TCP segment then fills one 64 KiB packet, Ethernet header included.
pub(crate) const MAX_MTU: u16 = 65520;

/// The least MTU of IPv6 (RFC 8200, section 5).
const MIN_MTU: u16 = 1280;

/// The least number of descriptors of which every kind of flow has a share.
const MIN_DESCRIPTORS: usize = 64;

/// The options of a [`Network`](crate::Network).
#[derive(Clone, Debug)]
pub struct NetworkOptions {
    /// The addresses of the link.
    pub addresses: Addresses,
    /// The link's MTU in bytes, 1280 to 65520. The guest must use the same.
    pub mtu: u16,
    /// What the guest may reach.
    pub policy: Policy,
    /// Whether the addresses of this machine's interfaces are as open as others. If not, a rule has to
    /// name them, as it has to name the host's loopback.
    pub own_addresses_open: bool,
    /// Whether the real host's addresses are still to come by
    /// [`Handle::close_own`](crate::Handle::close_own). Until then, packets that would open a flow to
    /// anything but the gateway and the host's loopback are dropped.
    pub own_addresses_awaited: bool,
    /// The published ports.
    pub ports: Vec<PublishedPort>,
    /// Rate limits of both directions.
    pub limits: RateLimits,
    /// The host's resolver configuration (resolv.conf(5)), read again when it changes.
    pub resolv_conf: PathBuf,
    /// The most descriptors that all flows together may hold. `RLIMIT_NOFILE` has to be higher by what the
    /// process needs for other work.
    pub max_descriptors: usize,
    /// Receives what the policy denies. Without it, denials go to this process's log.
    pub denials: Option<Denials>,
}

/// Receives what the policy denies: the flow or name, and why. Each is reported once, at most 64 in five
/// seconds, and at most 4096 flows and as many names in all. Called on the network's thread.
#[derive(Clone)]
pub struct Denials(Arc<Report>);

type Report = dyn Fn(&str, &str) + Send + Sync;

impl Denials {
    /// Calls `report` with what was denied, `tcp to 192.0.2.1:80`, and why.
    pub fn new(report: impl Fn(&str, &str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(report))
    }

    pub(crate) fn report(&self, what: &str, why: &str) {
        (self.0)(what, why);
    }
}

impl fmt::Debug for Denials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Denials").finish_non_exhaustive()
    }
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self {
            addresses: Addresses::default(),
            mtu: MAX_MTU,
            policy: Policy::default(),
            own_addresses_open: false,
            own_addresses_awaited: false,
            ports: Vec::new(),
            limits: RateLimits::default(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            max_descriptors: 65_536,
            denials: None,
        }
    }
}

impl NetworkOptions {
    pub(crate) fn check(&self) -> Result<(), NetworkError> {
        let wrong = |what: String| Err(NetworkError::Options(what));
        if !(MIN_MTU..=MAX_MTU).contains(&self.mtu) {
            return wrong(format!("MTU {} is not between {MIN_MTU} and {MAX_MTU}", self.mtu));
        }
        if self.max_descriptors < MIN_DESCRIPTORS {
            return wrong(format!(
                "{} descriptors are too few for the flows of a guest; {MIN_DESCRIPTORS} are needed",
                self.max_descriptors
            ));
        }
        let a = &self.addresses;
        let v4 = [a.gateway, a.guest, a.host];
        if let Some(outside) = v4.iter().find(|address| !a.subnet.contains(*address)) {
            return wrong(format!("{outside} is not in {}", a.subnet));
        }
        let v6 = [a.gateway6, a.guest6, a.host6];
        if let Some(outside) = v6.iter().find(|address| !a.subnet6.contains(*address)) {
            return wrong(format!("{outside} is not in {}", a.subnet6));
        }
        if a.subnet6.prefix_len() != 64 {
            return wrong(format!("{} is no /64, so a guest cannot configure itself", a.subnet6));
        }
        fn differ<T: PartialEq>([a, b, c]: [T; 3]) -> bool {
            a != b && b != c && a != c
        }
        if !differ(v4) || !differ(v6) {
            return wrong("gateway, guest and host must have addresses of their own".to_owned());
        }
        Ok(())
    }
}
