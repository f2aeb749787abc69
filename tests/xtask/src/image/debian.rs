//! The Debian image: a real distribution with interpreters and a compiler, from Debian's archive by
//! mmdebstrap.
//!
//! Programs of another architecture cannot run while their image is made, nor can the scripts that
//! configure their packages: `configure.sh` does what programs need of it.

use std::path::Path;

use anyhow::{Context, Result};
use boxlite_kernel::Arch;
use boxlite_kernel_builder::debian_name;

use crate::apt;
use crate::build::run;
use crate::ui::Step;

const SUITE: &str = "bookworm";
/// What is in it beyond Debian's minimum.
const PACKAGES: &str = "python3,libpython3.11-testsuite,perl,gcc,libc6-dev,ca-certificates";

/// What minbase has, for another architecture: essential packages, apt, and the package that says that `/bin` is in
/// `/usr/bin`, without which apt installs nothing more.
const MINBASE: &str = "?essential ?priority(required) apt usr-is-merged";

/// Configures packages of another architecture.
const CONFIGURE: &str = include_str!("configure.sh");
/// Makes a root file system with `/bin` in `/usr/bin`, as the packages' own scripts would.
const MERGED_USR: &str = "/usr/share/mmdebstrap/hooks/merged-usr";

/// See [`super::Kind::recipe`].
pub(super) fn recipe(arch: Arch) -> String {
    let recipe = format!("2 {SUITE} minbase {PACKAGES}");
    if arch == Arch::HOST { recipe } else { format!("{recipe} {arch} {MINBASE} {CONFIGURE}") }
}

/// Writes the layer to `tar`.
pub(super) fn layer(arch: Arch, tar: &Path, step: &Step) -> Result<()> {
    apt::ensure(&[("mmdebstrap", "mmdebstrap")])?;
    if !rustix::process::geteuid().is_root() {
        // Its way of being root where there is none.
        apt::ensure(&[("newuidmap", "uidmap")])?;
    }
    step.say(format!("bootstrapping Debian {SUITE}"));
    let mut mmdebstrap = apt::command("mmdebstrap");
    mmdebstrap.arg("--format=tar");
    if arch == Arch::HOST {
        mmdebstrap.arg("--variant=minbase");
    } else {
        mmdebstrap
            .arg(format!("--architectures={}", debian_name(arch)))
            .arg("--variant=extract")
            .args(MINBASE.split(' ').map(|package| format!("--include={package}")))
            // The packages themselves are read once more by the script.
            .arg("--skip=essential/unlink")
            .arg(format!("--hook-dir={MERGED_USR}"))
            // Run by a shell, with the root file system as its argument.
            .arg(format!("--extract-hook={CONFIGURE}"));
    }
    run(mmdebstrap.arg(format!("--include={PACKAGES}")).arg(SUITE).arg(tar))
        .context("cannot make a Debian root file system")
}
