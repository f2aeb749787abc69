//! Clippy for other targets: every package, tests included, compiles for the other architecture and,
//! as far as it has come, for macOS.

use anyhow::{Result, bail};
use boxlite_kernel::Arch;

use crate::build;
use crate::check::report::{Outcome, passes};
use crate::cross::{Target, Toolchain};

/// Packages that do not compile for macOS yet, with the reason. A package is taken off when it does;
/// none is added.
const NOT_ON_MACOS: &[(&str, &str)] = &[
    ("boxlite-agent", "runs in the guest, which is Linux"),
    ("boxlite-kvm", "is the backend of Linux"),
];

/// The architecture that this machine does not have.
pub(super) const OTHER_ARCH: Arch = match Arch::HOST {
    Arch::X86_64 => Arch::Aarch64,
    Arch::Aarch64 => Arch::X86_64,
};

/// Linux on the other architecture.
pub(super) fn linux() -> Result<Outcome> {
    clippy(Target::Linux(OTHER_ARCH), &[])
}

/// macOS on Apple silicon.
pub(super) fn darwin() -> Result<Outcome> {
    let packages = build::packages()?;
    for (name, reason) in NOT_ON_MACOS {
        if !packages.iter().any(|(package, _)| package == name) {
            bail!("{} names {name}, which is no package of the workspace", file!());
        }
        println!("not on macOS yet: {name}: {reason}");
    }
    let names: Vec<&str> = NOT_ON_MACOS.iter().map(|(name, _)| *name).collect();
    clippy(Target::Darwin, &names)
}

/// No lint complains about a package that is not in `except`.
fn clippy(target: Target, except: &[&str]) -> Result<Outcome> {
    let mut cargo = build::cargo();
    cargo.args(["clippy", "--workspace", "--all-targets"]);
    cargo.args(except.iter().flat_map(|name| ["--exclude", name]));
    Toolchain::find(target)?.configure(&mut cargo, &[]);
    passes(cargo.args(["--", "-D", "warnings"]))
}
