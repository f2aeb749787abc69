//! What can be asked of a home's runtime, wherever it runs: in this process, or in the software
//! host.

use std::sync::Arc;

use boxlite_contract::events::EventKind;
use boxlite_contract::metrics::MachineMetrics;
use boxlite_proto::message::TerminalSize;
use boxlite_rootfs_builder::Progress;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use super::agents::{Agents, BoxAgent, Failure as NoAgent};
use super::config::BoxConfig;
use super::events::EventQuery;
use super::images::{ImageCall, ImageDetails, ImageInfo, RemovedImages};
use super::local::Local;
use super::logs::LogQuery;
use super::options::BoxOptions;
use super::remote::Remote;
use super::state::BoxInfo;
use super::{Error, Result};
use crate::client::AgentClient;

/// A request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Call {
    /// Makes a box. Answered by its config.
    Create(Box<BoxOptions>),
    /// The config of the box that is called so, has this ID, or whose ID alone begins so.
    Find(String),
    /// All boxes. Answered by what is known of them.
    List,
    /// Something about a box. Answered as [`BoxCall`] says.
    Box {
        /// Its ID.
        id: String,
        /// What.
        call: BoxCall,
    },
    /// Removes all boxes that do not live. Answered by what was known of them.
    Prune,
    /// Stops the boxes that end with the runtime.
    Shutdown {
        /// Milliseconds.
        grace_ms: u64,
    },
    /// Something about images.
    Images(ImageCall),
}

/// A request about a box.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum BoxCall {
    /// What is known of it.
    Info,
    /// Nothing: an error, unless it serves commands.
    Expect,
    /// Boots it, if it does not run.
    Start(Start),
    /// Asks it to end; after so many milliseconds it is made to.
    Stop {
        /// Milliseconds.
        grace_ms: u64,
    },
    /// Sends its main command's process a signal (Linux number).
    Signal(i32),
    /// Ends it at once.
    Kill,
    /// Lets it stand still.
    Pause,
    /// Lets it go on.
    Resume,
    /// Lets it go on when the process that started it ends.
    Outlive,
    /// Waits until it does not live. Answered by what is known of it then.
    Wait,
    /// Removes it; if it lives, only by force.
    Remove {
        /// Whether it is killed first.
        force: bool,
    },
    /// Gives it another name.
    Rename(String),
    /// What it counts on the host's side.
    Metrics,
    /// Writes down that something happened in it.
    Note(EventKind),
}

/// How a box is started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Start {
    /// Whether its main command waits until somebody has attached.
    pub(super) wait_for_attach: bool,
    /// The size of its main command's terminal, if that has one.
    pub(super) size: Option<TerminalSize>,
    /// Whether the box is to go on without this process, whatever its options say.
    pub(super) detach: bool,
}

/// An answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    Done,
    Config(Box<BoxConfig>),
    Info(Box<BoxInfo>),
    Infos(Vec<BoxInfo>),
    Metrics(MachineMetrics),
    Image(Box<ImageInfo>),
    Images(Vec<ImageInfo>),
    Removed(RemovedImages),
    ImageDetails(Box<ImageDetails>),
}

impl Reply {
    pub(super) fn done(self) -> Result<()> {
        match self {
            Self::Done => Ok(()),
            other => Err(other.unexpected()),
        }
    }

    pub(super) fn config(self) -> Result<BoxConfig> {
        match self {
            Self::Config(config) => Ok(*config),
            other => Err(other.unexpected()),
        }
    }

    pub(super) fn info(self) -> Result<BoxInfo> {
        match self {
            Self::Info(info) => Ok(*info),
            other => Err(other.unexpected()),
        }
    }

    pub(super) fn infos(self) -> Result<Vec<BoxInfo>> {
        match self {
            Self::Infos(infos) => Ok(infos),
            other => Err(other.unexpected()),
        }
    }

    pub(super) fn metrics(self) -> Result<MachineMetrics> {
        match self {
            Self::Metrics(metrics) => Ok(metrics),
            other => Err(other.unexpected()),
        }
    }

    pub(super) fn image(self) -> Result<ImageInfo> {
        match self {
            Self::Image(image) => Ok(*image),
            other => Err(other.unexpected()),
        }
    }

    pub(super) fn images(self) -> Result<Vec<ImageInfo>> {
        match self {
            Self::Images(images) => Ok(images),
            other => Err(other.unexpected()),
        }
    }

    pub(super) fn removed(self) -> Result<RemovedImages> {
        match self {
            Self::Removed(removed) => Ok(removed),
            other => Err(other.unexpected()),
        }
    }

    pub(super) fn details(self) -> Result<ImageDetails> {
        match self {
            Self::ImageDetails(details) => Ok(*details),
            other => Err(other.unexpected()),
        }
    }

    fn unexpected(self) -> Error {
        Error::Internal(format!("unexpected answer {self:?}"))
    }
}

/// A stream of bytes to or from something of a home.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Channel {
    /// The agent's protocol, to the agent of a box.
    Agent {
        /// The box's ID.
        id: String,
    },
    /// The agent's protocol, to the main command of a box: an exec there is the main command.
    Main {
        /// The box's ID.
        id: String,
    },
    /// The records of a box's log, from it.
    Logs {
        /// The box's ID.
        id: String,
        /// Which.
        query: LogQuery,
    },
    /// Images as the tar of an OCI layout, from it, in [chunks](super::saved_images).
    SavedImages {
        /// Their names or digests.
        images: Vec<String>,
    },
    /// An archive of images, to it, and [what comes of it](super::loaded_images), from it.
    LoadedImages,
    /// Events of all boxes, from it: one [`Event`](boxlite_contract::events::Event) as JSON a line.
    Events {
        /// Which.
        query: EventQuery,
    },
}

/// A stream of bytes in both directions.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A runtime as its handles see it.
#[derive(Clone, Debug)]
pub(super) struct Host {
    serving: Serving,
    agents: Arc<Agents>,
}

impl Host {
    pub(super) fn new(serving: Serving) -> Self {
        Self { serving, agents: Arc::default() }
    }

    pub(super) async fn call(&self, call: Call, progress: Arc<dyn Progress>) -> Result<Reply> {
        self.serving.call(call, progress).await
    }

    pub(super) async fn open(&self, channel: Channel) -> Result<Box<dyn Duplex>> {
        self.serving.open(channel).await
    }

    /// The agent of the box with this ID, which [`connect`](Self::connect) takes.
    pub(super) fn agent(&self, id: &str) -> Arc<BoxAgent> {
        self.agents.of(id)
    }

    /// The connection to an agent, which all share.
    pub(super) async fn connect(&self, agent: &Arc<BoxAgent>) -> Result<AgentClient, NoAgent> {
        agent.connect(&self.serving).await
    }
}

/// Where calls are answered.
#[derive(Clone, Debug)]
pub(super) enum Serving {
    /// In this process.
    Here(Arc<Local>),
    /// In the software host.
    There(Arc<Remote>),
}

impl Serving {
    async fn call(&self, call: Call, progress: Arc<dyn Progress>) -> Result<Reply> {
        match self {
            Self::Here(local) => local.call(call, progress).await,
            Self::There(remote) => remote.call(call, progress).await,
        }
    }

    pub(super) async fn open(&self, channel: Channel) -> Result<Box<dyn Duplex>> {
        match self {
            Self::Here(local) => local.open_stream(channel).await,
            Self::There(remote) => remote.open(channel).await,
        }
    }
}
