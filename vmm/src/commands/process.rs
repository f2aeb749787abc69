//! Hidden commands, with which a runtime starts this executable.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result};
use boxlite_runtime::{launcher, nested};

use super::on_tokio;
use crate::global::Global;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Process {
    /// The process of a box
    #[command(hide = true, name = launcher::MACHINE_SUBCOMMAND)]
    Machine,
    /// The runtime of a home, on an inherited socket until standard input ends; the library starts it in the software host
    #[command(hide = true, name = launcher::SERVE_SUBCOMMAND)]
    Serve,
    /// The process that runs the software host
    #[command(hide = true, name = nested::KEEPER_SUBCOMMAND)]
    SofthostKeeper {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Forwards a box's request for ports of this machine to the keeper of the software host; QEMU starts it
    #[command(hide = true, name = nested::PORTS_SUBCOMMAND)]
    SofthostPorts {
        /// The home
        home: PathBuf,
    },
    /// Exits when no box of the home is live; the keeper of the software host starts it there
    #[command(hide = true, name = nested::AWAIT_SUBCOMMAND)]
    AwaitBoxes,
}

impl Process {
    /// Runs as that process.
    pub(crate) fn run(self, global: &Global) -> Result<()> {
        match self {
            // A box's process has no async runtime.
            Self::Machine => {
                raise_open_file_limit();
                boxlite_machine::main()
            }
            Self::Serve => on_tokio(async { Ok(launcher::serve(global.options()).await?) }),
            Self::SofthostKeeper { args } => {
                let options = nested::Options::from_args(args)
                    .context("this command is for the software host only")?;
                raise_open_file_limit();
                Ok(nested::keeper::main(&options)?)
            }
            Self::SofthostPorts { home } => Ok(nested::relay_ports(&home)?),
            Self::AwaitBoxes => Ok(global.home()?.wait_for_boxes()?),
        }
    }
}

/// Raises the limit on open files: a box's process has a descriptor for each network flow, a keeper for each link.
fn raise_open_file_limit() {
    if let Err(error) = launcher::raise_open_file_limit() {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
}
