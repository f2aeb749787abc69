//! The Debian image: a real distribution with interpreters and a compiler, from Debian's archive by
//! mmdebstrap.

use std::path::Path;

use anyhow::{Context, Result};

use crate::apt;
use crate::build::run;
use crate::ui::Step;

const SUITE: &str = "bookworm";
/// What is in it beyond Debian's minimum.
const PACKAGES: &str = "python3,libpython3.11-testsuite,perl,gcc,libc6-dev,ca-certificates";

/// See [`super::Kind::recipe`].
pub(super) fn recipe() -> String {
    format!("2 {SUITE} minbase {PACKAGES}")
}

/// Writes the layer to `tar`.
pub(super) fn layer(tar: &Path, step: &Step) -> Result<()> {
    apt::ensure(&[("mmdebstrap", "mmdebstrap")])?;
    if !rustix::process::geteuid().is_root() {
        // Its way of being root where there is none.
        apt::ensure(&[("newuidmap", "uidmap")])?;
    }
    step.say(format!("bootstrapping Debian {SUITE}"));
    run(apt::command("mmdebstrap")
        .args(["--variant=minbase", "--format=tar"])
        .arg(format!("--include={PACKAGES}"))
        .arg(SUITE)
        .arg(tar))
    .context("cannot make a Debian root file system")
}
