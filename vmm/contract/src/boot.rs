//! Boot stages.

use serde::{Deserialize, Serialize};

/// A stage of a boot; stages are in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub enum BootStage {
    /// The VM is built and its first vCPU starts the kernel.
    Kernel,
    /// The kernel has started the agent.
    Agent,
    /// The agent has mounted the root file system.
    Root,
    /// The agent serves requests.
    Ready,
}

impl BootStage {
    /// What a boot that got no further than this stage was doing, for a message.
    pub fn doing(self) -> &'static str {
        match self {
            Self::Kernel => "the kernel was starting",
            Self::Agent => "the agent was mounting the root file system",
            Self::Root => "the agent was preparing the box",
            Self::Ready => "the box was ready",
        }
    }
}
