//! `boxlite-vmm run`: a new box, a command in it, and the box thrown away.

use anyhow::{Context, Result};
use boxlite_proto::message::{Control, FailureKind};

use super::args::{Global, Run};
use super::progress::ImageBar;
use super::{NOT_EXECUTABLE, NOT_FOUND, TIMED_OUT};
use crate::client::{Attachment, Streams, exit_code};
use crate::runtime::{Attached, BoxOptions, Error};

pub(super) async fn run(global: &Global, args: Run) -> Result<u8> {
    let options = options(global, &args)?;
    // Before a slow machine is started for nothing.
    options.validate()?;
    let mut attachment = Attachment::new(args.tty).context("cannot handle signals")?;
    let runtime = tokio::select! {
        runtime = global.runtime() => runtime?,
        signal = attachment.interrupted() => return Ok(128 | (signal & 0x7f) as u8),
    };
    let size = attachment.terminal_size();
    let started = async {
        let sandbox = runtime.create_with_progress(options, ImageBar::new()).await?;
        let attached = sandbox.start_attached(size).await?;
        Ok::<_, Error>((sandbox, attached))
    };
    let (sandbox, attached) = tokio::select! {
        started = started => match started {
            Ok(started) => started,
            Err(e) => return failed(e),
        },
        signal = attachment.interrupted() => return Ok(128 | (signal & 0x7f) as u8),
    };
    let deadline = args.timeout.map(|timeout| tokio::time::Instant::now() + timeout);
    let ended = stand_in(attachment, attached, deadline).await;
    if matches!(ended, Err(Error::CommandTimeout)) {
        sandbox.kill().await?;
    }
    // Its process ends with its command; the folder is gone when it has.
    sandbox.wait().await?;
    match ended {
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
    options.main_command = true;
    options.interactive = args.interactive;
    options.tty = args.tty;
    options.auto_remove = true;
    let command: Vec<String> = args
        .command()
        .map(|word| word.clone().into_string())
        .collect::<Result<_, _>>()
        .map_err(|word| anyhow::anyhow!("{word:?} is not UTF-8"))?;
    options.cmd = (!command.is_empty()).then_some(command);
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

/// Stands in for the main command with this process's streams, signals and terminal.
async fn stand_in(
    attachment: Attachment,
    mut attached: Attached,
    deadline: Option<tokio::time::Instant>,
) -> Result<u8, Error> {
    let streams =
        Streams { stdin: attached.stdin(), stdout: attached.stdout(), stderr: attached.stderr() };
    let attached = attached;
    let control = |control| match control {
        Control::Signal(signal) => attached.signal(signal),
        Control::Resize(size) => attached.resize(size),
        _ => {}
    };
    let wait = async {
        match deadline {
            None => attached.wait().await,
            Some(deadline) => match tokio::time::timeout_at(deadline, attached.wait()).await {
                Ok(status) => status,
                Err(_) => Err(Error::CommandTimeout),
            },
        }
    };
    Ok(exit_code(attachment.run(streams, control, wait).await?))
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
