//! `boxlite-vmm attach`: connects this process to the main command of a running box.

use anyhow::{Context, Result};
use boxlite_runtime::client::Attachment;
use clap::Args;

use crate::global::Global;
use crate::stand_in::{StandIn, TerminalArgs};

pub(crate) const HELP: &str = "\
`logs` has earlier output. The end of standard input does not end the command's input. After the detach keys
(ctrl-p ctrl-q) the box keeps running. If the box was created without -t, signals are forwarded to the command;
with --sig-proxy=false, ctrl-c detaches instead.

Exit codes are those of `run`; 0 after the detach keys.";

#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// Connect the output only
    #[arg(long)]
    no_stdin: bool,
    #[command(flatten)]
    terminal: TerminalArgs,
    /// Name or ID
    #[arg(value_name = "BOX")]
    name: String,
}

pub(crate) async fn attach(global: &Global, args: &Attach) -> Result<u8> {
    let sandbox = global.runtime().await?.get(&args.name).await?;
    let tty = sandbox.config().options.tty;
    let mut attachment = Attachment::new(tty).context("cannot handle signals")?;
    let attached = tokio::select! {
        attached = sandbox.attach() => attached?,
        signal = attachment.interrupted() => return Ok(128 | (signal & 0x7f) as u8),
    };
    let stdin = !args.no_stdin;
    let stand_in = StandIn { stdin, shared: true, ..args.terminal.stand_in() };
    Ok(stand_in.run(attachment, &sandbox, attached).await?.code())
}
