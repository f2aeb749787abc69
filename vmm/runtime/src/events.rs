//! Events of the boxes of a home, as they happen, whoever makes them happen.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use boxlite_contract::events::Event;
use serde::{Deserialize, Serialize};

use crate::stream::Duplex;
use crate::stream::json_lines::JsonLines;

/// Which events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EventQuery {
    /// From this time on (milliseconds since the Unix epoch); none: from now on.
    pub since_ms: Option<u64>,
    /// Whether to wait for more at the end.
    pub follow: bool,
    /// Of this box alone, by its ID.
    pub id: Option<String>,
}

impl EventQuery {
    /// All events from now on, as they happen.
    pub fn follow() -> Self {
        Self { since_ms: None, follow: true, id: None }
    }

    /// Also those since then.
    pub fn since(mut self, time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.since_ms = Some(since.as_millis().try_into().unwrap_or(u64::MAX));
        self
    }

    /// Whether to wait for more at the end.
    pub fn following(mut self, yes: bool) -> Self {
        self.follow = yes;
        self
    }

    pub(crate) fn wants(&self, event: &Event) -> bool {
        self.since_ms.is_none_or(|since| event.at_ms >= since)
            && self.id.as_ref().is_none_or(|id| event.id == *id)
    }
}

/// Events, in the order in which they were written down.
#[derive(Debug)]
pub struct Events(JsonLines<Event>);

impl Events {
    pub(crate) fn new(stream: Box<dyn Duplex>) -> Self {
        Self(JsonLines::new(stream))
    }

    /// The next event; none at the end, which a subscription that follows does not have. Cancel safe.
    pub async fn next(&mut self) -> io::Result<Option<Event>> {
        self.0.next().await
    }
}
