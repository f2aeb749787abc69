//! Running other programs: their output kept for the error message, their failure never overlooked.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::error::BuildError;

/// How many of its last lines an error shows of a program that failed.
const TAIL_LINES: usize = 20;
/// Longest line taken from a program's output, in bytes: what is longer is cut into several.
const LINE_LIMIT: u64 = 16 << 10;

/// Runs `command` to its end and returns what it wrote to its standard output.
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

/// Runs `command`, handing each line of its output to `on_line`; its errors and its last lines go
/// into the error.
pub(crate) fn lines(
    command: &mut Command,
    mut on_line: impl FnMut(&str),
) -> Result<(), BuildError> {
    let name = name(command);
    let spawn_error = |source| BuildError::Spawn { program: name.clone(), source };
    // One pipe for both streams keeps messages in the order in which they were written.
    let (reader, writer) = std::io::pipe().map_err(spawn_error)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().map_err(spawn_error)?)
        .stderr(writer)
        .spawn()
        .map_err(spawn_error)?;
    // The command holds the pipe's writing ends: drop them, or the reader never sees its end.
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

/// Runs a quiet `command` that fills the folder or file at `target`; tells its size on the way.
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

/// The bytes in a file, or in the files of a folder and its folders.
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
