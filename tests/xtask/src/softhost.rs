//! `cargo xtask softhost`: builds what the software host needs and runs a command in it.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context, Result};

use crate::{build, guest};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Runs the command; its exit code is ours.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let guest = guest::build(&guest::Options::default())?;
    let launcher = build::launcher()?;
    let status = Command::new(&launcher)
        .env("BOXLITE_GUEST_DIR", guest)
        .args(["softhost", "--"])
        .args(&options.command)
        .status()
        .with_context(|| format!("cannot run {}", launcher.display()))?;
    Ok(exit_code(status))
}

/// The exit code that passes on how a program ended; 128 and the signal's number for one that was
/// killed.
pub(crate) fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
