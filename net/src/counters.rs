//! Counters of a box's network, readable from any thread.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of a box's network. All but the numbers of open flows only grow.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// [`Counters`] that only the network's thread writes.
        #[derive(Debug, Default)]
        pub(crate) struct Meter {
            $(pub(crate) $name: Count,)*
        }

        impl Meter {
            pub(crate) fn read(&self) -> Counters {
                Counters { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Frames that the guest sent.
    frames_from_guest,
    /// Bytes of those frames.
    bytes_from_guest,
    /// Frames sent to the guest.
    frames_to_guest,
    /// Bytes of those frames.
    bytes_to_guest,
    /// Frames of the guest that were malformed, or had a source that is not the guest's.
    malformed,
    /// Frames and datagrams dropped because a limit was reached or a buffer was full.
    dropped,
    /// TCP segments sent to the guest again.
    retransmits,
    /// TCP segments of the guest that came out of order.
    out_of_order,
    /// TCP flows so far.
    tcp_flows,
    /// TCP flows open now.
    tcp_open,
    /// UDP flows so far.
    udp_flows,
    /// UDP flows open now.
    udp_open,
    /// Flows and names that the policy denied.
    denied,
    /// DNS questions of the guest.
    dns_queries,
    /// DNS questions that no name server of the host answered.
    dns_failures,
}

/// A number with one writer and any number of readers.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// Only the network's thread writes, so no read-modify-write is needed.
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
