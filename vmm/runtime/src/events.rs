//! Events of the boxes of a home, whichever process causes them.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use boxlite_contract::events::Event;
use serde::{Deserialize, Serialize};

use crate::stream::Duplex;
use crate::stream::json_lines::JsonLines;

/// A choice of events. The default is none: neither earlier events, nor new ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EventQuery {
    /// The earliest time (milliseconds since the Unix epoch); none: now.
    pub since_ms: Option<u64>,
    /// Whether to wait for new events at the end.
    pub follow: bool,
    /// The ID of the only box to report; none: all boxes.
    pub id: Option<String>,
}

impl EventQuery {
    /// Includes earlier events, since `time`.
    pub fn since(mut self, time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.since_ms = Some(since.as_millis().try_into().unwrap_or(u64::MAX));
        self
    }

    /// Sets whether to wait for new events at the end.
    pub fn follow(mut self, yes: bool) -> Self {
        self.follow = yes;
        self
    }

    pub(crate) fn wants(&self, event: &Event) -> bool {
        self.since_ms.is_none_or(|since| event.at_ms >= since)
            && self.id.as_ref().is_none_or(|id| event.id == *id)
    }
}

/// A stream of events, in the order in which they were recorded.
#[derive(Debug)]
pub struct Events(JsonLines<Event>);

impl Events {
    pub(crate) fn new(stream: Box<dyn Duplex>) -> Self {
        Self(JsonLines::new(stream))
    }

    /// Returns the next event, or `None` at the end. A query with [`follow`](EventQuery::follow) has no end. Cancel safe.
    pub async fn next(&mut self) -> io::Result<Option<Event>> {
        self.0.next().await
    }
}
