//! The interface of a home's runtime: requests, answers and byte streams. `local` serves them in this process,
//! `remote` carries them to the nested host.

use std::path::PathBuf;

use boxlite_contract::events::EventKind;
use boxlite_contract::metrics::MachineMetrics;
use boxlite_proto::message::TerminalSize;
use boxlite_rootfs_builder::{ImagePlatform, PullPolicy};
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
    /// Creates a box. Answer: its config.
    Create(Box<BoxOptions>),
    /// Finds a box by its name, its ID, or a unique prefix of its ID. Answer: its config.
    Find(String),
    /// Lists all boxes. Answer: their infos.
    List,
    /// A request about a box. Answer: see [`BoxCall`].
    Box {
        /// The box's ID.
        id: String,
        /// The request.
        call: BoxCall,
    },
    /// Removes all boxes that are not live. Answer: their infos.
    Prune,
    /// Stops the boxes that the runtime started, except detached ones.
    Shutdown {
        /// Timeout before processes are killed, in milliseconds.
        grace_ms: u64,
    },
    /// A request about images.
    Images(ImageCall),
}

/// A request about a box.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum BoxCall {
    /// Reads its state. Answer: its info.
    Info,
    /// Fails unless the box accepts commands.
    Expect,
    /// Boots the box, unless it runs.
    Start(Start),
    /// Shuts the box down.
    Stop {
        /// Timeout before processes are killed, in milliseconds.
        grace_ms: u64,
    },
    /// Sends a signal (Linux number) to the process of the main command.
    Signal(i32),
    /// Kills the box.
    Kill,
    /// Stops the vCPUs.
    Pause,
    /// Continues a paused box.
    Resume,
    /// Keeps the box running when the process that started it exits.
    Outlive,
    /// Waits until the box is not live. Answer: its info.
    Wait,
    /// Removes the box.
    Remove {
        /// Whether to kill a live box first; otherwise it is not removed.
        force: bool,
    },
    /// Renames the box.
    Rename(String),
    /// Reads the counters of the box's process. Answer: its metrics.
    Metrics,
    /// Records an event of the box.
    Note(EventKind),
}

/// A request about images.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum ImageCall {
    /// Lists images. Answer: all of them.
    List,
    /// Fetches an image and builds its disk. Answer: the image.
    Get {
        image: String,
        pull: PullPolicy,
        #[serde(default)]
        platform: Option<ImagePlatform>,
    },
    /// Copies an image into the home. Answer: the image.
    Import { source: String, name: String },
    /// Copies all images of an archive into the home. Answer: the images.
    Load { file: PathBuf },
    /// Describes an image. Answer: its details.
    Details { image: String },
    /// Removes an image. Answer: the removed names.
    Remove { image: String, force: bool },
    /// Removes unused data. Answer: the removed names.
    Prune { all: bool },
}

/// Options of a start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Start {
    /// Whether the main command waits until a caller has attached.
    pub(crate) wait_for_attach: bool,
    /// The size of the main command's terminal, if it has one.
    pub(crate) size: Option<TerminalSize>,
    /// Whether the box is detached, whatever its options say.
    pub(crate) detach: bool,
    /// The destination of the packets of its network, if they are recorded. A box that runs already is
    /// then an error.
    #[serde(default)]
    pub(crate) capture: Option<Capture>,
}

/// The destination of the packets of a box's network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Capture {
    /// A file where the call is served; an absolute path.
    File(PathBuf),
    /// [`Channel::Packets`], which is opened after the start.
    Channel,
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

/// A byte stream to or from a part of a home.
///
/// What it carries marks its own end: a stream also ends when its sender is killed, and readers report a stream that
/// ends without the mark.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Channel {
    /// The agent protocol, to the agent of a box.
    Agent {
        /// The box's ID.
        id: String,
    },
    /// The agent protocol, to the main command of a box: an exec on it attaches to the main command.
    Main {
        /// The box's ID.
        id: String,
    },
    /// The records of a box's log, from the home.
    Logs {
        /// The box's ID.
        id: String,
        /// Which records.
        query: LogQuery,
    },
    /// The packets of a box's network, from the home, as [chunks of a pcap file](boxlite_contract::capture). Can be
    /// opened once after each start with [`Capture::Channel`].
    Packets {
        /// The box's ID.
        id: String,
    },
    /// Images as the tar of an OCI layout, from the home, in [chunks](crate::images::saved).
    SavedImages {
        /// Their names or digests.
        images: Vec<String>,
    },
    /// An archive of images, to the home; [progress and result](crate::images::loaded), from the home.
    LoadedImages,
    /// Events, from the home: one [`Event`](boxlite_contract::events::Event) as JSON on each line.
    Events {
        /// Which events.
        query: EventQuery,
    },
}
