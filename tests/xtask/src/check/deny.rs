//! Licences, sources and known faults of the crates we use, by cargo-deny as deny.toml says.
//!
//! Where it is not installed the checks are left out, except in CI, which installs it once into the
//! cache.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::check::report::{Outcome, passes};
use crate::check::tool::{Origin, Tool};

const DENY: Tool = Tool {
    name: "cargo-deny",
    version: "^0.20",
    oldest: [0, 18, 0],
    folder: "tools",
    origin: Origin::Crates { arguments: &[], variables: &[] },
};

/// Licences, sources and duplicates are what deny.toml allows.
pub(super) fn policy() -> Result<Outcome> {
    match DENY.program()? {
        Some(deny) => passes(check(deny).args(["bans", "licenses", "sources"])),
        None => Ok(Outcome::skipped("cargo-deny is not installed")),
    }
}

/// No crate has a known vulnerability. Without the database, which is fetched, nothing can be said.
pub(super) fn advisories() -> Result<Outcome> {
    let Some(deny) = DENY.program()? else {
        return Ok(Outcome::skipped("cargo-deny is not installed"));
    };
    let output = check(deny).arg("advisories").output().context("cannot run cargo-deny")?;
    let text = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(Outcome::passed()),
        false if text.contains("advisory database") => {
            Ok(Outcome::skipped("the advisory database cannot be fetched"))
        }
        false => bail!("{}", text.trim()),
    }
}

fn check(deny: PathBuf) -> Command {
    let mut command = Command::new(deny);
    command.current_dir(build::root()).args(["--workspace", "check"]);
    command
}
