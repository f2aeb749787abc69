//! The command line: `boxlite-vmm`.
//!
//! - `args`: the commands; what each takes is in its own room
//! - `run`, `create`, `lifecycle`, `exec`, `attach`, `logs`, `copy`: boxes; `options` is what can be said of
//!   one that is to be made, `stand_in` this process in place of a box's main command
//! - `list`, `inspect`, `port`, `stats`, `events`: what is known of them
//! - `image`, `login`: where they come from; `doctor`, `completion`: the rest
//! - `process`: the processes that a runtime starts this executable for
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
mod process;
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
use boxlite_runtime::client::FailureKind;
use boxlite_runtime::{Error, launcher};
use clap::Parser;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use args::{Cli, Subcommand};
use process::Process;

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
fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return ExitCode::from(explain(&e)),
    };
    log_to_stderr(cli.global.debug, log_writer(&cli.command));
    if !cli.command.is_embedded() {
        launcher::is_command_line();
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

/// Runs a command; its exit code.
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
        Subcommand::Cp(args) => on_tokio(copy::copy(global, &args)),
        Subcommand::Logs(args) => on_tokio(logs::logs(global, &args)),
        Subcommand::Stats(args) => on_tokio(stats::stats(global, &args)),
        Subcommand::Top(args) => on_tokio(stats::top(global, &args)),
        Subcommand::Events(args) => on_tokio(events::events(global, &args)),
        Subcommand::Image { command } => on_tokio(image::image(global, command)),
        Subcommand::Login(args) => login::login(global, args),
        Subcommand::Logout(args) => login::logout(global, &args),
        Subcommand::Doctor(args) => doctor::doctor(global, &args),
        Subcommand::Completion(args) => completion::completion(&args),
        Subcommand::Softhost { command } => on_tokio(accel::run_in_softhost(global, command)),
        Subcommand::Process(process) => process.run(global).map(|()| 0),
    }
}

fn on_tokio<T>(command: impl Future<Output = Result<T>>) -> Result<T> {
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

/// Warnings, and more of what this project does: a directive is of all crates whose names begin so.
const DEBUG: &str = "warn,boxlite=debug";

/// Standard error, bounded where what is logged is a guest's doing.
fn log_writer(command: &Subcommand) -> BoxMakeWriter {
    if matches!(command, Subcommand::Process(Process::Machine))
        && let Ok(log) = boxlite_machine::BoundedLog::of_stderr()
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
