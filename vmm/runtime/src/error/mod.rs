//! The runtime's error: one type for all failures. `make` has a constructor for each failure.

mod make;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::problem::Problem;
use crate::remedy::Remedy;

/// The result of a runtime operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed operation. [`kind`](Self::kind) is for programs. For people, [`message`](Self::message) says what failed
/// and [`remedy`](Self::remedy) what to do; `Display` has both, in the library's words.
///
/// Errors are the same for boxes on this machine and in the software host, except that an error from the software host
/// has no [`source`](std::error::Error::source).
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Error(Box<Parts>);

#[derive(Clone, Serialize, Deserialize)]
struct Parts {
    kind: ErrorKind,
    /// The name of the box.
    #[serde(default)]
    box_name: Option<String>,
    message: String,
    remedy: Option<(Joint, Remedy)>,
    #[serde(default)]
    problems: Vec<Problem>,
    #[serde(skip)]
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// The text between a message and its remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Joint {
    Colon,
    Semicolon,
    So,
    /// After a list, one item a line.
    Line,
}

impl Joint {
    fn text(self) -> &'static str {
        match self {
            Self::Colon => ": ",
            Self::Semicolon => "; ",
            Self::So => ", so ",
            Self::Line => "\n",
        }
    }
}

/// The kind of an error, for programs. Kinds are stable across releases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request is invalid.
    Invalid,
    /// The box, image or file does not exist.
    NotFound,
    /// The program does not exist.
    CommandNotFound,
    /// The program exists but cannot be executed.
    NotExecutable,
    /// The name is taken.
    AlreadyExists,
    /// The state of the box does not allow the operation.
    WrongState,
    /// The image, its registry or its disk failed.
    Image,
    /// The host lacks something: guest files, the launcher, virtualization, a permission.
    Host,
    /// The host's disk is full.
    DiskFull,
    /// A port of the host cannot be used.
    Port,
    /// A file of the home cannot be read or written.
    Storage,
    /// The box failed: its process, its kernel or its agent.
    BoxFailed,
    /// The box stopped while it was in use.
    BoxEnded,
    /// The operation timed out.
    Timeout,
    /// The command was killed at its timeout.
    CommandTimeout,
    /// Packets are missing in the file that records those of a box.
    CaptureIncomplete,
    /// Another failure in the guest.
    Guest,
    /// A bug in the runtime.
    Internal,
}

impl Error {
    /// The kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The name of the box that the error is about.
    pub fn box_name(&self) -> Option<&str> {
        self.0.box_name.as_deref()
    }

    /// What failed, and on which thing.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What to do about it, if the runtime knows. Errors of the software host and of virtualization have the remedy in
    /// their message instead.
    pub fn remedy(&self) -> Option<&Remedy> {
        self.0.remedy.as_ref().map(|(_, remedy)| remedy)
    }

    /// All problems of a box's options, if the error is about these. `Display` then has one line for each.
    pub fn problems(&self) -> &[Problem] {
        &self.0.problems
    }

    /// The message and the remedy, as in `to_string`, but with the remedy in the caller's words. Contains no
    /// [`problems`](Self::problems).
    pub fn to_string_with(&self, words: impl FnOnce(&Remedy) -> String) -> String {
        match &self.0.remedy {
            Some((joint, remedy)) => format!("{}{}{}", self.0.message, joint.text(), words(remedy)),
            None => self.0.message.clone(),
        }
    }

    /// Whether the box's process refused the request in a state that no operation changes.
    pub(crate) fn is_refusal(&self) -> bool {
        self.kind() == ErrorKind::WrongState && self.remedy().is_none()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.problems.is_empty() {
            return f.write_str(&self.to_string_with(Remedy::to_string));
        }
        let lines: Vec<_> = self.0.problems.iter().map(Problem::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts { kind, box_name, message, remedy, problems, source } = &*self.0;
        let mut f = f.debug_struct("Error");
        f.field("kind", kind).field("box_name", box_name).field("message", message);
        f.field("remedy", &remedy.as_ref().map(|(_, remedy)| remedy));
        f.field("problems", problems).field("source", source).finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
