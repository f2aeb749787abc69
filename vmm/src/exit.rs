//! Exit codes, and what went wrong in words.

use boxlite_runtime::{Error, ErrorKind};

use crate::{out, words};

/// Our own failure, where no command's exit code could be meant.
pub(crate) const FAILED: u8 = 1;
/// Our own failure where it could, and a command line that is not understood, as `docker run` has it.
const FAILED_OURSELVES: u8 = 125;
/// The command exists and cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// The command does not exist.
const NOT_FOUND: u8 = 127;
/// The command did not end in time, as coreutils' `timeout` has it.
const TIMED_OUT: u8 = 124;

/// The main command did not end in time; its box was ended with it.
#[derive(Debug, thiserror::Error)]
#[error("the command was killed: it did not end within its timeout")]
pub(crate) struct TimedOut;

/// Prints help or the version, or says what is not understood.
pub(crate) fn explain(usage: &clap::Error) -> u8 {
    let printed = usage.print();
    match (usage.use_stderr(), printed) {
        (true, _) => FAILED_OURSELVES,
        (false, Ok(())) => 0,
        (false, Err(e)) => failed(&out::Unwritten::text(e).into(), false),
    }
}

/// Says why a command failed; its exit code.
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

/// Says what went wrong.
pub(crate) fn report(error: &anyhow::Error) {
    out::note(format_args!("boxlite-vmm: {}", words::chain(error)));
}

/// What a shell says to a command that it cannot run; none for our own failures.
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
