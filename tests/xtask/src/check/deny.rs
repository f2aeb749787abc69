//! Licences, sources and known faults of the crates we use, by cargo-deny as deny.toml says.
//!
//! Where it is not installed the checks are left out, except in CI, which installs it once into the
//! cache.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use boxlite_kernel_builder::Cache;

use crate::check::report::{Outcome, passes};
use crate::ui::Step;
use crate::{apt, build};

/// What CI installs.
const VERSION: &str = "^0.20";

/// Licences, sources and duplicates are what deny.toml allows.
pub(super) fn policy() -> Result<Outcome> {
    match program()? {
        Some(deny) => passes(check(deny).args(["bans", "licenses", "sources"])),
        None => Ok(Outcome::skipped("cargo-deny is not installed")),
    }
}

/// No crate has a known vulnerability. Without the database, which is fetched, nothing can be said.
pub(super) fn advisories() -> Result<Outcome> {
    let Some(deny) = program()? else {
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

/// cargo-deny: the machine's own, else the cache's, which CI fills.
fn program() -> Result<Option<PathBuf>> {
    if let Some(deny) = apt::find("cargo-deny") {
        return Ok(Some(deny));
    }
    let tools = Cache::open()?.dir("tools")?;
    let deny = tools.join("bin/cargo-deny");
    if deny.is_file() {
        return Ok(Some(deny));
    }
    if env::var_os("CI").is_none_or(|ci| ci.is_empty() || ci == "false") {
        return Ok(None);
    }
    let step = Step::start("cargo-deny");
    step.say("installing it into the cache");
    build::run(
        build::cargo()
            .args(["install", "--quiet", "--locked", "cargo-deny", "--version", VERSION])
            .arg("--root")
            .arg(&tools),
    )?;
    step.done(deny.display());
    Ok(Some(deny))
}
