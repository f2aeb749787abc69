//! `boxlite-vmm run`: a new box, a command in it, and the box thrown away unless it is to stay.

// The doc comments are help texts, where brackets say what may be left out.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

use std::time::Duration;

use anyhow::{Context, Result};
use boxlite_runtime::client::Attachment;
use boxlite_runtime::{BoxHandle, BoxOptions, ErrorKind, RestartPolicy, Runtime};
use clap::Args;

use crate::global::Global;
use crate::options::{BoxArgs, warn_of_walked_around};
use crate::progress::ImageBar;
use crate::stand_in::{Ended, StandIn, TerminalArgs};
use crate::{out, size};

pub(crate) const HELP: &str = "\
Examples:
  boxlite-vmm run alpine echo hello             a temporary box
  boxlite-vmm run --name dev -it debian bash    a box that stays: continue with `start -ai dev`
  boxlite-vmm run -d --name web nginx           in the background; prints the ID
  boxlite-vmm run --rm -d --timeout 1h …        (an error: --timeout needs the foreground)
  boxlite-vmm run --restart on-failure:3 -d --health-cmd 'wget -qO- localhost' nginx

Without --name, -d or --restart, the box is removed when its command exits, with everything written in it.
With one of them it stays, stopped, until `rm`; --rm removes it in any case.
A box in the foreground stops when this process exits or is killed, unless you type the detach keys.

The exit code is the command's own; 128+n if signal n ended it, 124 if --timeout did, 125 if the box
could not run, 126 if the command cannot be executed, 127 if it does not exist, 0 after the detach keys.";

/// How long throwing away a box may take whose start was given up.
const DISCARD: Duration = Duration::from_secs(10);

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
    terminal: TerminalArgs,
}

impl Run {
    /// The options of the box.
    pub(crate) fn options(&self, global: &Global) -> Result<BoxOptions> {
        let args = &self.sandbox;
        let restarts = args.restart != RestartPolicy::No;
        // What was asked for is a log in its folder.
        let stays = args.name.is_some() || self.detach || restarts || global.debug;
        // As with docker, what begins anew does so whether somebody looks on or not.
        let options = args.options(global)?.detach(self.detach || restarts);
        Ok(if stays { options } else { options.auto_remove(true) })
    }
}

pub(crate) async fn run(global: &Global, args: Run) -> Result<u8> {
    let options = args.options(global)?;
    // Before a slow machine is started for nothing.
    options.validate()?;
    warn_of_walked_around(&options.network);
    let bar = ImageBar::new(args.sandbox.quiet);
    if args.detach {
        let sandbox = global.runtime().await?.create_with_progress(options, bar).await?;
        if let Err(error) = sandbox.start_detached().await {
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
        attached = sandbox.start_attached(size) => attached,
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
    if let Ok(Ended::Left) = ended {
        sandbox.detach().await?;
        return Ok(0);
    }
    if sandbox.config().options.restart == RestartPolicy::No {
        // Its process ends with its command; what it leaves is complete, or gone, when it has.
        match sandbox.wait().await {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            // It was killed: nobody else throws away what it left.
            Ok(_) => discard(&sandbox).await,
            Err(error) => return Err(error.into()),
        }
    }
    drop(runtime);
    Ok(ended?.code())
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

/// Throws away a box that was not to stay.
async fn discard(sandbox: &BoxHandle) {
    if sandbox.config().options.auto_remove {
        // It may have gone by itself; whatever is left is for `prune`.
        let _ = tokio::time::timeout(DISCARD, sandbox.remove(true)).await;
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::args::{Cli, Subcommand};

    /// Whether the box is removed at its end, and whether it goes on without this process.
    fn fate(args: &[&str]) -> (bool, bool) {
        let cli = Cli::parse_from([&["x", "run"], args, &["image"]].concat());
        let Subcommand::Run(run) = cli.command else { panic!() };
        let options = run.options(&cli.global).unwrap();
        (options.auto_remove, options.detach)
    }

    #[test]
    fn what_stays_and_what_goes() {
        assert_eq!(fate(&[]), (true, false));
        assert_eq!(fate(&["--rm"]), (true, false));
        assert_eq!(fate(&["--name", "x"]), (false, false));
        assert_eq!(fate(&["--name", "x", "--rm"]), (true, false));
        assert_eq!(fate(&["-d"]), (false, true));
        assert_eq!(fate(&["-d", "--rm"]), (true, true));
        assert_eq!(fate(&["--restart", "always"]), (false, true));
    }

    #[test]
    fn nobody_would_end_a_command_in_the_background_in_time() {
        let parsed = Cli::try_parse_from(["x", "run", "-d", "--timeout", "1s", "image"]);
        assert!(parsed.is_err());
    }
}
