//! The command line: `boxlite-vmm`.
//!
//! - `args`: what can be said
//! - `run`, `image`, `doctor`: the commands
//! - `accel`: where they run, on this host's virtualization or in the software host
//! - `progress`: bars for people

mod accel;
mod args;
mod doctor;
mod image;
mod progress;
mod run;
mod size;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::{machine, runtime, softhost};
use args::{Cli, Subcommand};

/// Our own failure, as `docker run` has it.
const FAILED: u8 = 125;
/// The command exists and cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// The command does not exist.
const NOT_FOUND: u8 = 127;
/// The command did not end in time, as coreutils' `timeout` has it.
const TIMED_OUT: u8 = 124;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are no failures.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { FAILED } else { 0 });
        }
    };
    log_to_stderr(cli.global.debug);
    match dispatch(cli) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("boxlite-vmm: {e:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn dispatch(cli: Cli) -> Result<u8> {
    let Cli { global, command } = cli;
    match command {
        // A box's process has no async runtime.
        Subcommand::Machine => machine::main().map(|()| 0),
        Subcommand::SofthostKeeper { args } => {
            let options = softhost::Options::from_args(args)
                .ok_or_else(|| anyhow::anyhow!("this command is the software host's own"))?;
            softhost::keeper::main(&options)?;
            Ok(0)
        }
        Subcommand::AwaitBoxes => {
            global.home()?.wait_for_boxes()?;
            Ok(0)
        }
        Subcommand::Serve => on_tokio(async {
            runtime::serve(global.options()).await?;
            Ok(0)
        }),
        Subcommand::Run(args) => on_tokio(run::run(&global, args)),
        Subcommand::Image { command } => on_tokio(image::image(&global, command)),
        Subcommand::Doctor => doctor::doctor(&global),
        Subcommand::Softhost { command } => on_tokio(accel::run_in_softhost(&global, command)),
    }
}

fn on_tokio(command: impl Future<Output = Result<u8>>) -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(command);
    // A thread may still wait for input that nobody wants any more.
    runtime.shutdown_background();
    result
}

/// `RUST_LOG` decides; without it, warnings, or with `--debug` more of what this project does.
fn log_to_stderr(debug: bool) {
    const DEBUG: &str = "warn,boxlite_vmm=debug,boxlite_devices=debug,boxlite_rootfs_builder=debug";
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(if debug { DEBUG } else { "warn" }));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
