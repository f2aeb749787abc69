//! `boxlite-vmm run`: a new box, a command in it, and the box thrown away.

use std::os::unix::ffi::OsStringExt;

use anyhow::{Context, Result};
use boxlite_proto::message::{Control, FailureKind};

use super::args::{Global, Run};
use super::progress::ImageBar;
use super::{NOT_EXECUTABLE, NOT_FOUND, TIMED_OUT};
use crate::client::{Attachment, Streams, exit_code};
use crate::runtime::{BoxHandle, BoxOptions, Error, Runtime, RuntimeOptions};

pub(super) async fn run(global: &Global, args: Run) -> Result<u8> {
    let options = options(global, &args)?;
    // Before a slow machine is started for nothing.
    options.validate()?;
    if let Some(code) = global.elsewhere().await? {
        return Ok(code);
    }
    let mut attachment = Attachment::new(args.tty).context("cannot handle signals")?;
    let home = global.home()?;
    let runtime = Runtime::open(RuntimeOptions::default().home(home.path()))?;
    let booted = tokio::select! {
        booted = runtime.create_with_progress(options, ImageBar::new()) => booted?,
        signal = attachment.interrupted() => return Ok(128 | (signal & 0x7f) as u8),
    };
    tracing::debug!(id = booted.id(), after = ?booted.boot_time(), "ready");
    let result = attached(attachment, &booted, args).await;
    booted.stop().await?;
    match result {
        Ok(code) => Ok(code),
        Err(e) => failed(e),
    }
}

fn options(global: &Global, args: &Run) -> Result<BoxOptions> {
    let mut options = BoxOptions::new(args.image().map_err(anyhow::Error::msg)?)
        .cpus(args.cpus)
        .memory_mib(args.memory)
        .ready_timeout(args.ready_timeout)
        .console(global.debug);
    options.name = args.name.clone();
    options.disk_size_gb = args.disk_size;
    options.working_dir = args.workdir.clone();
    options.user = args.user.clone();
    options.entrypoint = args
        .entrypoint
        .as_ref()
        .map(|program| if program.is_empty() { vec![] } else { vec![program.clone()] });
    for variable in &args.env {
        let (name, value) = match variable.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            // As docker has it: a variable that is not set here is not set there.
            None => match std::env::var(variable) {
                Ok(value) => (variable.as_str(), value),
                Err(_) => continue,
            },
        };
        options = options.env(name, value);
    }
    Ok(options)
}

/// Runs the command with this process's streams, signals and terminal.
async fn attached(mut attachment: Attachment, sandbox: &BoxHandle, args: Run) -> Result<u8, Error> {
    let command = args.command().cloned().map(OsStringExt::into_vec);
    let mut command = sandbox.main_command::<Vec<u8>>(command)?.stdin(args.interactive);
    if let Some(size) = attachment.terminal_size() {
        command = command.terminal(size);
    }
    if let Some(timeout) = args.timeout {
        command = command.timeout(timeout);
    }
    let mut execution = tokio::select! {
        execution = command.spawn() => execution?,
        signal = attachment.interrupted() => return Ok(128 | (signal & 0x7f) as u8),
    };
    let streams = Streams {
        stdin: execution.stdin(),
        stdout: execution.stdout(),
        stderr: execution.stderr(),
    };
    let execution = execution;
    let control = |control| match control {
        Control::Signal(signal) => execution.signal(signal),
        Control::Resize(size) => execution.resize(size),
        _ => execution.kill(),
    };
    Ok(exit_code(attachment.run(streams, control, execution.wait()).await?))
}

/// What a shell says to a command that it cannot run; everything else is our own failure.
fn failed(error: Error) -> Result<u8> {
    let code = match &error {
        Error::CommandTimeout => TIMED_OUT,
        Error::Guest(guest) => match guest.failure().map(|failure| failure.kind) {
            Some(FailureKind::NotFound) => NOT_FOUND,
            Some(FailureKind::NotExecutable) => NOT_EXECUTABLE,
            _ => return Err(error.into()),
        },
        _ => return Err(error.into()),
    };
    eprintln!("boxlite-vmm: {error}");
    Ok(code)
}
