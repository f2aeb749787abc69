//! State that every protocol uses: the way to the guest, the clock, the policy, timers and memory.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boxlite_net_policy::{Flow, Protocol};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use crate::addresses::Addresses;
use crate::counters::Meter;
use crate::gate::{Gate, Verdict};
use crate::limit::Bucket;
use crate::own::OwnAddresses;
use crate::pool::{Budget, Pool};
use crate::quota::{Kind, Permit, Quotas};
use crate::timers::Timers;
use crate::wire::Egress;

/// The least time between two warnings about exhausted resources.
const QUIET: Duration = Duration::from_secs(10);

/// State that every protocol uses.
pub(crate) struct Context {
    pub(crate) out: Egress,
    pub(crate) addresses: Addresses,
    /// The guest has sent from [`Addresses::guest6`] on this link, so it has IPv6.
    pub(crate) ipv6_heard: bool,
    pub(crate) own: OwnAddresses,
    pub(crate) gate: Gate,
    pub(crate) timers: Timers,
    pub(crate) pool: Pool,
    pub(crate) budget: Budget,
    pub(crate) to_guest: Bucket,
    pub(crate) meter: Arc<Meter>,
    /// The time at which this turn of the loop began.
    pub(crate) now: Instant,
    pub(crate) registry: Registry,
    /// Limits on the number of flows.
    pub(crate) quotas: Quotas,
    /// When a warning about exhausted resources was last logged.
    pub(crate) warned: Option<Instant>,
    /// Streams for DNS over TCP that the guest opened, until the resolver takes them.
    pub(crate) dns_streams: Vec<(OwnedFd, Permit)>,
}

/// The owner of a file descriptor that an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Wake,
    Link,
    /// Each by its index in its table.
    Tcp(usize),
    Udp(usize),
    Port(usize),
    Ping(usize),
    Dns(usize),
    DnsStream(usize),
}

impl Source {
    const KINDS: usize = 8;

    pub(crate) fn token(self) -> Token {
        let (kind, index) = match self {
            Self::Wake => (0, 0),
            Self::Link => (1, 0),
            Self::Tcp(index) => (2, index),
            Self::Udp(index) => (3, index),
            Self::Port(index) => (4, index),
            Self::Ping(index) => (5, index),
            Self::Dns(index) => (6, index),
            Self::DnsStream(index) => (7, index),
        };
        Token(index * Self::KINDS + kind)
    }

    pub(crate) fn of(token: Token) -> Self {
        let index = token.0 / Self::KINDS;
        match token.0 % Self::KINDS {
            0 => Self::Wake,
            1 => Self::Link,
            2 => Self::Tcp(index),
            3 => Self::Udp(index),
            4 => Self::Port(index),
            5 => Self::Ping(index),
            6 => Self::Dns(index),
            _ => Self::DnsStream(index),
        }
    }
}

impl Context {
    /// Watches a socket, edge-triggered, until the socket is closed.
    pub(crate) fn watch(&self, socket: impl AsFd, source: Source) -> io::Result<()> {
        let fd = socket.as_fd().as_raw_fd();
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.registry.register(&mut SourceFd(&fd), source.token(), interest)
    }

    /// Stops watching a socket that stays open.
    pub(crate) fn unwatch(&self, socket: impl AsFd) {
        let fd = socket.as_fd().as_raw_fd();
        // Fails only if the socket is not watched.
        let _ = self.registry.deregister(&mut SourceFd(&fd));
    }

    /// True if data may be sent to the guest now; if not, the caller waits for the link or the limit.
    pub(crate) fn may_send(&mut self) -> bool {
        self.out.is_open() && self.to_guest.wait(self.now).is_none()
    }

    /// Charges the rate limit for what was sent since the last call.
    pub(crate) fn charge(&mut self) {
        let sent = self.out.take_sent();
        self.to_guest.spend(sent);
    }

    /// Logs a failure for want of resources; not each one, since a guest can cause them.
    pub(crate) fn warn_exhausted(&mut self, what: &str, error: io::Error) {
        let again = self.warned.is_none_or(|at| self.now.saturating_duration_since(at) >= QUIET);
        if again {
            self.warned = Some(self.now);
            tracing::warn!("network: {what}: {error}");
        }
    }

    /// Asks the policy whether the guest may reach `destination`. `host` says whether that is the host's
    /// loopback. If the verdict is unknown, the packet is counted as dropped.
    pub(crate) fn ask(
        &mut self,
        protocol: Protocol,
        destination: SocketAddr,
        host: bool,
    ) -> Verdict {
        if !host && self.own.are_awaited() {
            self.meter.dropped.add(1);
            return Verdict::Unknown;
        }
        let own = !host && self.own.contain(destination.ip(), &self.addresses, self.now);
        self.gate.ask(Flow { protocol, destination, host, own }, self.now)
    }

    /// True if the guest may open one more flow of this kind now. If not, the packet is to be dropped
    /// without an answer: a guest that needs the flow tries again.
    pub(crate) fn may_open(&mut self, kind: Kind) -> bool {
        let may = self.quotas.may_open(kind, self.now);
        if !may {
            self.meter.dropped.add(1);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_what_they_were() {
        for source in [
            Source::Wake,
            Source::Link,
            Source::Tcp(0),
            Source::Tcp(70_000),
            Source::Udp(1),
            Source::Port(2),
            Source::Ping(3),
            Source::Dns(4),
            Source::DnsStream(5),
        ] {
            assert_eq!(Source::of(source.token()), source);
        }
    }
}
