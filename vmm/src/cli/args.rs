//! What can be said on the command line.

// The doc comments are help texts, where brackets say what may be left out.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, ValueEnum};

use super::size;

const EXAMPLES: &str = "\
Examples:
  boxlite-vmm run oci:./alpine                        a shell command of the image's own
  boxlite-vmm run -it oci:./debian bash               a terminal in a box
  boxlite-vmm run --cpus 2 --memory 1G oci:./py python3 -c 'print(1)'
  tar c . | boxlite-vmm run -i oci:./alpine tar x -C /tmp
  boxlite-vmm image import oci:./debian debian        keep it, and call it debian
  boxlite-vmm run debian cat /etc/os-release
  boxlite-vmm doctor                                  what this machine can do

An image is an OCI layout folder (oci:DIR[:tag], e.g. made by `skopeo copy docker://alpine oci:alpine`),
a `docker save` file (docker-archive:FILE), a folder with a root file system (rootfs:DIR) or the name
of an imported image.";

const RUN_HELP: &str = "\
The exit code is the command's; 128+n if signal n ended it; 124 if --timeout did; 125 if the box could
not be run, 126 if the command cannot be executed, 127 if it does not exist.

The box is thrown away at the end, with all that was written in it.";

/// Runs OCI images in micro-VMs: a kernel of their own, no daemon, no root.
#[derive(Debug, Parser)]
#[command(name = "boxlite-vmm", version, after_help = EXAMPLES)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Subcommand,
}

/// What every command takes.
#[derive(Debug, Args)]
pub(super) struct Global {
    /// Folder of boxes and images [default: $BOXLITE_HOME, else ~/.boxlite]
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) home: Option<PathBuf>,
    /// What runs the boxes
    #[arg(long, global = true, value_enum, default_value_t, env = "BOXLITE_ACCEL")]
    pub(super) accel: Accel,
    /// Say more on stderr, and keep the guest's console in boxes/<id>/console.log
    #[arg(long, global = true)]
    pub(super) debug: bool,
}

/// What runs the boxes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Accel {
    /// Hardware virtualization if this machine has it, else the software host
    #[default]
    Auto,
    /// Hardware virtualization by KVM, or fail
    Kvm,
    /// The software host (QEMU emulates a machine that has virtualization; slow)
    Soft,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Subcommand {
    /// Run a command in a new box
    #[command(after_help = RUN_HELP)]
    Run(Run),
    /// Manage images
    Image {
        #[command(subcommand)]
        command: Image,
    },
    /// Say what this machine can do, and what to do about what it cannot
    Doctor,
    /// Run any command in the software host
    Softhost {
        /// The command and its arguments
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// The runtime of a home, on standard input and output; the library starts it in the software host
    #[command(hide = true, name = crate::runtime::SERVE_SUBCOMMAND)]
    Serve,
    /// Ends when no box of the home lives; the keeper of the software host starts it there
    #[command(hide = true, name = crate::softhost::AWAIT_SUBCOMMAND)]
    AwaitBoxes,
    /// The process of a box; the launcher starts it
    #[command(hide = true)]
    Machine,
    /// The process that keeps the software host; the launcher starts it
    #[command(hide = true)]
    SofthostKeeper {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Run {
    /// Number of vCPUs, 1 to 64
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(super) cpus: u8,
    /// Memory, 128M to 64G; a plain number is MiB
    #[arg(long, short, default_value = "2048M", value_name = "SIZE", value_parser = size::mib)]
    pub(super) memory: u64,
    /// Size of the disk, 1G to 1T; a plain number is GiB [default: 10G]
    #[arg(long, value_name = "SIZE", value_parser = size::gib)]
    pub(super) disk_size: Option<u64>,
    /// Set an environment variable; without a value, take it from here (may be repeated)
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    pub(super) env: Vec<String>,
    /// Working directory [default: the image's]
    #[arg(long, short, value_name = "DIR")]
    pub(super) workdir: Option<String>,
    /// User, as name or uid, with :group or :gid [default: the image's]
    #[arg(long, short, value_name = "USER")]
    pub(super) user: Option<String>,
    /// Pass standard input on
    #[arg(long, short)]
    pub(super) interactive: bool,
    /// Give the command a terminal
    #[arg(long, short)]
    pub(super) tty: bool,
    /// Name of the box, which is its host name too
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
    /// Run this in place of the image's entry point; "" for none
    #[arg(long, value_name = "PROGRAM")]
    pub(super) entrypoint: Option<String>,
    /// Kill the command when it has run so long: 90s, 2m, 1h30m
    #[arg(long, value_name = "DURATION", value_parser = size::duration)]
    pub(super) timeout: Option<Duration>,
    /// Give up when the box has not booted after so long
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = size::duration)]
    pub(super) ready_timeout: Duration,
    /// The image: oci:DIR[:tag], docker-archive:FILE, rootfs:DIR, or an imported name; then the
    /// command and its arguments [default: the image's]
    // One list, so that a flag right behind the image is the command's.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_names = ["IMAGE", "COMMAND"]
    )]
    image_and_command: Vec<OsString>,
}

impl Run {
    /// The image.
    pub(super) fn image(&self) -> Result<String, String> {
        let image = self.image_and_command.first().and_then(|image| image.to_str());
        match image {
            Some(image) if image.starts_with('-') => {
                Err(format!("unknown option {image}; see `boxlite-vmm run --help`"))
            }
            Some(image) => Ok(image.to_owned()),
            None => Err("the image's name is not UTF-8".into()),
        }
    }

    /// The command and its arguments.
    pub(super) fn command(&self) -> impl Iterator<Item = &OsString> {
        self.image_and_command.iter().skip(1)
    }
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Image {
    /// Copy an image into the home under a name, and make its disk
    Import {
        /// The image: oci:DIR[:tag], docker-archive:FILE or rootfs:DIR
        source: String,
        /// Its name from now on [default: the name of the folder or file]
        name: Option<String>,
    },
    /// List the images in the home
    Ls,
    /// Remove images from the home
    Rm {
        /// Names, references or digests, as `image ls` shows them
        #[arg(required = true)]
        images: Vec<String>,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_behind_the_image_are_the_commands() {
        let cli = Cli::parse_from(["x", "run", "-it", "oci:d", "ls", "-l", "--memory", "3"]);
        let Subcommand::Run(run) = cli.command else { panic!() };
        assert!(run.interactive && run.tty && run.memory == 2048);
        assert_eq!(run.image(), Ok("oci:d".into()));
        assert!(run.command().eq(["ls", "-l", "--memory", "3"]));
    }

    #[test]
    fn a_flag_right_behind_the_image_is_the_commands_and_an_unknown_one_before_it_is_an_error() {
        let run = |args: &[&str]| match Cli::parse_from([&["x", "run"], args].concat()).command {
            Subcommand::Run(run) => run,
            _ => panic!(),
        };
        let flagged = run(&["--entrypoint", "id", "oci:d", "-u"]);
        assert_eq!(flagged.image(), Ok("oci:d".into()));
        assert!(flagged.command().eq(["-u"]) && flagged.user.is_none());
        assert!(run(&["--memry", "3", "oci:d"]).image().is_err());
    }
}
