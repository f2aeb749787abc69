//! `cargo xtask demo`: from a fresh clone to a command that ran in a box, with the time of each
//! stage.

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result};
use boxlite_kernel::Arch;

use crate::image::Kind;
use crate::ui::{Step, seconds};
use crate::{build, guest, image, softhost};

/// What the box runs: who it is, and that it is a machine of its own.
const SCRIPT: &str =
    "echo \"Hello from a box: $(uname -srm), $(nproc) CPU\"; cat /etc/passwd | head -1";

/// Builds what is missing and runs a box; its exit code is the box's.
pub(crate) fn run() -> Result<ExitCode> {
    let started = Instant::now();
    softhost::ensure_emulator()?;
    let guest = guest::build(&guest::Options::for_arch(Arch::HOST))?;
    let step = Step::start("launcher");
    step.say("compiling");
    let launcher = build::launcher()?;
    step.done(launcher.display());
    let layout = build::target_dir().join("images/busybox");
    image::make_at(Kind::Busybox, Arch::HOST, &layout)?;

    let image = format!("oci:{}:latest", layout.display());
    println!("\n$ {} run {image} sh -c '{SCRIPT}'", launcher.display());
    let running = Instant::now();
    let status = Command::new(&launcher)
        .env("BOXLITE_GUEST_DIR", guest)
        .args(["run", &image, "sh", "-c", SCRIPT])
        .status()
        .with_context(|| format!("cannot run {}", launcher.display()))?;
    println!(
        "\nThe box took {}, all together {}.",
        seconds(running.elapsed()),
        seconds(started.elapsed())
    );
    Ok(softhost::exit_code(status))
}
