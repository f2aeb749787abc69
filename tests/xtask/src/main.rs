//! `cargo xtask`: everything that is done to the repository rather than by it.
//!
//! | command | makes or checks |
//! |---|---|
//! | `guest` | kernel, agent, initramfs and empty disk in `target/guest` |
//! | `image` | OCI images for tests and demonstrations |
//! | `demo` | all of it, and a box that runs |
//! | `test` | every check that CI makes |
//! | `check-cross` | that everything compiles for other targets |
//! | `softhost` | runs a command in the software host |
//! | `sign` | on macOS, the launcher's signature with the entitlement for the hypervisor |

#![forbid(unsafe_code)]

mod apt;
mod build;
mod check;
mod cross;
mod demo;
mod guest;
mod image;
mod sign;
mod softhost;
mod sys;
mod ui;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Set-up, guest files, demonstration and tests of BoxLite.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Builds the guest files into target/guest: kernel, initramfs with the agent, empty disk
    Guest(guest::Options),
    /// Makes an OCI image layout, tagged `latest`
    Image(image::Options),
    /// Builds everything, makes a real image, and runs a box
    Demo,
    /// Runs every check that CI runs
    Test(check::Options),
    /// Checks and lints everything for other targets: aarch64 Linux and macOS
    CheckCross,
    /// Runs a command in the software host, as a machine without virtualization would
    Softhost(softhost::Options),
    /// Signs executables ad hoc with the entitlement for the hypervisor (on macOS)
    Sign(sign::Options),
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Guest(options) => guest::build(&options).map(|_| ExitCode::SUCCESS),
        Task::Image(options) => image::make(&options).map(|()| ExitCode::SUCCESS),
        Task::Demo => demo::run(),
        Task::Test(options) => check::run(&options),
        Task::CheckCross => check::check_cross(),
        Task::Softhost(options) => softhost::run(&options),
        Task::Sign(options) => sign::run(&options).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
