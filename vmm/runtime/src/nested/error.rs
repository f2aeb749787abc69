//! Errors of the nested host.

use std::io;
use std::path::PathBuf;

use boxlite_kernel::Arch;
use boxlite_proto::frame::FrameError;

use super::folder::HostFolder;
use super::qemu;
use crate::client::{self, Loss};

/// The nested host does not start, or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// QEMU for this architecture is not installed.
    #[error("{} is not in PATH: install it with {}", qemu::program(*.0), qemu::install(*.0))]
    NoQemu(Arch),
    /// The nested host cannot run the launcher that the user has chosen.
    #[error("{}={}: this file {problem}", super::LAUNCHER_VARIABLE, path.display())]
    InnerLauncher {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The nested host of this home is of another architecture.
    #[error(
        "the software host of {} is {theirs}, not {ours}: its disk has the boxes and images of one architecture; \
         choose another home, or remove {} with all boxes and images in it",
        home.display(), image.display()
    )]
    OtherArch {
        /// The home.
        home: PathBuf,
        /// Its disk.
        image: PathBuf,
        /// The architecture of the home.
        theirs: Arch,
        /// The architecture that was requested.
        ours: Arch,
    },
    /// QEMU cannot be run.
    #[error("cannot run QEMU: {0}")]
    Qemu(#[source] io::Error),
    /// A file of the nested host cannot be used.
    #[error("cannot use {path}: {source}")]
    Folder {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The disk image cannot be created.
    #[error("cannot create the disk image of the software host, {path}: {source}")]
    Image {
        /// The image.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The home's path cannot be on a kernel's command line.
    #[error("the path {0:?} of the box home is not UTF-8: choose another home")]
    Home(PathBuf),
    /// Another keeper runs.
    #[error("another process runs the software host of this home")]
    Busy,
    /// The keeper did not start.
    #[error("the software host does not start ({reason}):\n{log}\n(the log is {path})")]
    Start {
        /// The keeper's exit status.
        reason: String,
        /// The last lines of its log.
        log: String,
        /// The path of the log.
        path: PathBuf,
    },
    /// The nested host did not answer.
    #[error("the software host did not answer within {0} s")]
    Timeout(u64),
    /// The nested host failed. The message has the details.
    #[error("{0}")]
    Ended(String),
    /// The keeper died, and its QEMU with it.
    #[error(
        "the software host ended: its keeper was killed or crashed (its log is {log}); boxes and commands in it \
         were killed, and data that was not synced to the box home is lost"
    )]
    KeeperGone {
        /// The path of the keeper's log.
        log: PathBuf,
    },
    /// This process cannot set up its async runtime, terminal or working directory.
    #[error("cannot set up this process: {0}")]
    Runtime(#[source] io::Error),
    /// A part of the command's output could not be written.
    #[error(transparent)]
    WriteFailed(client::WriteError),
    /// The command could not be run, or the connection broke.
    #[error(transparent)]
    Client(client::Error),
}

impl Error {
    /// Turns an error of the connection to the keeper into one of the nested host.
    pub(super) fn of_connection(error: client::Error, folder: &HostFolder) -> Self {
        match &error {
            client::Error::Lost(loss) => match &**loss {
                // The keeper's message says what happened.
                Loss::Fatal(message) => Self::Ended(message.clone()),
                loss if is_hang_up(loss) => Self::KeeperGone { log: folder.log() },
                _ => Self::Client(error),
            },
            _ => Self::Client(error),
        }
    }
}

/// Whether the connection to the keeper ended without a message from it.
pub(super) fn is_hang_up(loss: &Loss) -> bool {
    matches!(loss, Loss::Closed | Loss::Write(_) | Loss::Frame(FrameError::Io(_)))
}
