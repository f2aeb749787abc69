//! `boxlite-vmm exec`: runs a command in a running box.

// The doc comments are help texts, where brackets mark optional parts.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use anyhow::{Context, Result};
use boxlite_runtime::client::{Attachment, AttachmentEnd, Control, Streams};
use boxlite_runtime::{BoxHandle, Command};
use clap::Args;

use crate::global::Global;
use crate::options::EnvArgs;
use crate::{out, size};

pub(crate) const HELP: &str = "\
Examples:
  boxlite-vmm exec dev uname -a
  boxlite-vmm exec -it dev bash
  echo 'print(6 * 7)' | boxlite-vmm exec -i dev python3
  boxlite-vmm exec -d dev python3 -m http.server     run in the background
  boxlite-vmm exec --timeout 10s -u nobody -w /tmp dev ./untrusted

The exit code is the command's own; 128+n if signal n killed it, 124 if --timeout did, 125 if it could not be
started, 126 if it cannot be executed, 127 if it does not exist.";

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Forward standard input
    #[arg(long, short, conflicts_with = "detach")]
    interactive: bool,
    /// Allocate a terminal
    #[arg(long, short)]
    tty: bool,
    /// Run the command in the background, and print its process ID in the box
    #[arg(long, short)]
    detach: bool,
    #[command(flatten)]
    env: EnvArgs,
    /// Working directory [default: the box's]
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<String>,
    /// User: a name or uid, optionally with :group or :gid [default: the box's]
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,
    /// Kill the command after this time: 90s, 2m, 1h30m
    #[arg(long, value_name = "DURATION", value_parser = size::duration, conflicts_with = "detach")]
    timeout: Option<Duration>,
    /// Name or ID
    #[arg(value_name = "BOX")]
    name: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
}

impl Exec {
    fn command(&self, sandbox: &BoxHandle) -> Result<Command> {
        let argv = self.command.iter().map(|word| word.clone().into_vec());
        let mut command = sandbox.exec(argv).stdin(self.interactive);
        for (name, value) in self.env.variables()? {
            command = command.env(name, value);
        }
        if let Some(dir) = &self.workdir {
            command = command.working_dir(dir.as_str());
        }
        if let Some(user) = &self.user {
            command = command.user(user);
        }
        if let Some(timeout) = self.timeout {
            command = command.timeout(timeout);
        }
        Ok(command)
    }
}

pub(crate) async fn exec(global: &Global, args: Exec) -> Result<u8> {
    if args.detach {
        let sandbox = global.runtime().await?.get(&args.name).await?;
        let mut command = args.command(&sandbox)?;
        if args.tty {
            command = command.terminal(boxlite_runtime::TerminalSize { rows: 24, columns: 80 });
        }
        out::line(command.spawn_detached().await?)?;
        return Ok(0);
    }
    let mut attachment = Attachment::new(args.tty).context("cannot handle signals")?;
    let size = attachment.terminal_size();
    let spawn = async {
        let runtime = global.runtime().await?;
        let mut command = args.command(&runtime.get(&args.name).await?)?;
        if let Some(size) = size {
            command = command.terminal(size);
        }
        Ok::<_, anyhow::Error>((command.spawn().await?, runtime))
    };
    let (mut execution, _runtime) = tokio::select! {
        spawned = spawn => spawned?,
        signal = attachment.interrupted() => return Ok(128 | (signal & 0x7f) as u8),
    };
    let streams = Streams {
        stdin: execution.stdin(),
        stdout: execution.stdout(),
        stderr: execution.stderr(),
    };
    let control = |control| match control {
        Control::Signal(signal) => execution.signal(signal),
        Control::Resize(size) => execution.resize(size),
        _ => {}
    };
    match attachment.run(streams, control, execution.wait()).await? {
        AttachmentEnd::Exited(status) => Ok(status.shell_code()),
        AttachmentEnd::Detached => Ok(0),
        AttachmentEnd::WriteFailed(error) => Err(error.into()),
    }
}
