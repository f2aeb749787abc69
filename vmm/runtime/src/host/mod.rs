//! The runtime behind a handle: requests, streams, and connections to the agents of boxes.

mod agents;
mod captures;
mod serving;

use std::sync::Arc;

use boxlite_rootfs_builder::Progress;

use self::agents::Agents;
use self::captures::Captures;
use crate::Result;
use crate::call::{Call, Channel, Reply};
use crate::client::AgentClient;
use crate::stream::Duplex;

pub(crate) use self::agents::{BoxAgent, Failure as NoAgent};
pub(crate) use self::serving::Serving;

/// The runtime behind a handle.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    serving: Serving,
    agents: Arc<Agents>,
    captures: Arc<Captures>,
}

impl Host {
    pub(crate) fn new(serving: Serving) -> Self {
        Self { serving, agents: Arc::default(), captures: Arc::default() }
    }

    pub(crate) async fn call(&self, call: Call, progress: Arc<dyn Progress>) -> Result<Reply> {
        self.serving.call(call, progress).await
    }

    pub(crate) async fn open(&self, channel: Channel) -> Result<Box<dyn Duplex>> {
        self.serving.open(channel).await
    }

    /// The agent of the box with this ID, for [`connect`](Self::connect).
    pub(crate) fn agent(&self, id: &str) -> Arc<BoxAgent> {
        self.agents.of(id)
    }

    /// Returns the shared connection to an agent, opened if there is none.
    pub(crate) async fn connect(&self, agent: &Arc<BoxAgent>) -> Result<AgentClient, NoAgent> {
        agent.connect(&self.serving).await
    }
}
