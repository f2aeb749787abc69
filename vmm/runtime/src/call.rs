//! What can be asked of a home's runtime, wherever it runs: in this process, or in the software
//! host: requests, answers, and streams of bytes. `local` serves them, `remote` carries them.

use std::path::PathBuf;

use boxlite_contract::events::EventKind;
use boxlite_contract::metrics::MachineMetrics;
use boxlite_proto::message::TerminalSize;
use boxlite_rootfs_builder::PullPolicy;
use serde::{Deserialize, Serialize};

use crate::config::BoxConfig;
use crate::events::EventQuery;
use crate::image_info::{ImageDetails, ImageInfo, RemovedImages};
use crate::logs::LogQuery;
use crate::options::BoxOptions;
use crate::state::BoxInfo;
use crate::{Error, Result};

/// A request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Call {
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
pub(crate) enum BoxCall {
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

/// A request about images.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum ImageCall {
    /// Answered by all.
    List,
    /// Answered by the image.
    Get { image: String, pull: PullPolicy },
    /// Answered by the image.
    Import { source: String, name: String },
    /// Answered by the images.
    Load { file: PathBuf },
    /// Answered by all that is known of it.
    Details { image: String },
    /// Answered by what was removed.
    Remove { image: String, force: bool },
    /// Answered by what was removed.
    Prune { all: bool },
}

/// How a box is started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Start {
    /// Whether its main command waits until somebody has attached.
    pub(crate) wait_for_attach: bool,
    /// The size of its main command's terminal, if that has one.
    pub(crate) size: Option<TerminalSize>,
    /// Whether the box is to go on without this process, whatever its options say.
    pub(crate) detach: bool,
}

/// An answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
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
    pub(crate) fn done(self) -> Result<()> {
        match self {
            Self::Done => Ok(()),
            other => Err(other.unexpected()),
        }
    }

    pub(crate) fn config(self) -> Result<BoxConfig> {
        match self {
            Self::Config(config) => Ok(*config),
            other => Err(other.unexpected()),
        }
    }

    pub(crate) fn info(self) -> Result<BoxInfo> {
        match self {
            Self::Info(info) => Ok(*info),
            other => Err(other.unexpected()),
        }
    }

    pub(crate) fn infos(self) -> Result<Vec<BoxInfo>> {
        match self {
            Self::Infos(infos) => Ok(infos),
            other => Err(other.unexpected()),
        }
    }

    pub(crate) fn metrics(self) -> Result<MachineMetrics> {
        match self {
            Self::Metrics(metrics) => Ok(metrics),
            other => Err(other.unexpected()),
        }
    }

    pub(crate) fn image(self) -> Result<ImageInfo> {
        match self {
            Self::Image(image) => Ok(*image),
            other => Err(other.unexpected()),
        }
    }

    pub(crate) fn images(self) -> Result<Vec<ImageInfo>> {
        match self {
            Self::Images(images) => Ok(images),
            other => Err(other.unexpected()),
        }
    }

    pub(crate) fn removed(self) -> Result<RemovedImages> {
        match self {
            Self::Removed(removed) => Ok(removed),
            other => Err(other.unexpected()),
        }
    }

    pub(crate) fn details(self) -> Result<ImageDetails> {
        match self {
            Self::ImageDetails(details) => Ok(*details),
            other => Err(other.unexpected()),
        }
    }

    fn unexpected(self) -> Error {
        Error::internal(format!("unexpected answer {self:?}"))
    }
}

/// A stream of bytes to or from something of a home.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Channel {
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
    /// Images as the tar of an OCI layout, from it, in [chunks](crate::images::saved).
    SavedImages {
        /// Their names or digests.
        images: Vec<String>,
    },
    /// An archive of images, to it, and [what comes of it](crate::images::loaded), from it.
    LoadedImages,
    /// Events of all boxes, from it: one [`Event`](boxlite_contract::events::Event) as JSON a line.
    Events {
        /// Which.
        query: EventQuery,
    },
}
