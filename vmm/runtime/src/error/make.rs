//! How each error is made: its kind, its message, and what to do.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::{error, io};

use boxlite_kernel::LocateError;
use boxlite_proto::message::FailureKind;

use super::{Error, ErrorKind, Joint, Parts};
use crate::problem::Problem;
use crate::remedy::Remedy;
use crate::state::{BoxState, FailureReason};
use crate::{client, nested};

impl Error {
    fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let (message, problems) = (message.into(), Vec::new());
        Self(Box::new(Parts { kind, sandbox: None, message, remedy: None, problems, source: None }))
    }

    fn about(mut self, name: &str) -> Self {
        self.0.sandbox = Some(name.to_owned());
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

    /// An error of another crate or module, whose message has what is behind it.
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

    /// An error of the system on this machine's disk.
    fn from_io(kind: ErrorKind, what: &str, source: io::Error) -> Self {
        let is_full =
            matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let kind = if is_full { ErrorKind::DiskFull } else { kind };
        let error = Self::new(kind, format!("{what}: {source}")).because(source);
        if is_full { error.remedied(Joint::Colon, Remedy::FreeRoom) } else { error }
    }
}

/// What is asked for.
impl Error {
    /// The options of a box are wrong: all problems at once.
    pub(crate) fn options(problems: Vec<Problem>) -> Self {
        let mut error = Self::new(ErrorKind::Invalid, "the options of the box are wrong");
        error.0.problems = problems;
        error
    }

    /// There is no command: neither the caller nor the image gave one.
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

    /// No box is called so.
    pub(crate) fn no_such_box(query: &str) -> Self {
        let message = format!("no box is called {query}, and no box's ID begins so");
        Self::new(ErrorKind::NotFound, message)
            .about(query)
            .remedied(Joint::Semicolon, Remedy::ListBoxes)
    }

    /// Several boxes could be meant.
    pub(crate) fn ambiguous(query: &str, names: &[String]) -> Self {
        let message = format!("{query} could be each of {}", names.join(", "));
        Self::new(ErrorKind::Invalid, message).remedied(Joint::Semicolon, Remedy::MoreOfId)
    }

    /// It cannot be done in the state in which the box is.
    pub(crate) fn wrong_state(name: &str, state: &BoxState, remedy: Remedy) -> Self {
        Self::new(ErrorKind::WrongState, format!("the box {name} is {state}"))
            .about(name)
            .remedied(Joint::Colon, remedy)
    }

    /// The box's process refused, and why.
    pub(crate) fn refused(name: &str, reason: &str) -> Self {
        Self::new(ErrorKind::WrongState, format!("the box {name}: {reason}")).about(name)
    }
}

/// This machine.
impl Error {
    /// Boxes cannot run where they are to; why, and what to do.
    pub(crate) fn no_virtualization(reason: impl Into<String>) -> Self {
        Self::new(ErrorKind::Host, reason)
    }

    /// The guest files (kernel, initramfs, empty disk) are missing or damaged.
    pub(crate) fn guest_files(source: LocateError) -> Self {
        let remedy = match &source {
            LocateError::NotFound { .. } => Some((Joint::Line, Remedy::BuildGuestFiles)),
            LocateError::BadManifest { .. } | LocateError::Damaged { .. } => {
                Some((Joint::Semicolon, Remedy::RebuildGuestFiles))
            }
            LocateError::Io { .. } => None,
        };
        let mut error = Self::from_source(ErrorKind::Host, source);
        error.0.remedy = remedy;
        error
    }

    /// The software host.
    pub(crate) fn soft_host(source: nested::Error) -> Self {
        Self::from_source(ErrorKind::Host, source)
    }

    /// The home folder, or a file in it: `action` was tried on `path`. For `map_err`.
    pub(crate) fn home(
        action: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(io::Error) -> Self {
        let what = format!("{}: {action}", path.as_ref().display());
        move |source| Self::from_io(ErrorKind::Storage, &what, source)
    }

    /// The home's database: what was tried. For `map_err`.
    pub(crate) fn store(
        path: &Path,
        action: &'static str,
    ) -> impl Fn(rusqlite::Error) -> Self + use<> {
        let what = format!("{}: the list of boxes cannot be {action}", path.display());
        move |source| {
            Self::new(ErrorKind::Storage, format!("{what}: {source}"))
                .because(source)
                .remedied(Joint::Semicolon, Remedy::RemakeDatabase)
        }
    }

    /// The home was last used by a newer release: its schema, and the newest that is known here.
    pub(crate) fn newer_home(path: &Path, found: i64, known: i64) -> Self {
        let message = format!(
            "{} was written by a newer release (schema {found}, this one knows {known})",
            path.display()
        );
        Self::new(ErrorKind::Storage, message).remedied(Joint::Colon, Remedy::UseNewerRelease)
    }

    /// There is no home folder to be found.
    pub(crate) fn no_home() -> Self {
        Self::new(ErrorKind::Host, "there is no home folder")
            .remedied(Joint::Colon, Remedy::SetHome)
    }

    /// The executable of the boxes' processes is not where it was looked for.
    pub(crate) fn no_launcher(tried: &str) -> Self {
        Self::new(ErrorKind::Host, format!("cannot find the boxlite-vmm executable {tried}"))
            .remedied(Joint::Colon, Remedy::SetLauncher)
    }

    /// A machine's process could not be started or talked to. For `map_err`.
    pub(crate) fn spawn(launcher: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let what = format!("cannot start the box's process {}", launcher.display());
        move |source| Self::new(ErrorKind::Host, format!("{what}: {source}")).because(source)
    }

    /// A task of the runtime itself failed: a bug.
    pub(crate) fn internal(what: impl Display) -> Self {
        Self::new(ErrorKind::Internal, format!("internal error: {what}"))
            .remedied(Joint::Semicolon, Remedy::Report)
    }

    /// Something did not happen in the time that it may take.
    pub(crate) fn timed_out(what: &str, timeout: Duration) -> Self {
        Self::new(ErrorKind::Timeout, format!("{what} did not happen within {timeout:?}"))
    }
}

/// Boxes and what runs in them.
impl Error {
    /// The box, or without a name the machine that makes a disk, failed.
    pub(crate) fn failed(name: Option<&str>, reason: &FailureReason) -> Self {
        let kind = match reason {
            FailureReason::DiskFull(_) => ErrorKind::DiskFull,
            FailureReason::Port(_) => ErrorKind::Port,
            _ => ErrorKind::BoxFailed,
        };
        let subject = match name {
            Some(name) => format!("the box {name}"),
            None => "the machine that makes the image's disk".to_owned(),
        };
        let mut error = Self::new(kind, format!("{subject} failed: {}", reason.message()));
        error.0.sandbox = name.map(str::to_owned);
        error.0.remedy = reason.remedy().map(|remedy| (Joint::Semicolon, remedy));
        error
    }

    /// The box ended while it was in use.
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

    /// The command did not end in time; it has been killed.
    pub(crate) fn command_timeout() -> Self {
        let message = "the command was killed: it did not end within its timeout";
        Self::new(ErrorKind::CommandTimeout, message)
    }
}

/// For callers of [`GuestFiles`](crate::GuestFiles), whose own errors state no remedy.
impl From<LocateError> for Error {
    fn from(source: LocateError) -> Self {
        Self::guest_files(source)
    }
}

/// Images and copies.
impl Error {
    /// An image could not be found, read, pulled, kept or removed, or its disk not be made.
    pub(crate) fn image(source: boxlite_rootfs_builder::Error) -> Self {
        let (message, remedy) = image_parts(&source);
        let mut error = Self::from_source(ErrorKind::Image, source);
        error.0.message = message;
        error.0.remedy = remedy;
        error
    }

    /// A copy between box and host failed on the host's side. For `map_err`.
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

    /// A path cannot be copied as asked.
    pub(crate) fn copy_refused(path: impl Display, reason: &str) -> Self {
        Self::new(ErrorKind::Invalid, format!("cannot copy {path}: {reason}"))
    }

    /// What the box sent as a copy is not one: the name of the entry, quoted and escaped, and what is wrong with it.
    pub(crate) fn bad_archive(entry: &str, reason: impl Display) -> Self {
        let message = format!("the copy that the box sent is refused: entry {entry}: {reason}");
        Self::new(ErrorKind::Guest, message)
    }
}

/// The message of an image's error, and its remedy.
fn image_parts(error: &boxlite_rootfs_builder::Error) -> (String, Option<(Joint, Remedy)>) {
    use boxlite_rootfs_builder::Error::Build;
    let text = error.to_string();
    // What makes the disk is a box's machine, whose errors are ours.
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

/// The message of an error whose text ends with these words.
fn without_remedy<'a>(text: &'a str, words: &str) -> Option<(&'a str, Joint)> {
    let text = text.strip_suffix(words)?;
    let joints = [Joint::Colon, Joint::Semicolon];
    joints.into_iter().find_map(|joint| Some((text.strip_suffix(joint.text())?, joint)))
}
