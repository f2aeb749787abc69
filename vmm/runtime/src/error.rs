//! What can go wrong with a box. Every message says what happened, to which thing, and what to do.

use std::path::PathBuf;
use std::time::Duration;
use std::{fmt, io};

use boxlite_proto::message::FailureKind;
use serde::{Deserialize, Serialize};

use super::options::Problem;
use super::remedy;
use super::state::{BoxState, FailureReason};
use crate::client;

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the runtime could not do what was asked. [`kind`](Self::kind) is for programs, the message
/// for people, which [`remedy`](Self::remedy) is the end of;
/// [`source`](std::error::Error::source) is what is behind it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Boxes cannot run where they are to.
    #[error("{reason}")]
    NoVirtualization {
        /// Why, and what to do.
        reason: String,
    },
    /// The options of a box are wrong; all problems at once.
    #[error("{}", Lines(.0))]
    Options(Vec<Problem>),
    /// The image, or its disk.
    #[error(transparent)]
    Image(ImageError),
    /// The guest files (kernel, initramfs, template) are not there.
    #[error(transparent)]
    GuestFiles(#[from] boxlite_kernel::LocateError),
    /// The home folder, or a file in it.
    #[error("{path}: {action}: {source}{}", remedy::of_io(source))]
    Home {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The home's database.
    #[error("{path}: the list of boxes cannot be {action}: {source}; {}", remedy::NEW_DATABASE)]
    Store {
        /// The database.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The home was last used by a newer release.
    #[error(
        "{path} was written by a newer release (schema {found}, this one knows {known}): {}",
        remedy::NEWER_RELEASE
    )]
    NewerHome {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest schema that is known here.
        known: i64,
    },
    /// There is no home folder to be found.
    #[error("there is no home folder: {}", remedy::SET_HOME)]
    NoHome,
    /// The executable of the boxes' processes is not there.
    #[error("cannot find the boxlite-vmm executable {tried}: {}", remedy::SET_LAUNCHER)]
    NoLauncher {
        /// Where it was looked for.
        tried: String,
    },
    /// A box of this name exists.
    #[error("a box named {name} exists already: {}", remedy::name_in_use(name))]
    NameInUse {
        /// The name.
        name: String,
    },
    /// No box is called so.
    #[error("no box is called {query}, and no box's ID begins so; {}", remedy::LIST_BOXES)]
    NoSuchBox {
        /// What was looked for.
        query: String,
    },
    /// Several boxes could be meant.
    #[error("{query} could be each of {}; {}", .matches.join(", "), remedy::MORE_OF_ID)]
    Ambiguous {
        /// What was looked for.
        query: String,
        /// Names of the boxes.
        matches: Vec<String>,
    },
    /// It cannot be done in the state in which the box is.
    #[error("the box {name} is {state}: {remedy}")]
    WrongState {
        /// The box.
        name: String,
        /// Its state.
        state: BoxState,
        /// What would have to be done first.
        remedy: String,
    },
    /// The machine's process could not be started or talked to.
    #[error("cannot start the box's process {launcher}: {source}")]
    Spawn {
        /// The executable.
        launcher: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The box, or the machine that makes a disk, failed.
    #[error("{}{reason}", Subject(.name))]
    Failed {
        /// The box; none for a machine that makes an image's disk.
        name: Option<String>,
        /// How.
        reason: FailureReason,
    },
    /// The box ended while it was in use.
    #[error("the box {name} ended while it was in use ({how})")]
    Ended {
        /// The box.
        name: String,
        /// How.
        how: String,
    },
    /// The box's process refused, and why.
    #[error("the box {name}: {reason}")]
    Refused {
        /// The box.
        name: String,
        /// Why.
        reason: String,
    },
    /// A request to the guest's agent failed.
    #[error(transparent)]
    Guest(#[from] client::Error),
    /// The command did not end in time; it has been killed.
    #[error("the command was killed: it did not end within its timeout")]
    CommandTimeout,
    /// Something took longer than it may.
    #[error("{what} did not happen within {timeout:?}")]
    Timeout {
        /// What.
        what: String,
        /// The limit.
        timeout: Duration,
    },
    /// There is no command: neither the caller nor the image gave one.
    #[error("no command to run: the image {image} has none, so {}", remedy::GIVE_COMMAND)]
    NoCommand {
        /// The image.
        image: String,
    },
    /// A copy between box and host failed on the host's side.
    #[error("cannot copy {path}: {source}{}", remedy::of_io(source))]
    Copy {
        /// The host's file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A path cannot be copied as asked.
    #[error("cannot copy {path}: {reason}")]
    CopyRefused {
        /// The path.
        path: String,
        /// Why not.
        reason: String,
    },
    /// What the box sent as a copy is not one.
    #[error("the copy that the box sent is refused: entry {entry}: {reason}")]
    BadArchive {
        /// The name of the entry, quoted and escaped.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The software host.
    #[error(transparent)]
    SoftHost(#[from] crate::nested::Error),
    /// What a runtime in the software host said.
    #[error(transparent)]
    Remote(#[from] Box<RemoteError>),
    /// A task of the runtime itself failed: a bug.
    #[error("internal error: {0}; {remedy}", remedy = remedy::REPORT)]
    Internal(String),
}

/// Why an image could not be found, read, pulled, kept or removed, or its disk not be made.
#[derive(Debug)]
pub struct ImageError(boxlite_rootfs_builder::Error);

impl ImageError {
    /// What to do about it, if that is known; the message ends with it.
    pub fn remedy(&self) -> Option<String> {
        let remedy = self.0.remedy()?;
        Some(remedy::of_image(&remedy).unwrap_or_else(|| remedy.to_string()))
    }
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.worded(remedy::of_image))
    }
}

impl std::error::Error for ImageError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

impl From<boxlite_rootfs_builder::Error> for Error {
    fn from(error: boxlite_rootfs_builder::Error) -> Self {
        Self::Image(ImageError(error))
    }
}

/// Kinds of error, for programs. They stay what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller asked for something that makes no sense.
    Invalid,
    /// The box, image, program or file does not exist.
    NotFound,
    /// The program exists and cannot be executed.
    NotExecutable,
    /// The name is taken.
    AlreadyExists,
    /// It cannot be done in the state in which the box is.
    WrongState,
    /// The image, its registry, or its disk.
    Image,
    /// This host lacks something: guest files, the launcher, virtualization, permission.
    Host,
    /// The host's disk is full.
    DiskFull,
    /// A port of the host cannot be had.
    Port,
    /// The home's files.
    Storage,
    /// The box failed: its process, its kernel, its agent.
    BoxFailed,
    /// The box ended while it was in use.
    BoxEnded,
    /// It took too long.
    Timeout,
    /// Something else in the guest.
    Guest,
    /// A bug.
    Internal,
}

/// An error of a runtime in the software host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct RemoteError {
    /// What kind it is.
    pub kind: ErrorKind,
    /// The box, if it is about one.
    pub sandbox: Option<String>,
    /// What happened, to which thing, and what to do.
    pub message: String,
    /// What to do, alone, if that is known.
    pub remedy: Option<String>,
}

impl Error {
    /// What kind of error it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Options(_) | Self::NoCommand { .. } | Self::CopyRefused { .. } => {
                ErrorKind::Invalid
            }
            Self::Ambiguous { .. } => ErrorKind::Invalid,
            Self::Image(_) => ErrorKind::Image,
            Self::GuestFiles(_) | Self::NoHome | Self::NoLauncher { .. } | Self::Spawn { .. } => {
                ErrorKind::Host
            }
            Self::SoftHost(_) | Self::NoVirtualization { .. } => ErrorKind::Host,
            Self::Home { source, .. } | Self::Copy { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::DiskFull,
                io::ErrorKind::NotFound if matches!(self, Self::Copy { .. }) => ErrorKind::NotFound,
                _ => ErrorKind::Storage,
            },
            Self::BadArchive { .. } => ErrorKind::Guest,
            Self::Store { .. } | Self::NewerHome { .. } => ErrorKind::Storage,
            Self::NameInUse { .. } => ErrorKind::AlreadyExists,
            Self::NoSuchBox { .. } => ErrorKind::NotFound,
            Self::WrongState { .. } | Self::Refused { .. } => ErrorKind::WrongState,
            Self::Failed { reason: FailureReason::DiskFull(_), .. } => ErrorKind::DiskFull,
            Self::Failed { reason: FailureReason::Port(_), .. } => ErrorKind::Port,
            Self::Failed { .. } => ErrorKind::BoxFailed,
            Self::Ended { .. } => ErrorKind::BoxEnded,
            Self::Guest(error) => match error.failure().map(|failure| failure.kind) {
                Some(FailureKind::NotFound | FailureKind::NoSuchPath) => ErrorKind::NotFound,
                Some(FailureKind::NotExecutable) => ErrorKind::NotExecutable,
                Some(FailureKind::DiskFull) => ErrorKind::DiskFull,
                Some(
                    FailureKind::UnknownUser | FailureKind::WorkingDir | FailureKind::NotADirectory,
                ) => ErrorKind::Invalid,
                _ => ErrorKind::Guest,
            },
            Self::CommandTimeout | Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Remote(remote) => remote.kind,
            Self::Internal(_) => ErrorKind::Internal,
        }
    }

    /// The box that it is about, by its name.
    pub fn sandbox(&self) -> Option<&str> {
        match self {
            Self::NameInUse { name }
            | Self::WrongState { name, .. }
            | Self::Ended { name, .. }
            | Self::Refused { name, .. } => Some(name),
            Self::Failed { name, .. } => name.as_deref(),
            Self::NoSuchBox { query } => Some(query),
            Self::Remote(remote) => remote.sandbox.as_deref(),
            _ => None,
        }
    }

    /// An error of `action` on `path`, for `map_err`.
    pub(crate) fn home(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Home { path, action, source }
    }
}

impl From<&Error> for RemoteError {
    fn from(error: &Error) -> Self {
        Self {
            kind: error.kind(),
            sandbox: error.sandbox().map(str::to_owned),
            message: error.to_string(),
            remedy: error.remedy(),
        }
    }
}

struct Subject<'a>(&'a Option<String>);

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, "the box {name} failed: "),
            None => f.write_str("the machine that makes the image's disk failed: "),
        }
    }
}

pub(super) struct Lines<'a, T>(pub(super) &'a [T]);

impl<T: fmt::Display> fmt::Display for Lines<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, line) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{line}")?;
        }
        Ok(())
    }
}
