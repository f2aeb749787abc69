//! The command line: `boxlite-vmm`.
//!
//! - `args`: the definition of the command line
//! - `commands`: a module for each command, including the hidden ones that a runtime starts this executable with
//! - `global`: the global options; `options`: the options of a new box; `targets`: commands on several boxes
//! - `stand_in`: connects this process to a box's main command
//! - `out`, `table`, `human`, `progress`: output; `exit`: failures and exit codes; `words`: the text of errors
//! - `parse`, `size`: values of arguments

mod args;
mod commands;
mod exit;
mod global;
mod human;
mod options;
mod out;
mod parse;
mod pcap;
mod progress;
mod size;
mod stand_in;
mod table;
mod targets;
mod words;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::Result;
use clap::{CommandFactory, Parser};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use args::{Cli, Subcommand};
use commands::process::Process;
use commands::{
    attach, completion, copy, create, doctor, events, exec, image, inspect, lifecycle, list, login,
    logs, on_tokio, on_tokio_until_interrupted, port, run, softhost, stats,
};

/// Runs the command line of this process.
fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return ExitCode::from(exit::explain(&e)),
    };
    log_to_stderr(cli.global.debug, log_writer(&cli.command));
    let stands_in = cli.command.stands_in();
    let code = dispatch(cli).unwrap_or_else(|error| exit::failed(&error, stands_in));
    ExitCode::from(code)
}

/// Runs a command. Returns its exit code.
fn dispatch(Cli { global, command }: Cli) -> Result<u8> {
    let global = &global;
    match command {
        Subcommand::Run(args) => on_tokio(run::run(global, *args)),
        Subcommand::Create(args) => on_tokio(create::create(global, *args)),
        Subcommand::Start(args) => on_tokio(lifecycle::start(global, args)),
        Subcommand::Stop(args) => on_tokio(lifecycle::stop(global, args)),
        Subcommand::Restart(args) => on_tokio(lifecycle::restart(global, args)),
        Subcommand::Kill(args) => on_tokio(lifecycle::kill(global, args)),
        Subcommand::Rm(args) => on_tokio(lifecycle::remove(global, args)),
        Subcommand::Pause(args) => on_tokio(lifecycle::pause(global, args)),
        Subcommand::Resume(args) => on_tokio(lifecycle::resume(global, args)),
        Subcommand::Rename(args) => on_tokio(lifecycle::rename(global, &args)),
        Subcommand::Wait(args) => on_tokio(lifecycle::wait(global, args)),
        Subcommand::Prune(args) => on_tokio(lifecycle::prune(global, &args)),
        Subcommand::Ls(args) => on_tokio(list::list(global, &args)),
        Subcommand::Port(args) => on_tokio(port::port(global, &args)),
        Subcommand::Inspect(args) => on_tokio(inspect::inspect(global, &args)),
        Subcommand::Exec(args) => on_tokio(exec::exec(global, args)),
        Subcommand::Attach(args) => on_tokio(attach::attach(global, &args)),
        Subcommand::Cp(args) if args.writes_files() => {
            on_tokio_until_interrupted(copy::copy(global, &args))
        }
        Subcommand::Cp(args) => on_tokio(copy::copy(global, &args)),
        Subcommand::Logs(args) => on_tokio(logs::logs(global, &args)),
        Subcommand::Stats(args) => on_tokio(stats::stats(global, &args)),
        Subcommand::Top(args) => on_tokio(stats::top(global, &args)),
        Subcommand::Events(args) => on_tokio(events::events(global, &args)),
        Subcommand::Image { command } => on_tokio(image::image(global, command)),
        Subcommand::Login(args) => login::login(global, args),
        Subcommand::Logout(args) => login::logout(global, &args),
        Subcommand::Doctor(args) => doctor::doctor(global, &args),
        Subcommand::Completion(args) => completion::completion(&args, &Cli::command()),
        Subcommand::Softhost { command } => on_tokio(softhost::softhost(global, command)),
        Subcommand::Process(process) => process.run(global).map(|()| 0),
    }
}

/// The log filter of `--debug`: warnings, and debug messages of all crates whose names start with `boxlite`.
const DEBUG: &str = "warn,boxlite=debug";

/// Standard error; in a box's process, whose guest can cause messages, with a bound.
fn log_writer(command: &Subcommand) -> BoxMakeWriter {
    if matches!(command, Subcommand::Process(Process::Machine))
        && let Ok(log) = boxlite_machine::BoundedLog::of_stderr()
    {
        // Panics go through the bounded log, too: a guest may be able to cause one repeatedly.
        std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
        return BoxMakeWriter::new(Mutex::new(log));
    }
    BoxMakeWriter::new(std::io::stderr)
}

/// Sets up the log. `RUST_LOG` is the filter; without it, warnings, or [`DEBUG`].
fn log_to_stderr(debug: bool, writer: BoxMakeWriter) {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(if debug { DEBUG } else { "warn" }));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(console::colors_enabled_stderr() && std::io::stderr().is_terminal())
        .init();
}
