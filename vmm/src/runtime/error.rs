//! What can go wrong with a box. Every message says what happened, to which thing, and what to do.

use std::path::PathBuf;
use std::time::Duration;
use std::{fmt, io};

use super::options::Problem;
use crate::client;
use crate::machine::BootStage;

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the runtime could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The options of a box are wrong; all problems at once.
    #[error("{}", Lines(.0))]
    Options(Vec<Problem>),
    /// The image, or its disk.
    #[error(transparent)]
    Image(#[from] boxlite_rootfs_builder::Error),
    /// The guest files (kernel, initramfs, template) are not there.
    #[error(transparent)]
    GuestFiles(#[from] boxlite_kernel::LocateError),
    /// The home folder, or a file in it.
    #[error("{path}: {action}: {source}{}", full_disk(source))]
    Home {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// There is no home folder to be found.
    #[error("there is no home folder: set BOXLITE_HOME or HOME, or pass --home")]
    NoHome,
    /// The executable of the boxes' processes is not there.
    #[error("cannot find the boxlite-vmm executable {tried}: set BOXLITE_VMM to its path")]
    NoLauncher {
        /// Where it was looked for.
        tried: String,
    },
    /// A box of this name runs.
    #[error("a box named {0} runs already: choose another name, or stop that one")]
    NameInUse(String),
    /// The machine's process could not be started or talked to.
    #[error("cannot start the box's process {launcher}: {source}")]
    Spawn {
        /// The executable.
        launcher: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The machine could not be built or could not go on.
    #[error("the box's machine failed: {0}")]
    Machine(String),
    /// The guest's kernel panicked.
    #[error("the guest's kernel panicked; its last lines:\n{}", Lines(.0))]
    Panic(Vec<String>),
    /// The guest's agent gave up.
    #[error("the guest could not set the box up: {0}")]
    Agent(String),
    /// The guest ended while it was in use.
    #[error("the guest ended by itself (it was switched off or reset from inside)")]
    GuestEnded,
    /// The machine's process was killed or crashed.
    #[error("the box's process ended unexpectedly ({0}); the box is lost, start another")]
    ProcessEnded(String),
    /// The guest did not get ready in time.
    #[error(
        "the box was not ready after {timeout:?}: {}; run with --debug and look into console.log \
         in the box's folder, or give it more time (--ready-timeout)",
        match stage { Some(stage) => stage.doing(), None => "the machine was being built" }
    )]
    NotReady {
        /// The deadline.
        timeout: Duration,
        /// The last stage that was reached.
        stage: Option<BootStage>,
    },
    /// A request to the guest's agent failed.
    #[error(transparent)]
    Guest(#[from] client::Error),
    /// The command did not end in time; it has been killed.
    #[error("the command was killed: it did not end within its timeout")]
    CommandTimeout,
    /// There is no command: neither the caller nor the image gave one.
    #[error("no command to run: the image {image} has none, so give one")]
    NoCommand {
        /// The image.
        image: String,
    },
    /// A task of the runtime itself failed: a bug.
    #[error("internal error: {0}; please report it")]
    Internal(String),
}

impl Error {
    /// An error of `action` on `path`, for `map_err`.
    pub(crate) fn home(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Home { path, action, source }
    }
}

fn full_disk(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ": free some room there, or choose another home (--home)"
        }
        _ => "",
    }
}

struct Lines<'a, T>(&'a [T]);

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
