//! `boxlite-vmm create`: creates a box without starting it.

use anyhow::Result;
use boxlite_runtime::BoxOptions;
use clap::Args;

use crate::global::Global;
use crate::options::{BoxArgs, warn_of_bypassable_denials};
use crate::out;
use crate::progress::ImageBar;

pub(crate) const HELP: &str = "\
Examples:
  boxlite-vmm create --name dev debian sleep infinity    prints the box's ID
  boxlite-vmm start dev
  boxlite-vmm create --idle --name tools alpine          a box to use with `exec` only";

#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    pub(crate) sandbox: BoxArgs,
    /// Create a box without a main command, which runs until it is stopped
    #[arg(long, conflicts_with_all = ["interactive", "tty", "entrypoint"])]
    idle: bool,
}

impl Create {
    /// The options of the box.
    pub(crate) fn options(&self, global: &Global) -> Result<BoxOptions> {
        // The `start` process exits at once.
        let mut options = self.sandbox.options(global)?.detach(true);
        if self.idle {
            if options.cmd.is_some() {
                anyhow::bail!("--idle: a box without a main command takes no arguments for one");
            }
            options.main_command = false;
        }
        Ok(options)
    }
}

pub(crate) async fn create(global: &Global, args: Create) -> Result<u8> {
    let options = args.options(global)?;
    // Before the software host starts, which takes seconds.
    options.validate()?;
    warn_of_bypassable_denials(&options.network);
    let bar = ImageBar::new(args.sandbox.quiet);
    let sandbox = global.runtime().await?.create_with_progress(options, bar).await?;
    out::line(sandbox.id())?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::args::{Cli, Subcommand};

    #[test]
    fn a_created_box_outlives_the_process_that_starts_it() {
        let options = |args: &[&str]| {
            let cli = Cli::parse_from([&["x", "create"], args].concat());
            let Subcommand::Create(create) = cli.command else { panic!() };
            create.options(&cli.global)
        };
        let plain = options(&["image", "sleep", "9"]).unwrap();
        assert!(plain.detach && plain.main_command && !plain.auto_remove);
        let idle = options(&["--idle", "--rm", "image"]).unwrap();
        assert!(idle.detach && !idle.main_command && idle.auto_remove);
        assert!(options(&["--idle", "image", "sleep"]).is_err());
    }
}
