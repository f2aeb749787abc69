//! A home's runtime as its handles see it: requests, streams, and the connections to its boxes' agents.

mod agents;
mod serving;

use std::sync::Arc;

use boxlite_rootfs_builder::Progress;

use self::agents::Agents;
use crate::Result;
use crate::call::{Call, Channel, Reply};
use crate::client::AgentClient;
use crate::stream::Duplex;

pub(crate) use self::agents::{BoxAgent, Failure as NoAgent};
pub(crate) use self::serving::Serving;

/// A runtime as its handles see it.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    serving: Serving,
    agents: Arc<Agents>,
}

impl Host {
    pub(crate) fn new(serving: Serving) -> Self {
        Self { serving, agents: Arc::default() }
    }

    pub(crate) async fn call(&self, call: Call, progress: Arc<dyn Progress>) -> Result<Reply> {
        self.serving.call(call, progress).await
    }

    pub(crate) async fn open(&self, channel: Channel) -> Result<Box<dyn Duplex>> {
        self.serving.open(channel).await
    }

    /// The agent of the box with this ID, which [`connect`](Self::connect) takes.
    pub(crate) fn agent(&self, id: &str) -> Arc<BoxAgent> {
        self.agents.of(id)
    }

    /// The connection to an agent, which all share.
    pub(crate) async fn connect(&self, agent: &Arc<BoxAgent>) -> Result<AgentClient, NoAgent> {
        agent.connect(&self.serving).await
    }
}
