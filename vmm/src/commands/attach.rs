//! `boxlite-vmm attach`: this process in place of the main command of a box that runs.

use anyhow::{Context, Result};
use boxlite_runtime::client::Attachment;
use clap::Args;

use crate::global::Global;
use crate::stand_in::{StandIn, TerminalArgs};

pub(crate) const HELP: &str = "\
What the command wrote before is in `logs`. The end of standard input is not the end of the command's. The detach keys (ctrl-p ctrl-q) leave the box to itself; without a
terminal (a box made without -t), signals go to the command, unless --sig-proxy=false: then ctrl-c leaves it.

The exit code is the command's, as `run` has it; 0 after the detach keys.";

#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// Connect the output alone
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
    let stand_in = StandIn { stdin, onlooker: true, ..args.terminal.stand_in() };
    Ok(stand_in.run(attachment, &sandbox, attached).await?.code())
}
