//! What can go wrong with a box: one error for all of it, which is data and no enum. How each is made is in `make`.

mod make;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::problem::Problem;
use crate::remedy::Remedy;

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the runtime could not do what was asked. [`kind`](Self::kind) is for programs. For people there is the
/// [`message`](Self::message), and what to do as [`remedy`](Self::remedy); `Display` has both, in the library's words.
///
/// It is the same whether a box is on this machine or in the software host, but for its
/// [`source`](std::error::Error::source), which stays where it was.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Error(Box<Parts>);

#[derive(Clone, Serialize, Deserialize)]
struct Parts {
    kind: ErrorKind,
    /// The name of the box.
    #[serde(default)]
    sandbox: Option<String>,
    message: String,
    remedy: Option<(Joint, Remedy)>,
    #[serde(default)]
    problems: Vec<Problem>,
    #[serde(skip)]
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// What is between a message and a remedy in a sentence.
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

/// Kinds of error, for programs. They stay what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller asked for something that makes no sense.
    Invalid,
    /// The box, image or file does not exist.
    NotFound,
    /// The program does not exist.
    CommandNotFound,
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
    /// The command did not end in time; it has been killed.
    CommandTimeout,
    /// Something else in the guest.
    Guest,
    /// A bug.
    Internal,
}

impl Error {
    /// What kind of error it is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The box that it is about, by its name.
    pub fn sandbox(&self) -> Option<&str> {
        self.0.sandbox.as_deref()
    }

    /// What happened, to which thing.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What to do about it, if the runtime knows. For the software host and virtualization, the message says it.
    pub fn remedy(&self) -> Option<&Remedy> {
        self.0.remedy.as_ref().map(|(_, remedy)| remedy)
    }

    /// All that is wrong with the options of a box, if that is the error: then `Display` is these, a line each.
    pub fn problems(&self) -> &[Problem] {
        &self.0.problems
    }

    /// The message and the remedy, that in the words of whoever shows it, as one sentence.
    pub fn worded(&self, words: impl FnOnce(&Remedy) -> String) -> String {
        match &self.0.remedy {
            Some((joint, remedy)) => format!("{}{}{}", self.0.message, joint.text(), words(remedy)),
            None => self.0.message.clone(),
        }
    }

    /// Whether the box's process refused what was asked, in a state that nothing leads out of.
    pub(crate) fn is_refusal(&self) -> bool {
        self.kind() == ErrorKind::WrongState && self.remedy().is_none()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.problems.is_empty() {
            return f.write_str(&self.worded(Remedy::to_string));
        }
        let lines: Vec<_> = self.0.problems.iter().map(Problem::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts { kind, sandbox, message, remedy, problems, source } = &*self.0;
        let mut f = f.debug_struct("Error");
        f.field("kind", kind).field("sandbox", sandbox).field("message", message);
        f.field("remedy", &remedy.as_ref().map(|(_, remedy)| remedy));
        f.field("problems", problems).field("source", source).finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
