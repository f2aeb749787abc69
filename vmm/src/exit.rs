//! Exit codes, and reports of failures.

use boxlite_runtime::{Error, ErrorKind};

use crate::{out, words};

/// Failure of a command of ours that returns no exit code of a box's command.
pub(crate) const FAILED: u8 = 1;
/// Failure of a command of ours that does, and a usage error, as in `docker run`.
const FAILED_OURSELVES: u8 = 125;
/// The box's command exists but cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// The box's command does not exist.
const NOT_FOUND: u8 = 127;
/// The box's command was killed at its timeout, as in coreutils' `timeout`.
const TIMED_OUT: u8 = 124;

/// The main command was killed at its timeout, and its box stopped.
#[derive(Debug, thiserror::Error)]
#[error("the command was killed: it did not end within its timeout")]
pub(crate) struct TimedOut;

/// Prints help, the version or a usage error. Returns the exit code.
pub(crate) fn explain(usage: &clap::Error) -> u8 {
    let printed = usage.print();
    match (usage.use_stderr(), printed) {
        (true, _) => FAILED_OURSELVES,
        (false, Ok(())) => 0,
        (false, Err(e)) => failed(&out::Unwritten::text(e).into(), false),
    }
}

/// Reports why a command failed. Returns its exit code.
pub(crate) fn failed(error: &anyhow::Error, stands_in: bool) -> u8 {
    if out::is_read_enough(error) {
        return 0;
    }
    report(error);
    match command_code(error) {
        Some(code) if stands_in => code,
        _ if stands_in => FAILED_OURSELVES,
        _ => FAILED,
    }
}

/// Prints an error.
pub(crate) fn report(error: &anyhow::Error) {
    out::note(format_args!("boxlite-vmm: {}", words::chain(error)));
}

/// The exit code of a shell for a command that cannot run; none for other failures.
fn command_code(error: &anyhow::Error) -> Option<u8> {
    if error.is::<TimedOut>() {
        return Some(TIMED_OUT);
    }
    match error.downcast_ref::<Error>()?.kind() {
        ErrorKind::CommandTimeout => Some(TIMED_OUT),
        ErrorKind::CommandNotFound => Some(NOT_FOUND),
        ErrorKind::NotExecutable => Some(NOT_EXECUTABLE),
        _ => None,
    }
}
