//! Where requests are answered.

use std::sync::Arc;

use boxlite_rootfs_builder::Progress;

use crate::Result;
use crate::call::{Call, Channel, Reply};
use crate::local::Local;
use crate::remote::Remote;
use crate::stream::Duplex;

/// Where calls are answered.
#[derive(Clone, Debug)]
pub(crate) enum Serving {
    /// In this process.
    Here(Arc<Local>),
    /// In the software host.
    There(Arc<Remote>),
}

impl Serving {
    pub(super) async fn call(&self, call: Call, progress: Arc<dyn Progress>) -> Result<Reply> {
        match self {
            Self::Here(local) => local.call(call, progress).await,
            Self::There(remote) => remote.call(call, progress).await,
        }
    }

    pub(crate) async fn open(&self, channel: Channel) -> Result<Box<dyn Duplex>> {
        match self {
            Self::Here(local) => local.open_stream(channel).await,
            Self::There(remote) => remote.open(channel).await,
        }
    }
}
