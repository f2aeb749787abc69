//! A constructor for each error: its kind, its message and its remedy.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::{error, io};

use boxlite_kernel::{Arch, LocateError};
use boxlite_proto::message::{FailureKind, LISTENER};

use super::{Error, ErrorKind, Joint, Parts};
use crate::problem::Problem;
use crate::remedy::Remedy;
use crate::state::{BoxState, FailureReason};
use crate::{client, nested};

impl Error {
    fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let (message, problems) = (message.into(), Vec::new());
        Self(Box::new(Parts {
            kind,
            box_name: None,
            message,
            remedy: None,
            problems,
            source: None,
        }))
    }

    fn about(mut self, name: &str) -> Self {
        self.0.box_name = Some(name.to_owned());
        self
    }

    fn remedied(mut self, joint: Joint, remedy: Remedy) -> Self {
        self.0.remedy = Some((joint, remedy));
        self
    }

    fn because(mut self, source: impl error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Arc::new(source));
        self
    }

    /// An error of another crate or module. Its source is part of the message.
    fn from_source(kind: ErrorKind, source: impl error::Error + Send + Sync + 'static) -> Self {
        let mut message = source.to_string();
        if let Some(behind) = error::Error::source(&source).map(ToString::to_string)
            && !message.contains(&behind)
        {
            message += ": ";
            message += &behind;
        }
        Self::new(kind, message).because(source)
    }

    /// An I/O error on this machine's disk.
    fn from_io(kind: ErrorKind, what: &str, source: io::Error) -> Self {
        let is_full =
            matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let kind = if is_full { ErrorKind::DiskFull } else { kind };
        let error = Self::new(kind, format!("{what}: {source}")).because(source);
        if is_full { error.remedied(Joint::Colon, Remedy::FreeDiskSpace) } else { error }
    }
}

/// Requests.
impl Error {
    /// The options of a box are invalid. The error has all problems.
    pub(crate) fn options(problems: Vec<Problem>) -> Self {
        let mut error = Self::new(ErrorKind::Invalid, "the options of the box are wrong");
        error.0.problems = problems;
        error
    }

    /// Neither the caller nor the image gave a command.
    pub(crate) fn no_command(image: &str) -> Self {
        let message = format!("no command to run: the image {image} has none");
        Self::new(ErrorKind::Invalid, message).remedied(Joint::So, Remedy::GiveCommand)
    }

    /// A box of this name exists.
    pub(crate) fn name_in_use(name: &str) -> Self {
        Self::new(ErrorKind::AlreadyExists, format!("a box named {name} exists already"))
            .about(name)
            .remedied(Joint::Colon, Remedy::RemoveOrRename { name: name.to_owned() })
    }

    /// No box matches a name or a prefix of an ID.
    pub(crate) fn no_such_box(query: &str) -> Self {
        let message = format!("no box is called {query}, and no box's ID starts with it");
        Self::new(ErrorKind::NotFound, message)
            .about(query)
            .remedied(Joint::Semicolon, Remedy::ListBoxes)
    }

    /// Several boxes match a prefix of an ID.
    pub(crate) fn ambiguous(query: &str, names: &[String]) -> Self {
        let message = format!("{query} is ambiguous: it matches {}", names.join(", "));
        Self::new(ErrorKind::Invalid, message).remedied(Joint::Semicolon, Remedy::UseLongerPrefix)
    }

    /// The state of the box does not allow the operation.
    pub(crate) fn wrong_state(name: &str, state: &BoxState, remedy: Remedy) -> Self {
        Self::new(ErrorKind::WrongState, format!("the box {name} is {state}"))
            .about(name)
            .remedied(Joint::Colon, remedy)
    }

    /// Packets cannot be recorded in this file as asked.
    pub(crate) fn capture_refused(path: &Path, reason: &str) -> Self {
        let message = format!("cannot record packets in {}: {reason}", path.display());
        Self::new(ErrorKind::Invalid, message)
    }

    /// This process did not inherit the socket that it is to serve.
    pub(crate) fn no_socket(source: io::Error) -> Self {
        let message = format!(
            "there is no socket to serve as descriptor {LISTENER}: {source}; the library starts this command by itself"
        );
        Self::new(ErrorKind::Invalid, message).because(source)
    }

    /// The box's process refused the request.
    pub(crate) fn refused(name: &str, reason: &str) -> Self {
        Self::new(ErrorKind::WrongState, format!("the box {name}: {reason}")).about(name)
    }
}

/// This machine.
impl Error {
    /// Boxes cannot run where they were requested. `reason` includes what to do.
    pub(crate) fn no_virtualization(reason: impl Into<String>) -> Self {
        Self::new(ErrorKind::Host, reason)
    }

    /// The nested host failed.
    pub(crate) fn soft_host(source: nested::Error) -> Self {
        Self::from_source(ErrorKind::Host, source)
    }

    /// `action` failed on `path`, the home or a file in it. For `map_err`.
    pub(crate) fn home(
        action: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(io::Error) -> Self {
        let what = format!("{}: {action}", path.as_ref().display());
        move |source| Self::from_io(ErrorKind::Storage, &what, source)
    }

    /// The file that records packets. For `map_err`.
    pub(crate) fn capture(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let what = format!("cannot record packets in {}", path.display());
        move |source| {
            let kind = match source.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                _ => ErrorKind::Storage,
            };
            Self::from_io(kind, &what, source)
        }
    }

    /// The file that records packets is incomplete.
    pub(crate) fn capture_incomplete(path: &Path, why: impl Display, remedy: Remedy) -> Self {
        let message = format!("the capture {} is incomplete: {why}", path.display());
        Self::new(ErrorKind::CaptureIncomplete, message).remedied(Joint::Semicolon, remedy)
    }

    /// `action` failed on the home's database. For `map_err`.
    pub(crate) fn store(
        path: &Path,
        action: &'static str,
    ) -> impl Fn(rusqlite::Error) -> Self + use<> {
        let what = format!("{}: the list of boxes cannot be {action}", path.display());
        move |source| {
            Self::new(ErrorKind::Storage, format!("{what}: {source}"))
                .because(source)
                .remedied(Joint::Semicolon, Remedy::RemoveDatabase)
        }
    }

    /// A newer release wrote the home: its schema, and the newest schema that this release knows.
    pub(crate) fn newer_home(path: &Path, found: i64, known: i64) -> Self {
        let message = format!(
            "{} was written by a newer release (schema {found}, this one knows {known})",
            path.display()
        );
        Self::new(ErrorKind::Storage, message).remedied(Joint::Colon, Remedy::UseNewerRelease)
    }

    /// Neither an option nor the environment names a home folder.
    pub(crate) fn no_home() -> Self {
        Self::new(ErrorKind::Host, "there is no home folder")
            .remedied(Joint::Colon, Remedy::SetHome)
    }

    /// The executable of the boxes' processes was not found.
    pub(crate) fn no_launcher(tried: &str) -> Self {
        Self::new(ErrorKind::Host, format!("cannot find the boxlite-vmm executable {tried}"))
            .remedied(Joint::Colon, Remedy::SetLauncher)
    }

    /// A box's process could not be started or did not answer. For `map_err`.
    pub(crate) fn spawn(launcher: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let what = format!("cannot start the box's process {}", launcher.display());
        move |source| Self::new(ErrorKind::Host, format!("{what}: {source}")).because(source)
    }

    /// A task of the runtime failed: a bug.
    pub(crate) fn internal(what: impl Display) -> Self {
        Self::new(ErrorKind::Internal, format!("internal error: {what}"))
            .remedied(Joint::Semicolon, Remedy::ReportBug)
    }

    /// `what` did not happen within its timeout.
    pub(crate) fn timed_out(what: &str, timeout: Duration) -> Self {
        Self::new(ErrorKind::Timeout, format!("{what} did not happen within {timeout:?}"))
    }
}

/// Boxes and what runs in them.
impl Error {
    /// The box failed; without a name, the VM that builds an image's disk.
    pub(crate) fn failed(name: Option<&str>, reason: &FailureReason) -> Self {
        let kind = match reason {
            FailureReason::DiskFull(_) => ErrorKind::DiskFull,
            FailureReason::Port(_) => ErrorKind::Port,
            _ => ErrorKind::BoxFailed,
        };
        let subject = match name {
            Some(name) => format!("the box {name}"),
            None => "the VM that builds the image's disk".to_owned(),
        };
        let mut error = Self::new(kind, format!("{subject} failed: {}", reason.message()));
        error.0.box_name = name.map(str::to_owned);
        error.0.remedy = reason.remedy().map(|remedy| (Joint::Semicolon, remedy));
        error
    }

    /// The box stopped while it was in use.
    pub(crate) fn ended(name: &str, how: impl Display) -> Self {
        let message = format!("the box {name} ended while it was in use ({how})");
        Self::new(ErrorKind::BoxEnded, message).about(name)
    }

    /// A request to the guest's agent failed.
    pub(crate) fn guest(source: client::Error) -> Self {
        let kind = match source.failure().map(|failure| failure.kind) {
            Some(FailureKind::NotFound) => ErrorKind::CommandNotFound,
            Some(FailureKind::NoSuchPath) => ErrorKind::NotFound,
            Some(FailureKind::NotExecutable) => ErrorKind::NotExecutable,
            Some(FailureKind::DiskFull) => ErrorKind::DiskFull,
            Some(
                FailureKind::UnknownUser | FailureKind::WorkingDir | FailureKind::NotADirectory,
            ) => ErrorKind::Invalid,
            _ => ErrorKind::Guest,
        };
        Self::from_source(kind, source)
    }

    /// The command was killed at its timeout.
    pub(crate) fn command_timeout() -> Self {
        let message = "the command was killed: it did not end within its timeout";
        Self::new(ErrorKind::CommandTimeout, message)
    }
}

/// The guest files (kernel, initramfs, empty disk) are missing or damaged. [`LocateError`] has no remedy; this adds it.
impl From<LocateError> for Error {
    fn from(source: LocateError) -> Self {
        let remedy = match &source {
            LocateError::NotFound { arch: Arch::HOST, .. } => {
                Some((Joint::Line, Remedy::BuildGuestFiles))
            }
            LocateError::NotFound { arch, .. } => {
                let text = format!(
                    "build them with 'cargo xtask guest --arch {arch}', or set BOXLITE_GUEST_DIR to their folder"
                );
                Some((Joint::Line, Remedy::Other { text }))
            }
            LocateError::BadManifest { .. } | LocateError::Damaged { .. } => {
                Some((Joint::Semicolon, Remedy::RebuildGuestFiles))
            }
            LocateError::Io { .. } => None,
        };
        let mut error = Self::from_source(ErrorKind::Host, source);
        error.0.remedy = remedy;
        error
    }
}

/// Images and copies.
impl Error {
    /// An image could not be found, read, pulled, stored or removed, or its disk could not be built.
    pub(crate) fn image(source: boxlite_rootfs_builder::Error) -> Self {
        let (message, remedy) = image_parts(&source);
        let kind = match source {
            boxlite_rootfs_builder::Error::UnsupportedPlatform { .. } => ErrorKind::Invalid,
            _ => ErrorKind::Image,
        };
        let mut error = Self::from_source(kind, source);
        error.0.message = message;
        error.0.remedy = remedy;
        error
    }

    /// A copy between box and host failed on the host. For `map_err`.
    pub(crate) fn copy(path: impl AsRef<Path>) -> impl Fn(io::Error) -> Self {
        let what = format!("cannot copy {}", path.as_ref().display());
        move |source| {
            let kind = match source.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                _ => ErrorKind::Storage,
            };
            Self::from_io(kind, &what, source)
        }
    }

    /// The rules do not allow this copy.
    pub(crate) fn copy_refused(path: impl Display, reason: &str) -> Self {
        Self::new(ErrorKind::Invalid, format!("cannot copy {path}: {reason}"))
    }

    /// The box sent a malformed archive. `entry` is the entry's name, quoted and escaped.
    pub(crate) fn bad_archive(entry: &str, reason: impl Display) -> Self {
        let message = format!("the copy that the box sent is refused: entry {entry}: {reason}");
        Self::new(ErrorKind::Guest, message)
    }
}

/// The message and the remedy of an image's error.
fn image_parts(error: &boxlite_rootfs_builder::Error) -> (String, Option<(Joint, Remedy)>) {
    use boxlite_rootfs_builder::Error::Build;
    let text = error.to_string();
    // A disk is built by a VM of this runtime, whose error has a remedy of its own.
    if let Build { source, .. } = error
        && let Some(ours) = source.downcast_ref::<Error>()
        && let Some(before) = text.strip_suffix(&ours.to_string())
    {
        return (format!("{before}{}", ours.message()), ours.0.remedy.clone());
    }
    let Some(remedy) = error.remedy() else { return (text, None) };
    match without_remedy(&text, &remedy.to_string()) {
        Some((message, joint)) => (message.to_owned(), Some((joint, remedy.into()))),
        None => (text, None),
    }
}

/// The message of an error whose text ends with the words of a remedy.
fn without_remedy<'a>(text: &'a str, words: &str) -> Option<(&'a str, Joint)> {
    let text = text.strip_suffix(words)?;
    let joints = [Joint::Colon, Joint::Semicolon];
    joints.into_iter().find_map(|joint| Some((text.strip_suffix(joint.text())?, joint)))
}
