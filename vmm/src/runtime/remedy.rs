//! What to do about errors. The messages of [`Error`] end with it; programs that show it apart have
//! it from [`Error::remedy`].

use std::io;

use super::error::Error;
use super::state::FailureReason;

pub(super) const NEW_DATABASE: &str =
    "if it is damaged, remove it: it is made anew from the boxes' folders";
pub(super) const NEWER_RELEASE: &str = "use that release, or another home";
pub(super) const SET_HOME: &str = "set BOXLITE_HOME or HOME, or pass --home";
pub(super) const SET_LAUNCHER: &str = "set BOXLITE_VMM to its path";
pub(super) const LIST_BOXES: &str = "`ls --all` lists them";
pub(super) const MORE_OF_ID: &str = "give more of the ID";
pub(super) const GIVE_COMMAND: &str = "give one";
pub(super) const REPORT: &str = "please report it";
const FREE_ROOM: &str = "free some room there, or choose another home (--home)";

/// What to do about a name that is taken.
pub(super) fn name_in_use(name: &str) -> String {
    format!("choose another name, or remove it (rm {name})")
}

/// What to do about an error of the system, as the end of a message; nothing if that is not known.
pub(super) fn of_io(error: &io::Error) -> String {
    full_disk(error).map_or_else(String::new, |remedy| format!(": {remedy}"))
}

fn full_disk(error: &io::Error) -> Option<&'static str> {
    let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    full.contains(&error.kind()).then_some(FREE_ROOM)
}

impl FailureReason {
    /// What to do about it, if that is known.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::ProcessDied => Some("start it again"),
            Self::OutOfMemory => Some("give it more (--memory)"),
            Self::DiskFull(_) => Some("free some room, then start it again"),
            Self::NotReady { .. } => Some(
                "run with --debug and look into console.log in the box's folder, or give it more \
                 time (--ready-timeout)",
            ),
            // Its message has the remedy.
            Self::Port(_) => None,
            Self::Panic(_) | Self::Unhealthy(_) | Self::Agent(_) | Self::Machine(_) => None,
        }
    }
}

impl Error {
    /// What to do about it, if the runtime knows; the message ends with it. Errors of images, guest
    /// files and the software host have theirs in their messages alone.
    pub fn remedy(&self) -> Option<String> {
        let remedy = match self {
            Self::Store { .. } => NEW_DATABASE,
            Self::NewerHome { .. } => NEWER_RELEASE,
            Self::NoHome => SET_HOME,
            Self::NoLauncher { .. } => SET_LAUNCHER,
            Self::NameInUse { name } => return Some(name_in_use(name)),
            Self::NoSuchBox { .. } => LIST_BOXES,
            Self::Ambiguous { .. } => MORE_OF_ID,
            Self::WrongState { remedy, .. } => remedy,
            Self::Home { source, .. } | Self::Copy { source, .. } => full_disk(source)?,
            Self::Failed { reason, .. } => reason.remedy()?,
            Self::NoCommand { .. } => GIVE_COMMAND,
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
