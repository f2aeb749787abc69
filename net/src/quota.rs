//! Quotas: the number of flows of each kind, and the rate at which a guest may open them.
//!
//! A flow holds a [`Permit`] for each descriptor, from before the descriptor is opened until the flow is
//! dropped. So no kind of flow can use up the descriptors of other work of this process, or of another
//! kind. A token bucket for each kind bounds the flows opened per second: each leaves traces on the host
//! (ports, connection tracking) that outlive it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use crate::limit::{Bucket, RateLimit};

/// Kinds of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A connection, in either direction.
    Tcp,
    /// Datagrams to a destination of the guest.
    Udp,
    /// Datagrams of a peer of a published port. They share the port's descriptor: this bounds memory.
    UdpPeer,
    Ping,
    /// An end of a pair of sockets for DNS over TCP.
    DnsStream,
    /// A query to a name server.
    DnsQuery,
}

/// The most of each kind. A host has about 28,000 ports for all UDP sockets without one of their
/// own, and boxes share them.
const MAX_TCP: usize = 65_536;
const MAX_UDP: usize = 2048;
const MAX_PING: usize = 256;
const MAX_DNS_STREAM: usize = 256;
const MAX_DNS_QUERY: usize = 512;

/// The quota of one kind.
struct Share {
    most: usize,
    held: Rc<Cell<usize>>,
    rate: Bucket,
}

/// The quotas of all kinds.
pub(crate) struct Quotas([Share; 6]);

/// The right to one descriptor, returned on drop.
#[derive(Debug)]
pub(crate) struct Permit(Rc<Cell<usize>>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Quotas {
    /// Divides `descriptors` among the kinds. TCP gets what the others leave.
    pub(crate) fn new(descriptors: usize, now: Instant) -> Self {
        let part = |most: usize, divisor| most.min(descriptors / divisor).max(1);
        let udp = part(MAX_UDP, 4);
        let ping = part(MAX_PING, 32);
        let stream = part(MAX_DNS_STREAM, 16).max(4);
        let query = part(MAX_DNS_QUERY, 16);
        let tcp = descriptors.saturating_sub(udp + ping + stream + query).clamp(1, MAX_TCP);
        // Flows per second, and flows at once after a pause. Usual programs stay far below these; load
        // generators are slowed down.
        let share = |most, rate, burst| Share {
            most,
            held: Rc::default(),
            rate: Bucket::new(Some(RateLimit { bytes_per_second: rate, burst }), now),
        };
        Self([
            share(tcp, 4000, 16_384),
            share(udp, 1000, 4096),
            share(MAX_UDP, 4000, 8192),
            share(ping, 200, 512),
            share(stream, 200, 256),
            share(query, 1000, 2048),
        ])
    }

    /// A permit for a flow; none if the quota of its kind is used up.
    pub(crate) fn take(&self, kind: Kind) -> Option<Permit> {
        let share = self.0.get(kind as usize)?;
        let held = share.held.get();
        (held < share.most).then(|| {
            share.held.set(held + 1);
            Permit(Rc::clone(&share.held))
        })
    }

    /// True if one more flow of this kind may be opened now; it is charged to the rate.
    pub(crate) fn may_open(&mut self, kind: Kind, now: Instant) -> bool {
        let Some(share) = self.0.get_mut(kind as usize) else { return false };
        let may = share.rate.wait(now).is_none();
        if may {
            share.rate.spend(1);
        }
        may
    }

    /// The number of permits of a kind.
    pub(crate) fn most(&self, kind: Kind) -> usize {
        self.0.get(kind as usize).map_or(0, |share| share.most)
    }

    /// The permits of a kind that are in use.
    #[cfg(test)]
    pub(crate) fn held(&self, kind: Kind) -> usize {
        self.0.get(kind as usize).map_or(0, |share| share.held.get())
    }

    /// Descriptors that all flows together may have.
    #[cfg(test)]
    fn descriptors(&self) -> usize {
        let shared = self.most(Kind::UdpPeer);
        self.0.iter().map(|share| share.most).sum::<usize>() - shared
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const KINDS: [Kind; 6] =
        [Kind::Tcp, Kind::Udp, Kind::UdpPeer, Kind::Ping, Kind::DnsStream, Kind::DnsQuery];

    #[test]
    fn all_kinds_together_keep_to_the_descriptors_there_are() {
        for descriptors in [256, 512, 3584, 10_000, 65_536, 1 << 20] {
            let quotas = Quotas::new(descriptors, Instant::now());
            assert!(quotas.descriptors() <= descriptors, "{descriptors}");
            assert!(KINDS.iter().all(|kind| quotas.most(*kind) >= 1));
            assert!(quotas.most(Kind::Udp) <= 2048);
            assert!(quotas.most(Kind::Tcp) >= descriptors.min(MAX_TCP) / 2);
        }
        assert_eq!(Quotas::new(1 << 20, Instant::now()).most(Kind::Tcp), MAX_TCP);
    }

    #[test]
    fn permits_are_returned_and_no_kind_takes_those_of_another() {
        let quotas = Quotas::new(512, Instant::now());
        for kind in KINDS {
            let permits: Vec<Permit> = std::iter::from_fn(|| quotas.take(kind)).collect();
            assert_eq!(permits.len(), quotas.most(kind), "{kind:?}");
            drop(permits);
            assert!(quotas.take(kind).is_some());
        }
    }

    #[test]
    fn flows_are_opened_at_a_rate() {
        let now = Instant::now();
        let mut quotas = Quotas::new(1 << 20, now);
        for (kind, rate) in [(Kind::Udp, 1000), (Kind::Tcp, 4000), (Kind::DnsStream, 200)] {
            while quotas.may_open(kind, now) {}
            let later = now + Duration::from_secs(1);
            let opened = (0..100_000).filter(|_| quotas.may_open(kind, later)).count();
            assert_eq!(opened, rate, "{kind:?}");
        }
    }
}
