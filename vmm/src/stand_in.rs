//! This process in place of a box's main command.

// The doc comments are help texts, where brackets say what may be left out.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

use std::time::Duration;

use anyhow::Result;
use boxlite_runtime::client::Control;
use boxlite_runtime::client::{self, Attachment, DetachKeys, Streams};
use boxlite_runtime::{Attached, BoxHandle, Error, ErrorKind};
use clap::Args;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::exit::{TimedOut, report};
use crate::out;

/// The exit code of a command that was killed, as a shell has it.
const KILLED: u8 = 137;

/// How a person can leave a command, and which signals are the command's.
#[derive(Clone, Debug, Args)]
pub(crate) struct TerminalArgs {
    /// Keys that detach from the box and leave it running; "" for none
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// Pass signals on to the command
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set,
        num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    sig_proxy: bool,
}

impl TerminalArgs {
    pub(crate) fn stand_in(&self) -> StandIn {
        StandIn {
            detach_keys: self.detach_keys.clone(),
            signals: self.sig_proxy,
            stdin: true,
            onlooker: false,
            timeout: None,
        }
    }
}

/// How to stand in.
#[derive(Clone, Debug)]
pub(crate) struct StandIn {
    /// Keys that leave the command.
    pub(crate) detach_keys: DetachKeys,
    /// Whether signals are passed on; otherwise the first leaves the command.
    pub(crate) signals: bool,
    /// Whether standard input is passed on.
    pub(crate) stdin: bool,
    /// Whether the command is somebody else's, or nobody's: then it does not hear that this process has no more
    /// input for it.
    pub(crate) onlooker: bool,
    /// The command, and its box with it, is ended after so long.
    pub(crate) timeout: Option<Duration>,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The command ended, with this exit code as a shell has it.
    Exited(u8),
    /// The person at the terminal left it.
    Left,
    /// A signal (Linux number) came that is not the command's.
    Interrupted(i32),
}

impl Ended {
    /// The exit code of this process.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Left => 0,
            Self::Interrupted(signal) => 128 | (signal & 0x7f) as u8,
        }
    }
}

impl StandIn {
    /// Stands in for the main command with this process's streams, signals and terminal.
    pub(crate) async fn run(
        &self,
        attachment: Attachment,
        sandbox: &BoxHandle,
        mut attached: Attached,
    ) -> Result<Ended> {
        let attachment = attachment.detach_keys(self.detach_keys.clone()).onlooker(self.onlooker);
        let mut stdin = attached.stdin();
        if !self.stdin
            && let Some(stdin) = stdin.take()
        {
            // Its end would be that of all others' input.
            stdin.leave();
        }
        let streams = Streams { stdin, stdout: attached.stdout(), stderr: attached.stderr() };
        let attached = attached;
        let (interrupt, mut interrupted) = mpsc::unbounded_channel();
        let control = |control| match control {
            Control::Signal(signal) if self.signals => attached.signal(signal),
            Control::Signal(signal) => drop(interrupt.send(signal)),
            Control::Resize(size) => attached.resize(size),
            _ => {}
        };
        let wait = async {
            match self.timeout {
                None => Ok(attached.wait().await?),
                Some(limit) => match timeout(limit, attached.wait()).await {
                    Ok(status) => Ok(status?),
                    Err(_) => {
                        // Here, so that its streams end, which are waited for too.
                        end(sandbox).await?;
                        Err(anyhow::Error::new(TimedOut))
                    }
                },
            }
        };
        let ended = tokio::select! {
            ended = attachment.run(streams, control, wait) => ended,
            Some(signal) = interrupted.recv() => return Ok(Ended::Interrupted(signal)),
        };
        match ended {
            Ok(client::Ended::Exited(status)) => Ok(Ended::Exited(status.shell_code())),
            Ok(client::Ended::Left) => {
                // On a line of its own: the cursor is where the command left it.
                let name = sandbox.name();
                out::note(format_args!(
                    "\nboxlite-vmm: the box {name} goes on without this terminal"
                ));
                Ok(Ended::Left)
            }
            Ok(client::Ended::Unwritten(error)) => Err(error.into()),
            // Somebody ended the box: as docker has it, its command was killed.
            Err(error) if is_ended_box(&error) => {
                report(&error);
                let info = sandbox.info().await.ok();
                Ok(Ended::Exited(info.and_then(|info| info.exit_code).unwrap_or(KILLED)))
            }
            Err(error) => Err(error),
        }
    }
}

fn is_ended_box(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::BoxEnded)
}

/// Ends a box whose command took too long. What it wrote stays, if it does.
async fn end(sandbox: &BoxHandle) -> Result<(), Error> {
    match sandbox.config().options.auto_remove {
        true => sandbox.kill().await,
        false => sandbox.stop(Duration::ZERO).await,
    }
}
