//! Runs other programs; keeps their output for errors, and never ignores a failure.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::error::BuildError;

/// Number of lines of a failed program's output in its error.
const TAIL_LINES: usize = 20;
/// Maximum length of a line, in bytes; longer ones are split.
const LINE_LIMIT: u64 = 16 << 10;

/// Runs `command` to its end and returns its standard output.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>, BuildError> {
    let name = name(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| BuildError::Spawn { program: name.clone(), source })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(BuildError::Command {
        program: name,
        status: output.status.to_string(),
        output: tail(text.lines().map(str::to_owned).collect()),
    })
}

/// Runs `command` and passes each line of its output to `on_line`; the error has the last lines.
pub(crate) fn lines(
    command: &mut Command,
    mut on_line: impl FnMut(&str),
) -> Result<(), BuildError> {
    let name = name(command);
    let spawn_error = |source| BuildError::Spawn { program: name.clone(), source };
    // One pipe for both streams keeps the order of their messages.
    let (reader, writer) = std::io::pipe().map_err(spawn_error)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().map_err(spawn_error)?)
        .stderr(writer)
        .spawn()
        .map_err(spawn_error)?;
    // The command holds the pipe's write ends: drop them, or the reader never sees EOF.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let mut kept = Vec::new();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.by_ref().take(LINE_LIMIT).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        on_line(text);
        if kept.len() == 4 * TAIL_LINES {
            kept.drain(..2 * TAIL_LINES);
        }
        kept.push(text.to_owned());
    }
    let status = child.wait().map_err(spawn_error)?;
    if status.success() {
        return Ok(());
    }
    Err(BuildError::Command { program: name, status: status.to_string(), output: tail(kept) })
}

/// Runs `command`, which fills `target`; calls `on_size` with its size on the way.
pub(crate) fn watch(
    command: &mut Command,
    target: &Path,
    mut on_size: impl FnMut(u64),
) -> Result<(), BuildError> {
    thread::scope(|scope| {
        let runner = scope.spawn(|| output(command).map(drop));
        while !runner.is_finished() {
            on_size(size_of(target));
            thread::sleep(Duration::from_millis(100));
        }
        runner.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Size of a file, or of all files in a folder, in bytes.
fn size_of(path: &Path) -> u64 {
    let Ok(entries) = path.read_dir() else {
        return path.metadata().map_or(0, |meta| meta.len());
    };
    entries.flatten().map(|entry| size_of(&entry.path())).sum()
}

fn name(command: &Command) -> String {
    let program = Path::new(command.get_program());
    program.file_name().unwrap_or(OsStr::new("command")).to_string_lossy().into_owned()
}

fn tail(mut lines: Vec<String>) -> String {
    let start = lines.len().saturating_sub(TAIL_LINES);
    lines.drain(..start);
    lines.join("\n")
}

#[cfg(test)]
mod tests;
