//! What to do about errors. The messages of [`Error`] end with it; programs that show it apart have
//! it from [`Error::remedy`].

use std::io;

use boxlite_rootfs_builder::Remedy as ImageRemedy;

use super::error::Error;
use super::state::FailureReason;
use crate::audience::{Words, is_embedder};

pub(super) const NEW_DATABASE: &str =
    "if it is damaged, remove it: it is made anew from the boxes' folders";
pub(super) const NEWER_RELEASE: &str = "use that release, or another home";
pub(super) const SET_HOME: Words = Words {
    typed: "set BOXLITE_HOME or HOME, or pass --home",
    embedded: "set BOXLITE_HOME or HOME, or RuntimeOptions::home",
};
pub(super) const SET_LAUNCHER: &str = "set BOXLITE_VMM to its path";
pub(super) const LIST_BOXES: Words =
    Words { typed: "`ls --all` lists them", embedded: "Runtime::list has them" };
pub(super) const MORE_OF_ID: &str = "give more of the ID";
pub(super) const GIVE_COMMAND: &str = "give one";
pub(super) const REPORT: &str = "please report it";
const FREE_ROOM: Words = Words {
    typed: "free some room there, or choose another home (--home)",
    embedded: "free some room there, or choose another home (RuntimeOptions::home)",
};
const MORE_MEMORY: Words =
    Words { typed: "give it more (--memory)", embedded: "give it more (BoxOptions::memory_mib)" };
const LOOK_AT_CONSOLE: Words = Words {
    typed: "run with --debug and look into console.log in the box's folder, or give it more \
            time (--ready-timeout)",
    embedded: "set BoxOptions::console and look into console.log in the box's folder, or give it \
               more time (BoxOptions::ready_timeout)",
};

const NAME_ON_IMPORT: Words = Words {
    typed: "save it with its name, or import it under one: `image import docker-archive:FILE NAME`",
    embedded: "save it with its name, or import it under one (Images::import)",
};

/// The remedy of an image's error in our readers' words, where those are others than its own.
pub(super) fn of_image(remedy: &ImageRemedy) -> Option<String> {
    match remedy {
        ImageRemedy::NameOnImport => Some(NAME_ON_IMPORT.to_string()),
        _ => None,
    }
}

/// What to do about a name that is taken.
pub(super) fn name_in_use(name: &str) -> String {
    format!("choose another name, or remove it ({})", on_box("rm", "Runtime::remove", name))
}

/// What to do first about a box that does not run.
pub(super) fn start_first(name: &str) -> String {
    format!("start it first ({})", on_box("start", "BoxHandle::start", name))
}

/// What to do first about a box that is paused.
pub(super) fn resume_first(name: &str) -> String {
    format!("resume it first ({})", on_box("resume", "BoxHandle::resume", name))
}

/// What to do about a box that is to be removed and lives.
pub(super) fn stop_first() -> String {
    let force = if is_embedder() { "BoxHandle::remove(true)" } else { "rm --force" };
    format!("stop it first, or remove it by force ({force})")
}

/// What does something with a box: a command, or a method.
fn on_box(command: &str, method: &str, name: &str) -> String {
    if is_embedder() { method.to_owned() } else { format!("{command} {name}") }
}

/// What to do about an error of the system, as the end of a message; nothing if that is not known.
pub(super) fn of_io(error: &io::Error) -> String {
    full_disk(error).map_or_else(String::new, |remedy| format!(": {remedy}"))
}

fn full_disk(error: &io::Error) -> Option<&'static str> {
    let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    full.contains(&error.kind()).then_some(FREE_ROOM.get())
}

impl FailureReason {
    /// What to do about it, if that is known.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::ProcessDied => Some("start it again"),
            Self::OutOfMemory => Some(MORE_MEMORY.get()),
            Self::DiskFull(_) => Some("free some room, then start it again"),
            Self::NotReady { .. } => Some(LOOK_AT_CONSOLE.get()),
            // Its message has the remedy.
            Self::Port(_) => None,
            Self::Panic(_) | Self::Unhealthy(_) | Self::Agent(_) | Self::Machine(_) => None,
        }
    }
}

impl Error {
    /// What to do about it, if the runtime knows; the message ends with it. Errors of guest files and
    /// the software host have theirs in their messages alone.
    pub fn remedy(&self) -> Option<String> {
        let remedy = match self {
            Self::Store { .. } => NEW_DATABASE,
            Self::NewerHome { .. } => NEWER_RELEASE,
            Self::NoHome => SET_HOME.get(),
            Self::NoLauncher { .. } => SET_LAUNCHER,
            Self::NameInUse { name } => return Some(name_in_use(name)),
            Self::NoSuchBox { .. } => LIST_BOXES.get(),
            Self::Ambiguous { .. } => MORE_OF_ID,
            Self::WrongState { remedy, .. } => remedy,
            Self::Home { source, .. } | Self::Copy { source, .. } => full_disk(source)?,
            Self::Failed { reason, .. } => reason.remedy()?,
            Self::NoCommand { .. } => GIVE_COMMAND,
            Self::Image(error) => return error.remedy(),
            Self::Remote(remote) => return remote.remedy.clone(),
            Self::Internal(_) => REPORT,
            _ => return None,
        };
        Some(remedy.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::error::RemoteError;
    use super::*;

    fn image(remedy: ImageRemedy) -> Error {
        boxlite_rootfs_builder::Error::Missing { what: "x".into(), remedy }.into()
    }

    #[test]
    fn an_embedder_reads_of_no_flags() {
        let state = super::super::BoxState::Configured;
        let wrong = |remedy| Error::WrongState { name: "web".into(), state: state.clone(), remedy };
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let reason = FailureReason::NotReady { timeout_ms: 1, stage: None };
        for error in [
            Error::NoHome,
            Error::NameInUse { name: "web".into() },
            Error::NoSuchBox { query: "x".into() },
            Error::Failed { name: None, reason },
            Error::Failed { name: None, reason: FailureReason::OutOfMemory },
            Error::Home { path: "/x".into(), action: "written", source: full },
            image(ImageRemedy::NameOnImport),
            wrong(start_first("web")),
            wrong(resume_first("web")),
            wrong(stop_first()),
        ] {
            let text = error.to_string();
            assert!(!text.contains("--") && !text.contains(" web)"), "{text}");
            assert!(text.contains("::"), "{text} names nothing of the library");
        }
    }

    #[test]
    fn messages_end_with_the_remedy_here_and_from_the_software_host() {
        let reason = FailureReason::NotReady { timeout_ms: 1, stage: None };
        let full = io::Error::from(io::ErrorKind::StorageFull);
        for error in [
            Error::NoHome,
            Error::NameInUse { name: "web".into() },
            Error::NoSuchBox { query: "x".into() },
            Error::Failed { name: None, reason },
            Error::Failed { name: None, reason: FailureReason::OutOfMemory },
            Error::Home { path: "/x".into(), action: "written", source: full },
            Error::Internal("x".into()),
            image(ImageRemedy::NameOnImport),
            image(ImageRemedy::PullOrImport),
        ] {
            let remedy = error.remedy().unwrap();
            assert!(error.to_string().ends_with(&remedy), "{error}");
            let remote = Error::from(Box::new(RemoteError::from(&error)));
            assert_eq!((remote.remedy(), remote.to_string()), (Some(remedy), error.to_string()));
        }
        let late = Error::Timeout { what: "it".into(), timeout: Duration::ZERO };
        assert_eq!(late.remedy(), None);
    }
}
