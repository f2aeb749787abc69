//! The server of requests: this process or the nested host.

use std::sync::Arc;

use boxlite_rootfs_builder::Progress;

use crate::Result;
use crate::call::{Call, Channel, Reply};
use crate::local::Local;
use crate::remote::Remote;
use crate::stream::Duplex;

/// What serves calls and channels.
#[derive(Clone, Debug)]
pub(crate) enum Serving {
    /// This process.
    Local(Arc<Local>),
    /// A runtime in the nested host.
    Remote(Arc<Remote>),
}

impl Serving {
    pub(super) async fn call(&self, call: Call, progress: Arc<dyn Progress>) -> Result<Reply> {
        match self {
            Self::Local(local) => local.call(call, progress).await,
            Self::Remote(remote) => remote.call(call, progress).await,
        }
    }

    pub(crate) async fn open(&self, channel: Channel) -> Result<Box<dyn Duplex>> {
        match self {
            Self::Local(local) => local.open_stream(channel).await,
            Self::Remote(remote) => remote.open(channel).await,
        }
    }

    /// Whether nothing is served any more.
    pub(super) fn is_lost(&self) -> bool {
        match self {
            Self::Local(_) => false,
            Self::Remote(remote) => remote.is_lost(),
        }
    }
}
