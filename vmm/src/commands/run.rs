//! `boxlite-vmm run`: creates a box, runs a command in it, and removes the box unless it is to be kept.

// The doc comments are help texts, where brackets mark optional parts.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

use std::time::Duration;

use anyhow::{Context, Result, bail};
use boxlite_runtime::client::Attachment;
use boxlite_runtime::{BoxHandle, BoxOptions, ErrorKind, NetworkMode, RestartPolicy, Runtime};
use clap::Args;

use crate::global::Global;
use crate::options::{BoxArgs, warn_of_bypassable_denials};
use crate::pcap::PcapArgs;
use crate::progress::ImageBar;
use crate::stand_in::{StandIn, StandInEnd, TerminalArgs};
use crate::{out, size};

pub(crate) const HELP: &str = "\
Examples:
  boxlite-vmm run alpine echo hello             a temporary box
  boxlite-vmm run --name dev -it debian bash    a box that is kept: continue with `start -ai dev`
  boxlite-vmm run -d --name web nginx           in the background; prints the ID
  boxlite-vmm run --timeout 10s -u nobody python python3 -c 'print(6 * 7)'
  boxlite-vmm run --pcap web.pcap alpine wget -qO- http://example.org
  boxlite-vmm run --restart on-failure:3 -d --health-cmd 'wget -qO- localhost' nginx

Without --name, -d or --restart, the box is removed when its command exits, with all data in it.
With one of them the stopped box is kept until `rm`; --rm removes it in any case.
A box in the foreground stops when this process exits or is killed, unless you type the detach keys.
--timeout works in the foreground only.

The exit code is the command's own; 128+n if signal n killed it, 124 if --timeout did, 125 if the box
could not run, 126 if the command cannot be executed, 127 if it does not exist, 0 after the detach keys.";

/// Timeout for removing a box that failed to start.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    sandbox: BoxArgs,
    /// Run the box in the background, and print its ID
    #[arg(long, short)]
    detach: bool,
    /// Kill the command after this time: 90s, 2m, 1h30m
    #[arg(long, value_name = "DURATION", value_parser = size::duration, conflicts_with = "detach")]
    timeout: Option<Duration>,
    #[command(flatten)]
    pcap: PcapArgs,
    #[command(flatten)]
    terminal: TerminalArgs,
}

impl Run {
    /// The options of the box.
    pub(crate) fn options(&self, global: &Global) -> Result<BoxOptions> {
        let args = &self.sandbox;
        let restarts = args.restart != RestartPolicy::No;
        // With --debug, because the logs are in the box's folder.
        let is_kept = args.name.is_some() || self.detach || restarts || global.debug;
        // As in docker, a box restarts whether this process is attached or not.
        let options = args.options(global)?.detach(self.detach || restarts);
        Ok(if is_kept { options } else { options.auto_remove(true) })
    }
}

pub(crate) async fn run(global: &Global, args: Run) -> Result<u8> {
    let options = args.options(global)?;
    // Before the software host starts, which takes seconds.
    options.validate()?;
    if args.pcap.is_given() && options.network.mode == NetworkMode::None {
        bail!("--pcap needs a network (--network nat)");
    }
    args.pcap.check(global, args.detach)?;
    warn_of_bypassable_denials(&options.network);
    let bar = ImageBar::new(args.sandbox.quiet);
    if args.detach {
        let sandbox = global.runtime().await?.create_with_progress(options, bar).await?;
        if let Err(error) = sandbox.start_with(args.pcap.start_options().detach(true)).await {
            discard(&sandbox).await;
            return Err(error.into());
        }
        out::line(sandbox.id())?;
        return Ok(0);
    }
    let mut attachment = Attachment::new(args.sandbox.tty).context("cannot handle signals")?;
    let interrupted = |signal: i32| Ok(128 | (signal & 0x7f) as u8);
    let create = create(global, options, bar);
    let (runtime, sandbox) = tokio::select! {
        created = create => created?,
        signal = attachment.interrupted() => return interrupted(signal),
    };
    let size = attachment.terminal_size();
    let attached = tokio::select! {
        attached = args.pcap.start_attached(&sandbox, size) => attached,
        signal = attachment.interrupted() => {
            discard(&sandbox).await;
            return interrupted(signal);
        }
    };
    let attached = match attached {
        Ok(attached) => attached,
        Err(error) => {
            discard(&sandbox).await;
            return Err(error.into());
        }
    };
    let stand_in = StandIn { timeout: args.timeout, ..args.terminal.stand_in() };
    let ended = stand_in.run(attachment, &sandbox, attached).await;
    let stopped = await_stop(&sandbox, &ended).await;
    args.pcap.report_end(&sandbox, global).await;
    stopped?;
    drop(runtime);
    Ok(ended?.code())
}

/// Waits until a box has stopped whose command has ended, unless the box goes on without this process.
async fn await_stop(sandbox: &BoxHandle, ended: &Result<StandInEnd>) -> Result<()> {
    if let Ok(StandInEnd::Detached) = ended {
        return Ok(sandbox.detach().await?);
    }
    if sandbox.config().options.restart != RestartPolicy::No {
        return Ok(());
    }
    // The box stops with its command. Until then, its disk may be incomplete, or its removal under way.
    match sandbox.wait().await {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        // The box's process was killed before it could remove the box.
        Ok(_) => discard(sandbox).await,
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

async fn create(
    global: &Global,
    options: BoxOptions,
    bar: ImageBar,
) -> Result<(Runtime, BoxHandle)> {
    let runtime = global.runtime().await?;
    let sandbox = runtime.create_with_progress(options, bar).await?;
    Ok((runtime, sandbox))
}

/// Removes a box that is not to be kept.
async fn discard(sandbox: &BoxHandle) {
    if sandbox.config().options.auto_remove {
        // The box may have removed itself. `prune` removes anything that is left.
        let _ = tokio::time::timeout(DISCARD_TIMEOUT, sandbox.remove(true)).await;
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::args::{Cli, Subcommand};

    /// Whether the box is removed when it stops, and whether it is detached.
    fn removed_and_detached(args: &[&str]) -> (bool, bool) {
        let cli = Cli::parse_from([&["x", "run"], args, &["image"]].concat());
        let Subcommand::Run(run) = cli.command else { panic!() };
        let options = run.options(&cli.global).unwrap();
        (options.auto_remove, options.detach)
    }

    #[test]
    fn boxes_are_kept_if_they_are_named_detached_or_restarted() {
        assert_eq!(removed_and_detached(&[]), (true, false));
        assert_eq!(removed_and_detached(&["--rm"]), (true, false));
        assert_eq!(removed_and_detached(&["--name", "x"]), (false, false));
        assert_eq!(removed_and_detached(&["--name", "x", "--rm"]), (true, false));
        assert_eq!(removed_and_detached(&["-d"]), (false, true));
        assert_eq!(removed_and_detached(&["-d", "--rm"]), (true, true));
        assert_eq!(removed_and_detached(&["--restart", "always"]), (false, true));
    }

    #[test]
    fn a_timeout_needs_the_foreground() {
        let parsed = Cli::try_parse_from(["x", "run", "-d", "--timeout", "1s", "image"]);
        assert!(parsed.is_err());
    }
}
