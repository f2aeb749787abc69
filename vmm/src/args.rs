//! The definition of the command line: the commands and the global options. The arguments of each command are in its
//! own module.

// The doc comments are help texts, where brackets mark optional parts.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

use std::ffi::OsString;

use clap::Parser;

use crate::commands::process::Process;
use crate::commands::{
    attach, completion, copy, create, doctor, events, exec, image, inspect, lifecycle, list, login,
    logs, port, run, stats,
};
use crate::global::Global;

const EXAMPLES: &str = "\
Examples:
  boxlite-vmm run oci:./alpine echo hello             run a command in a temporary box
  boxlite-vmm run -it oci:./debian bash               open a terminal in a box
  boxlite-vmm run -d --name db oci:./postgres         start a box in the background
  boxlite-vmm run -d -p 8080:80 nginx                 publish port 80 on http://localhost:8080
  boxlite-vmm exec -it db sh                          run a command in it
  boxlite-vmm logs -f db                              follow the output of its main command
  boxlite-vmm stop db && boxlite-vmm start db         restart it; its disk is kept
  boxlite-vmm ls -a                                   list all boxes
  tar c . | boxlite-vmm run -i oci:./alpine tar x -C /tmp
  boxlite-vmm image import oci:./debian debian        keep an image under a name
  boxlite-vmm doctor                                  check this machine

An image is a name (alpine:latest, ghcr.io/owner/app@sha256:…), an OCI layout folder (oci:DIR[:tag]), a
`docker save` file (docker-archive:FILE) or a folder with a root file system (rootfs:DIR).
Refer to a box by its name, its ID, or a unique prefix of its ID.";

/// Runs OCI images in micro-VMs, each with its own kernel: no daemon, no root.
#[derive(Debug, Parser)]
#[command(name = "boxlite-vmm", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Subcommand {
    /// Run a command in a new box
    #[command(after_help = run::HELP)]
    Run(Box<run::Run>),
    /// Create a box without starting it
    #[command(after_help = create::HELP)]
    Create(Box<create::Create>),
    /// Start boxes
    #[command(after_help = lifecycle::START_HELP)]
    Start(lifecycle::Start),
    /// Shut down boxes
    #[command(after_help = lifecycle::STOP_HELP)]
    Stop(lifecycle::Stop),
    /// Shut down boxes and start them again
    Restart(lifecycle::Stop),
    /// Kill boxes, or signal their main commands
    Kill(lifecycle::Kill),
    /// Remove boxes and their disks
    #[command(visible_alias = "remove")]
    Rm(lifecycle::Remove),
    /// List boxes
    #[command(visible_aliases = ["ps", "list"], after_help = list::HELP)]
    Ls(list::List),
    /// Show everything about boxes, as JSON
    Inspect(inspect::Inspect),
    /// List the published ports of a box
    #[command(after_help = port::HELP)]
    Port(port::Ports),
    /// Run a command in a running box
    #[command(after_help = exec::HELP)]
    Exec(exec::Exec),
    /// Connect this terminal to a box's main command
    #[command(after_help = attach::HELP)]
    Attach(attach::Attach),
    /// Copy files between a box and this machine
    #[command(visible_alias = "copy", after_help = copy::HELP)]
    Cp(copy::Copy),
    /// Show the output of a box's main command
    #[command(after_help = logs::HELP)]
    Logs(logs::Logs),
    /// Show the CPU, memory and disk use of boxes, live
    Stats(stats::Stats),
    /// List the processes in a box
    Top(stats::Top),
    /// Pause boxes
    Pause(lifecycle::Targets),
    /// Resume paused boxes
    #[command(visible_alias = "unpause")]
    Resume(lifecycle::Targets),
    /// Rename a box
    Rename(lifecycle::Rename),
    /// Wait until boxes have stopped, and print their exit codes
    Wait(lifecycle::Targets),
    /// Remove all boxes that are not running
    Prune(lifecycle::Prune),
    /// Show events of boxes
    #[command(after_help = events::HELP)]
    Events(events::Events),
    /// Manage images
    Image {
        #[command(subcommand)]
        command: image::Image,
    },
    /// Log in to a registry, and store the login where docker does
    #[command(after_help = login::HELP)]
    Login(login::Login),
    /// Remove the login for a registry
    Logout(login::Logout),
    /// Check whether this machine can run boxes, and say how to fix any problem
    Doctor(doctor::Doctor),
    /// Print a completion script for a shell
    #[command(after_help = completion::HELP)]
    Completion(completion::Completion),
    /// Run a command in the software host
    Softhost {
        /// The command and its arguments
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Hidden commands with which a runtime starts this executable.
    #[command(flatten)]
    Process(Process),
}

impl Subcommand {
    /// Whether the exit code is that of a command in a box, so that this process's own failures need other codes.
    pub(crate) fn stands_in(&self) -> bool {
        match self {
            Self::Run(_) | Self::Exec(_) | Self::Attach(_) | Self::Softhost { .. } => true,
            Self::Start(start) => start.is_attached(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_argument_has_a_help_text() {
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                let named = (command.get_name(), arg.get_id());
                assert!(arg.get_help().is_some(), "{named:?}");
            }
        }
    }

    #[test]
    fn command_lines_of_docker_users_parse() {
        for line in [
            "ps -aq --no-trunc --filter status=running",
            "list --format json -n 3",
            "run -dit --name x alpine",
            "run --rm -e A=1 -e B alpine env -i",
            "run -p 8080:80 -v /a:/b --detach-keys ctrl-a alpine",
            "create -l a=b --restart always alpine sleep 3",
            "start -ai x",
            "stop -t 3 a b",
            "restart --time 3 a",
            "kill -s HUP a",
            "rm -f a b",
            "exec -it -u root -w / -e A=1 x sh -c ls",
            "exec -d x sleep 1000",
            "attach --no-stdin x",
            "cp -a x:/etc/hosts -",
            "cp -L - x:/tmp",
            "logs -ft --tail 10 --since 10m x",
            "logs -n all x",
            "stats --no-stream",
            "top x",
            "unpause x",
            "rename a b",
            "wait a b",
            "events --since 1h --until 10m --format json",
            "image ls -q",
            "image rm -f a",
            "login -u me --password-stdin ghcr.io",
            "logout",
            "prune -f",
            "doctor --format json",
            "completion bash",
        ] {
            let words = std::iter::once("boxlite-vmm").chain(line.split(' '));
            if let Err(e) = Cli::try_parse_from(words) {
                panic!("{line}\n{e}");
            }
        }
    }

    #[test]
    fn flags_after_the_command_belong_to_the_command() {
        let cli = Cli::parse_from(["x", "run", "-it", "oci:d", "ls", "-l", "--memory", "3"]);
        let Subcommand::Run(run) = &cli.command else { panic!() };
        let options = run.options(&cli.global).unwrap();
        assert!(options.interactive && options.tty && options.memory_mib == 2048);
        assert_eq!(options.cmd.unwrap(), ["ls", "-l", "--memory", "3"]);
        let cli = Cli::parse_from(["x", "exec", "-i", "b", "ls", "-it", "--help"]);
        let Subcommand::Exec(exec) = cli.command else { panic!() };
        assert_eq!(exec.command, ["ls", "-it", "--help"]);
    }
}
