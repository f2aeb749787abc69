//! Standard output. Every command writes through this module, so that a failed write is an error. For standard error,
//! see [`note`].

use std::io::{self, Write};

use anyhow::Result;
use clap::ValueEnum;
use console::{Style, style};
use serde::Serialize;

use boxlite_runtime::BoxState;
use boxlite_runtime::client;

/// The format of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns, for people
    #[default]
    Table,
    /// One JSON object a line, for programs
    Json,
}

/// A failed write to standard output.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub(crate) struct Unwritten {
    source: io::Error,
    /// Whether a part of the output is useless, as that of an archive.
    whole: bool,
}

impl Unwritten {
    /// An error of another writer of text.
    pub(crate) fn text(source: io::Error) -> Self {
        Self { source, whole: false }
    }
}

/// Prints text verbatim. Unlike with `print!`, a closed pipe is an error, which ends the command.
pub(crate) fn print(text: impl AsRef<[u8]>) -> Result<(), Unwritten> {
    write(text.as_ref()).map_err(Unwritten::text)
}

/// Writes a piece of an archive. A closed pipe is a failure, too, as a part of an archive is useless.
pub(crate) fn data(bytes: &[u8]) -> Result<(), Unwritten> {
    write(bytes).map_err(|source| Unwritten { source, whole: true })
}

fn write(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Prints a line.
pub(crate) fn line(text: impl std::fmt::Display) -> Result<(), Unwritten> {
    print(format!("{text}\n"))
}

/// Prints a line on standard error. Unlike `eprintln!`, does not panic if that fails.
pub(crate) fn note(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints a question on standard error, without a line break.
pub(crate) fn question(text: impl std::fmt::Display) {
    let mut stderr = io::stderr();
    let _ = write!(stderr, "{text} ").and_then(|()| stderr.flush());
}

/// Prints a value as one line of JSON.
pub(crate) fn json_line(value: &impl Serialize) -> Result<()> {
    Ok(line(serde_json::to_string(value)?)?)
}

/// Prints a value as indented JSON.
pub(crate) fn json_pretty(value: &impl Serialize) -> Result<()> {
    Ok(line(serde_json::to_string_pretty(value)?)?)
}

/// Whether the reader of our standard output closed it early, as `head` does. Any other broken pipe is a failure.
pub(crate) fn is_read_enough(error: &anyhow::Error) -> bool {
    if let Some(Unwritten { source, whole }) = error.downcast_ref() {
        return !whole && source.kind() == io::ErrorKind::BrokenPipe;
    }
    error.downcast_ref::<client::WriteError>().is_some_and(client::WriteError::is_closed_pipe)
}

/// Text in the colour of a box's state, if standard output has colours.
pub(crate) fn in_color_of(state: &BoxState, text: String) -> String {
    let color = match state {
        BoxState::Running => Style::new().green(),
        BoxState::Starting | BoxState::Stopping | BoxState::Paused => Style::new().yellow(),
        BoxState::Failed(_) => Style::new().red(),
        _ => Style::new(),
    };
    color.apply_to(text).to_string()
}

/// A verdict of `doctor`, in its colour.
pub(crate) fn mark(text: &str) -> String {
    match text.trim() {
        "ok" => style(text).green(),
        "FAIL" => style(text).red(),
        _ => style(text).yellow(),
    }
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A failure with a broken pipe behind it that is none of our own output's.
    #[derive(Debug, thiserror::Error)]
    #[error("asked")]
    struct Asked(#[source] io::Error);

    #[test]
    fn a_broken_pipe_is_silent_only_on_our_own_output() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let text = |source| anyhow::Error::from(Unwritten::text(source));
        assert!(is_read_enough(&text(broken())));
        assert!(is_read_enough(&text(broken()).context("the list")));
        assert!(!is_read_enough(&text(full)));
        let data = Unwritten { source: broken(), whole: true };
        assert!(!is_read_enough(&data.into()));
        // A box's process that dies at once, a box that ends while it is asked, a file that is a pipe.
        assert!(!is_read_enough(&broken().into()));
        assert!(!is_read_enough(&Asked(broken()).into()));
        assert!(!is_read_enough(&anyhow::Error::from(Asked(broken())).context(broken())));
    }
}
