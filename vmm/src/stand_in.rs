//! Connects this process to a box's main command: its streams, signals, terminal and exit code.

// The doc comments are help texts, where brackets mark optional parts.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

use std::time::Duration;

use anyhow::Result;
use boxlite_runtime::client::{self, Attachment, Control, DetachKeys, Streams};
use boxlite_runtime::{Attached, BoxHandle, Error, ErrorKind};
use clap::Args;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::exit::{TimedOut, report};
use crate::out;

/// The exit code of a killed command, as a shell reports it.
const KILLED: u8 = 137;

/// Options for detaching and for signals.
#[derive(Clone, Debug, Args)]
pub(crate) struct TerminalArgs {
    /// Keys that detach from the box, which keeps running; "" for none
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// Forward signals to the command
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
            shared: false,
            timeout: None,
        }
    }
}

/// How to connect to the main command.
#[derive(Clone, Debug)]
pub(crate) struct StandIn {
    /// Keys that detach.
    pub(crate) detach_keys: DetachKeys,
    /// Whether to forward signals; otherwise the first one detaches.
    pub(crate) signals: bool,
    /// Whether to forward standard input.
    pub(crate) stdin: bool,
    /// Whether another process started the command. The end of this process's input does not end the command's then.
    pub(crate) shared: bool,
    /// Time after which the box is stopped.
    pub(crate) timeout: Option<Duration>,
}

/// How the connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StandInEnd {
    /// The command exited, with this exit code as a shell reports it.
    Exited(u8),
    /// The user detached.
    Detached,
    /// A signal (Linux number) that is not forwarded detached this process.
    Interrupted(i32),
}

impl StandInEnd {
    /// The exit code of this process.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Detached => 0,
            Self::Interrupted(signal) => 128 | (signal & 0x7f) as u8,
        }
    }
}

impl StandIn {
    /// Connects this process's streams, signals and terminal to the main command until one of them ends.
    pub(crate) async fn run(
        &self,
        attachment: Attachment,
        sandbox: &BoxHandle,
        mut attached: Attached,
    ) -> Result<StandInEnd> {
        let attachment = attachment.detach_keys(self.detach_keys.clone()).shared(self.shared);
        let mut stdin = attached.stdin();
        if !self.stdin
            && let Some(stdin) = stdin.take()
        {
            // Dropping it would end the input for all attached processes.
            stdin.detach();
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
                        // Here, because `run` waits for the command's streams, too, which end with the box.
                        end(sandbox).await?;
                        Err(anyhow::Error::new(TimedOut))
                    }
                },
            }
        };
        let ended = tokio::select! {
            ended = attachment.run(streams, control, wait) => ended,
            Some(signal) = interrupted.recv() => return Ok(StandInEnd::Interrupted(signal)),
        };
        match ended {
            Ok(client::AttachmentEnd::Exited(status)) => {
                Ok(StandInEnd::Exited(status.shell_code()))
            }
            Ok(client::AttachmentEnd::Detached) => {
                // On a line of its own: the cursor is where the command left it.
                let name = sandbox.name();
                out::note(format_args!("\nboxlite-vmm: detached; the box {name} keeps running"));
                Ok(StandInEnd::Detached)
            }
            Ok(client::AttachmentEnd::WriteFailed(error)) => Err(error.into()),
            // Another process stopped the box: as in docker, its command counts as killed.
            Err(error) if is_ended_box(&error) => {
                report(&error);
                let info = sandbox.info().await.ok();
                Ok(StandInEnd::Exited(info.and_then(|info| info.exit_code).unwrap_or(KILLED)))
            }
            Err(error) => Err(error),
        }
    }
}

fn is_ended_box(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::BoxEnded)
}

/// Stops a box at its command's timeout. A box that is kept is shut down, so that its disk has all written data.
async fn end(sandbox: &BoxHandle) -> Result<(), Error> {
    match sandbox.config().options.auto_remove {
        true => sandbox.kill().await,
        false => sandbox.stop(Duration::ZERO).await,
    }
}
