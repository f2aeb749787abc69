//! TIME-WAIT: flows that are closed, whose last acknowledgement may be lost.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::key::FlowKey;
use crate::wire::Seq;

/// Short, since no segment lingers on the link: it arrives soon or never.
const TIME: Duration = Duration::from_secs(4);
/// The most flows. The oldest makes room; its late FIN is then answered by a reset.
const MAX: usize = 4096;

/// Flows in TIME-WAIT.
#[derive(Default)]
pub(super) struct TimeWait {
    /// The next sequence numbers, of the network and of the guest, and the time of the close.
    flows: HashMap<FlowKey, (Seq, Seq, Instant)>,
    order: VecDeque<(Instant, FlowKey)>,
}

impl TimeWait {
    pub(super) fn insert(&mut self, key: FlowKey, ours: Seq, guests: Seq, now: Instant) {
        self.expire(now);
        if self.order.len() == MAX {
            self.remove_first();
        }
        self.flows.insert(key, (ours, guests, now));
        self.order.push_back((now, key));
    }

    pub(super) fn get(&self, key: &FlowKey, now: Instant) -> Option<(Seq, Seq)> {
        let (ours, guests, since) = *self.flows.get(key)?;
        (now.saturating_duration_since(since) < TIME).then_some((ours, guests))
    }

    pub(super) fn remove(&mut self, key: &FlowKey) {
        self.flows.remove(key);
    }

    pub(super) fn expire(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= TIME) {
            self.remove_first();
        }
        if self.order.is_empty() && self.order.capacity() > MAX / 4 {
            *self = Self::default();
        }
    }

    fn remove_first(&mut self) {
        let Some((at, key)) = self.order.pop_front() else { return };
        // The addresses may have been used again since.
        if self.flows.get(&key).is_some_and(|(.., since)| *since == at) {
            self.flows.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn flows_are_remembered_for_a_while_and_bounded() {
        let now = Instant::now();
        let key = |n: u32| FlowKey {
            guest: SocketAddr::from((n.to_be_bytes(), 1)),
            remote: SocketAddr::from(([1; 4], 1)),
        };
        let mut flows = TimeWait::default();
        for n in 0..=MAX as u32 {
            flows.insert(key(n), Seq(n), Seq(0), now);
        }
        assert_eq!(flows.get(&key(0), now), None);
        assert_eq!(flows.get(&key(1), now), Some((Seq(1), Seq(0))));
        flows.remove(&key(1));
        flows.insert(key(1), Seq(9), Seq(0), now + TIME / 2);
        assert_eq!(flows.get(&key(1), now + TIME), Some((Seq(9), Seq(0))));
        assert_eq!(flows.get(&key(2), now + TIME), None);
        flows.expire(now + TIME * 2);
        assert_eq!((flows.flows.len(), flows.order.len()), (0, 0));
    }
}
