//! The messages of both ends, framed by [`wire`](crate::stream::wire): on each stream a request, then answers.

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::call::{Call, Channel, Reply};
use crate::stream::progress::OwnedEvent;

/// First on a stream.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    Call(Call),
    Open(Channel),
}

/// To a request.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// A call gets on.
    Progress(OwnedEvent),
    /// To a call. Last.
    Reply(Box<Reply>),
    /// The channel is open: its bytes follow.
    Opened,
    /// Last.
    Failed(Error),
}
