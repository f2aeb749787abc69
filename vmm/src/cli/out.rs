//! Standard output: what a command prints, in the form that was asked for.

use std::io::{self, Write};

use anyhow::Result;
use clap::ValueEnum;
use console::{Style, style};
use serde::Serialize;

use crate::runtime::BoxState;

/// The form of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Aligned columns, for people
    #[default]
    Table,
    /// One JSON object a line, for programs
    Json,
}

/// Prints text as it is. Unlike `print!`, a reader that has gone is an error, which ends the command.
pub(super) fn print(text: impl AsRef<[u8]>) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_ref())?;
    stdout.flush()
}

/// Prints a line.
pub(super) fn line(text: impl std::fmt::Display) -> io::Result<()> {
    print(format!("{text}\n"))
}

/// Prints a value as one line of JSON.
pub(super) fn json_line(value: &impl Serialize) -> Result<()> {
    Ok(line(serde_json::to_string(value)?)?)
}

/// Prints a value as JSON for people and programs.
pub(super) fn json_pretty(value: &impl Serialize) -> Result<()> {
    Ok(line(serde_json::to_string_pretty(value)?)?)
}

/// Whether an error is a reader that has gone, as with `| head`.
pub(super) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    io.map(io::Error::kind).any(|kind| kind == io::ErrorKind::BrokenPipe)
}

/// Text in a box's state's colour, where standard output has colours.
pub(super) fn in_color_of(state: &BoxState, text: String) -> String {
    let color = match state {
        BoxState::Running => Style::new().green(),
        BoxState::Starting | BoxState::Stopping | BoxState::Paused => Style::new().yellow(),
        BoxState::Failed(_) => Style::new().red(),
        _ => Style::new(),
    };
    color.apply_to(text).to_string()
}

/// A mark of `doctor`, in the colour that it stands for.
pub(super) fn mark(text: &str) -> String {
    match text.trim() {
        "ok" => style(text).green(),
        "FAIL" => style(text).red(),
        _ => style(text).yellow(),
    }
    .to_string()
}
