//! The command line: `boxlite-vmm`.
//!
//! - `args`: the commands; what each takes is in its own room
//! - `run`, `create`, `lifecycle`, `exec`, `attach`, `logs`, `copy`: boxes; `options` is what can be said of
//!   one that is to be made, `stand_in` this process in place of a box's main command
//! - `list`, `inspect`, `port`, `stats`, `events`: what is known of them
//! - `image`, `login`: where they come from; `doctor`, `completion`: the rest
//! - `accel`: where they run, on this host's virtualization or in the software host
//! - `out`, `table`, `human`, `progress`: what people and programs read
//! - `parse`, `size`: what they write

mod accel;
mod args;
mod attach;
mod completion;
mod copy;
mod create;
mod doctor;
mod events;
mod exec;
mod human;
mod image;
mod inspect;
mod lifecycle;
mod list;
mod login;
mod logs;
mod options;
mod out;
mod parse;
mod port;
mod progress;
mod run;
mod size;
mod stand_in;
mod stats;
mod table;
mod targets;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::Result;
use boxlite_proto::message::FailureKind;
use clap::Parser;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::runtime::{self, Error};
use crate::{audience, machine, softhost};
use args::{Cli, Subcommand};

/// Our own failure, where no command's exit code could be meant.
const FAILED: u8 = 1;
/// Our own failure where it could, and a command line that is not understood, as `docker run` has it.
const FAILED_OURSELVES: u8 = 125;
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
        Err(e) => return ExitCode::from(explain(&e)),
    };
    log_to_stderr(cli.global.debug, log_writer(&cli.command));
    if !matches!(cli.command, Subcommand::Serve { embedded: true }) {
        audience::is_command_line();
    }
    let stands_in = cli.command.stands_in();
    let code = dispatch(cli).unwrap_or_else(|error| failed(&error, stands_in));
    ExitCode::from(code)
}

/// Prints help or the version, or says what is not understood.
fn explain(usage: &clap::Error) -> u8 {
    let printed = usage.print();
    match (usage.use_stderr(), printed) {
        (true, _) => FAILED_OURSELVES,
        (false, Ok(())) => 0,
        (false, Err(e)) => failed(&out::Unwritten::text(e).into(), false),
    }
}

/// Says why a command failed; its exit code.
fn failed(error: &anyhow::Error, stands_in: bool) -> u8 {
    if out::is_read_enough(error) {
        return 0;
    }
    report(error);
    match command_code(error) {
        Some(code) if stands_in => code,
        _ if stands_in => FAILED_OURSELVES,
        _ => FAILED,
    }
}

fn dispatch(cli: Cli) -> Result<u8> {
    match cli.command {
        // A box's process has no async runtime.
        Subcommand::Machine => machine::main().map(|()| 0),
        Subcommand::SofthostKeeper { args } => {
            let options = softhost::Options::from_args(args)
                .ok_or_else(|| anyhow::anyhow!("this command is the software host's own"))?;
            softhost::keeper::main(&options)?;
            Ok(0)
        }
        Subcommand::SofthostPorts { home } => {
            softhost::carry_ports(&home)?;
            Ok(0)
        }
        Subcommand::AwaitBoxes => {
            cli.global.home()?.wait_for_boxes()?;
            Ok(0)
        }
        Subcommand::Serve { .. } => on_tokio(async {
            runtime::serve(cli.global.options()).await?;
            Ok(0)
        }),
        Subcommand::Doctor(args) => doctor::doctor(&cli.global, &args),
        Subcommand::Completion(args) => completion::completion(&args),
        Subcommand::Login(args) => login::login(&cli.global, args),
        Subcommand::Logout(args) => login::logout(&cli.global, &args),
        Subcommand::Softhost { command } => on_tokio(accel::run_in_softhost(&cli.global, command)),
        _ => on_tokio(with_boxes(cli)),
    }
}

/// The commands that need boxes or images.
async fn with_boxes(Cli { global, command }: Cli) -> Result<u8> {
    // Before a slow machine is started for nothing.
    match &command {
        Subcommand::Run(args) => args.options(&global)?.validate()?,
        Subcommand::Create(args) => args.options(&global)?.validate()?,
        _ => {}
    }
    match command {
        Subcommand::Run(args) => run::run(&global, *args).await,
        Subcommand::Create(args) => create::create(&global, *args).await,
        Subcommand::Start(args) => lifecycle::start(&global, args).await,
        Subcommand::Stop(args) => lifecycle::stop(&global, args).await,
        Subcommand::Restart(args) => lifecycle::restart(&global, args).await,
        Subcommand::Kill(args) => lifecycle::kill(&global, args).await,
        Subcommand::Rm(args) => lifecycle::remove(&global, args).await,
        Subcommand::Pause(args) => lifecycle::pause(&global, args).await,
        Subcommand::Resume(args) => lifecycle::resume(&global, args).await,
        Subcommand::Rename(args) => lifecycle::rename(&global, &args).await,
        Subcommand::Wait(args) => lifecycle::wait(&global, args).await,
        Subcommand::Prune(args) => lifecycle::prune(&global, &args).await,
        Subcommand::Ls(args) => list::list(&global, &args).await,
        Subcommand::Port(args) => port::port(&global, &args).await,
        Subcommand::Inspect(args) => inspect::inspect(&global, &args).await,
        Subcommand::Exec(args) => exec::exec(&global, args).await,
        Subcommand::Attach(args) => attach::attach(&global, &args).await,
        Subcommand::Cp(args) => copy::copy(&global, &args).await,
        Subcommand::Logs(args) => logs::logs(&global, &args).await,
        Subcommand::Stats(args) => stats::stats(&global, &args).await,
        Subcommand::Top(args) => stats::top(&global, &args).await,
        Subcommand::Events(args) => events::events(&global, &args).await,
        Subcommand::Image { command } => image::image(&global, command).await,
        Subcommand::Machine
        | Subcommand::SofthostKeeper { .. }
        | Subcommand::SofthostPorts { .. }
        | Subcommand::AwaitBoxes
        | Subcommand::Serve { .. }
        | Subcommand::Doctor(_)
        | Subcommand::Completion(_)
        | Subcommand::Login(_)
        | Subcommand::Logout(_)
        | Subcommand::Softhost { .. } => anyhow::bail!("this command needs no boxes"),
    }
}

fn on_tokio(command: impl Future<Output = Result<u8>>) -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(command);
    // A thread may still wait for input that nobody wants any more.
    runtime.shutdown_background();
    result
}

/// Says what went wrong.
fn report(error: &anyhow::Error) {
    out::note(format_args!("boxlite-vmm: {error:#}"));
}

/// What a shell says to a command that it cannot run; none for our own failures.
fn command_code(error: &anyhow::Error) -> Option<u8> {
    match error.downcast_ref::<Error>()? {
        Error::CommandTimeout => Some(TIMED_OUT),
        Error::Guest(guest) => match guest.failure()?.kind {
            FailureKind::NotFound => Some(NOT_FOUND),
            FailureKind::NotExecutable => Some(NOT_EXECUTABLE),
            _ => None,
        },
        _ => None,
    }
}

/// Warnings, and more of what this project does.
const DEBUG: &str = "warn,boxlite_vmm=debug,boxlite_devices=debug,boxlite_hv=debug,boxlite_kernel=debug,\
    boxlite_net=debug,boxlite_proto=debug,boxlite_rootfs_builder=debug";

/// Standard error, bounded where what is logged is a guest's doing.
fn log_writer(command: &Subcommand) -> BoxMakeWriter {
    if matches!(command, Subcommand::Machine)
        && let Ok(log) = machine::BoundedLog::of_stderr()
    {
        // A panic is logged as everything else: some can be brought about again and again.
        std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
        return BoxMakeWriter::new(Mutex::new(log));
    }
    BoxMakeWriter::new(std::io::stderr)
}

/// `RUST_LOG` decides; without it, warnings, or with `--debug` more.
fn log_to_stderr(debug: bool, writer: BoxMakeWriter) {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(if debug { DEBUG } else { "warn" }));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(console::colors_enabled_stderr() && std::io::stderr().is_terminal())
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debugging_has_every_crate_of_this_project() {
        let filter: EnvFilter = DEBUG.parse().unwrap();
        let filter = filter.to_string();
        let manifest = include_str!("../../Cargo.toml");
        let ours = manifest.lines().filter_map(|line| line.strip_prefix("boxlite-"));
        let crates = ours.filter_map(|line| line.split(['.', ' ', '=']).next()).chain(["vmm"]);
        for name in crates {
            let directive = format!("boxlite_{}=debug", name.replace('-', "_"));
            assert!(filter.contains(&directive), "{directive} is not in {filter}");
        }
    }
}
