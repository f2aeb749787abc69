//! The life cycle of boxes: `start`, `stop`, `restart`, `kill`, `pause`, `resume`, `wait`, `rename`, `rm`, `prune`.

// The doc comments are help texts, where brackets mark optional parts.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use boxlite_runtime::client::Attachment;
use boxlite_runtime::{ErrorKind, RestartPolicy, Runtime};
use clap::Args;

use crate::global::Global;
use crate::pcap::PcapArgs;
use crate::stand_in::{StandIn, StandInEnd, TerminalArgs};
use crate::targets::each;
use crate::{human, out, parse, size};

pub(crate) const START_HELP: &str = "\
Examples:
  boxlite-vmm start web db        start both in the background
  boxlite-vmm start -ai dev       attach this terminal to its main command
  boxlite-vmm start -a --pcap web.pcap web

With -a, exit codes are those of `run`.";

pub(crate) const STOP_HELP: &str = "\
The main command gets its stop signal, then every other process SIGTERM. Processes that still run after the
grace period are killed. Afterwards, all written data is on the box's disk.";

/// The signal that kills the box rather than its main command.
const SIGKILL: i32 = 9;

#[derive(Debug, Args)]
pub(crate) struct Targets {
    /// Names or IDs
    #[arg(required = true, value_name = "BOX")]
    boxes: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Start {
    /// Show the main command's output, and forward signals
    #[arg(long, short)]
    attach: bool,
    /// Also forward standard input, if the box was created with -i
    #[arg(long, short)]
    interactive: bool,
    #[command(flatten)]
    pub(crate) pcap: PcapArgs,
    #[command(flatten)]
    terminal: TerminalArgs,
    /// Names or IDs; only one with -a, -i or --pcap
    #[arg(required = true, value_name = "BOX")]
    boxes: Vec<String>,
}

impl Start {
    /// Whether this process stands in for the main command.
    pub(crate) fn is_attached(&self) -> bool {
        self.attach || self.interactive
    }
}

#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// Grace period before processes are killed; a plain number is seconds
    #[arg(long, short, visible_alias = "timeout", value_name = "DURATION", default_value = "10", value_parser = size::duration)]
    time: Duration,
    #[command(flatten)]
    targets: Targets,
}

#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// Signal for the main command; KILL stops the whole box, like a power failure
    #[arg(long, short, value_name = "SIGNAL", default_value = "KILL", value_parser = parse::signal)]
    signal: i32,
    #[command(flatten)]
    targets: Targets,
}

#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Kill running boxes first
    #[arg(long, short)]
    force: bool,
    #[command(flatten)]
    targets: Targets,
}

#[derive(Debug, Args)]
pub(crate) struct Rename {
    /// Name or ID
    #[arg(value_name = "BOX")]
    name: String,
    /// The new name
    new_name: String,
}

#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Do not ask for confirmation
    #[arg(long, short)]
    force: bool,
}

pub(crate) async fn start(global: &Global, args: Start) -> Result<u8> {
    if args.pcap.is_given() && args.boxes.len() > 1 {
        bail!("--pcap takes one box");
    }
    if !args.is_attached() {
        args.pcap.check(global, true)?;
        let options = args.pcap.start_options().detach(true);
        return each(global, args.boxes, move |runtime, name| {
            let options = options.clone();
            async move {
                runtime.get(&name).await?.start_with(options).await?;
                Ok(name)
            }
        })
        .await;
    }
    let [name] = &*args.boxes else { bail!("-a and -i take one box") };
    let sandbox = global.runtime().await?.get(name).await?;
    let mut attachment =
        Attachment::new(sandbox.config().options.tty).context("cannot handle signals")?;
    let size = attachment.terminal_size();
    let shared = sandbox.info().await?.state.is_live();
    let attached = tokio::select! {
        attached = args.pcap.start_attached(&sandbox, size) => attached?,
        signal = attachment.interrupted() => return Ok(128 | (signal & 0x7f) as u8),
    };
    // A box that `run --name` created in the foreground would stop with this process.
    sandbox.detach().await.ok();
    let stdin = args.interactive;
    let stand_in = StandIn { stdin, shared, ..args.terminal.stand_in() };
    let ended = stand_in.run(attachment, &sandbox, attached).await;
    let has_exited = matches!(ended, Ok(StandInEnd::Exited(_)));
    // Until the box has stopped, its disk may be incomplete, or its removal under way.
    let stopped = match sandbox.config().options.restart {
        RestartPolicy::No if has_exited => sandbox.wait().await.map(drop),
        _ => Ok(()),
    };
    args.pcap.report_end(&sandbox, global).await;
    match stopped {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(ended?.code()),
    }
}

pub(crate) async fn stop(global: &Global, args: Stop) -> Result<u8> {
    each(global, args.targets.boxes, move |runtime, name| async move {
        runtime.get(&name).await?.stop(args.time).await?;
        Ok(name)
    })
    .await
}

pub(crate) async fn restart(global: &Global, args: Stop) -> Result<u8> {
    each(global, args.targets.boxes, move |runtime, name| async move {
        let sandbox = runtime.get(&name).await?;
        sandbox.stop(args.time).await?;
        sandbox.start_detached().await?;
        Ok(name)
    })
    .await
}

pub(crate) async fn kill(global: &Global, args: Kill) -> Result<u8> {
    each(global, args.targets.boxes, move |runtime, name| async move {
        let sandbox = runtime.get(&name).await?;
        let info = sandbox.info().await?;
        if !info.state.is_live() {
            bail!("the box {name} is {}, so there is nothing to kill", info.state);
        }
        match args.signal {
            SIGKILL => sandbox.kill().await?,
            signal => sandbox.signal(signal).await?,
        }
        Ok(name)
    })
    .await
}

pub(crate) async fn pause(global: &Global, args: Targets) -> Result<u8> {
    each(global, args.boxes, |runtime, name| async move {
        runtime.get(&name).await?.pause().await?;
        Ok(name)
    })
    .await
}

pub(crate) async fn resume(global: &Global, args: Targets) -> Result<u8> {
    each(global, args.boxes, |runtime, name| async move {
        runtime.get(&name).await?.resume().await?;
        Ok(name)
    })
    .await
}

pub(crate) async fn wait(global: &Global, args: Targets) -> Result<u8> {
    each(global, args.boxes, |runtime, name| async move {
        let info = runtime.get(&name).await?.wait().await?;
        // A box without a main command has no exit code, and was stopped on request.
        Ok(info.exit_code.unwrap_or(0).to_string())
    })
    .await
}

pub(crate) async fn rename(global: &Global, args: &Rename) -> Result<u8> {
    let sandbox = global.runtime().await?.get(&args.name).await?;
    sandbox.rename(&args.new_name).await?;
    Ok(0)
}

pub(crate) async fn remove(global: &Global, args: Remove) -> Result<u8> {
    each(global, args.targets.boxes, move |runtime: Runtime, name| async move {
        runtime.remove(&name, args.force).await?;
        Ok(name)
    })
    .await
}

pub(crate) async fn prune(global: &Global, args: &Prune) -> Result<u8> {
    if !args.force && !confirmed("This removes all boxes that are not running, and their disks.")? {
        return Ok(0);
    }
    let removed = global.runtime().await?.prune().await?;
    for info in &removed {
        out::line(format_args!("{} {}", human::id(&info.id, false), info.name))?;
    }
    match removed.len() {
        1 => out::line("1 box removed")?,
        n => out::line(format_args!("{n} boxes removed"))?,
    }
    Ok(0)
}

/// Asks for confirmation at the terminal. Without a terminal, the command itself is the confirmation.
pub(crate) fn confirmed(what: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(true);
    }
    out::question(format_args!("{what}\nContinue? [y/N]"));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
