//! What can go wrong with the software host.

use std::io;
use std::path::PathBuf;

use boxlite_proto::frame::FrameError;

use super::folder::HostFolder;
use super::qemu::PROGRAM;
use crate::client::{self, Loss};

/// The software host does not start, or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// QEMU is not installed.
    #[error(
        "{PROGRAM} is not in PATH: install it with `apt-get install qemu-system-x86`, \
         `dnf install qemu-system-x86-core` or `pacman -S qemu-system-x86`"
    )]
    NoQemu,
    /// QEMU cannot be run.
    #[error("cannot run {PROGRAM}: {0}")]
    Qemu(#[source] io::Error),
    /// A file of the software host cannot be used.
    #[error("cannot use {path}: {source}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The disk image cannot be made.
    #[error("cannot make the disk image of the software host, {path}: {source}")]
    Image {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The home's path cannot be told to a kernel.
    #[error("the path {0:?} of the box home is not UTF-8: choose another home")]
    Home(PathBuf),
    /// Another keeper is there.
    #[error("another process keeps the software host of this home")]
    Busy,
    /// The keeper did not come up.
    #[error("the software host does not start ({reason}):\n{log}\n(the log is {path})")]
    Start {
        /// How the keeper ended.
        reason: String,
        /// The end of its log.
        log: String,
        /// Where the log is.
        path: PathBuf,
    },
    /// Nobody answered.
    #[error("the software host did not answer within {0} s")]
    Timeout(u64),
    /// The software host ended by itself; the message says what is known.
    #[error("{0}")]
    Ended(String),
    /// The keeper vanished, and its QEMU with it.
    #[error(
        "the software host ended: its keeper was killed or crashed (its log is {log}); what it ran is \
         gone, what was synced to the box home is not"
    )]
    KeeperGone {
        /// Where its log is.
        log: PathBuf,
    },
    /// The runtime of this process.
    #[error("cannot set up this process: {0}")]
    Runtime(#[source] io::Error),
    /// Not all that the command wrote could be written here.
    #[error(transparent)]
    Unwritten(client::Unwritten),
    /// The command could not be run in it, or the connection broke.
    #[error(transparent)]
    Client(client::Error),
}

impl Error {
    /// What an error of the connection to the keeper means.
    pub(super) fn of_connection(error: client::Error, folder: &HostFolder) -> Self {
        match &error {
            client::Error::Lost(loss) => match &**loss {
                // Its own words say what happened.
                Loss::Fatal(message) => Self::Ended(message.clone()),
                loss if is_hang_up(loss) => Self::KeeperGone { log: folder.log() },
                _ => Self::Client(error),
            },
            _ => Self::Client(error),
        }
    }
}

/// Whether the connection to the keeper ended without a word from it.
pub(super) fn is_hang_up(loss: &Loss) -> bool {
    matches!(loss, Loss::Closed | Loss::Write(_) | Loss::Frame(FrameError::Io(_)))
}
